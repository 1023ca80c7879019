"""The streaming writer against the safetensors library: what it reads back, and the memory that writing takes."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from raygpt.model.tensorfile import Spec, Written, write_tensors


def specs_of(tensors: dict[str, torch.Tensor]) -> list[Spec]:
    return [Spec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]


def test_the_library_reads_back_every_type_shape_and_layout(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shared = torch.randn(6, 10)
    tensors = {
        "matrix": torch.randn(3, 5),
        "transposed": torch.randn(4, 7).t(),
        "view": shared[2:4],
        "column": shared[:, 3],
        "same memory": shared,
        "scalar": torch.tensor(1.5),
        "nothing": torch.empty(0, 4),
        "half": torch.randn(5).half(),
        "brain": torch.randn(2, 3).bfloat16(),
        "counts": torch.tensor([2**40, -1]),
        "mask": torch.arange(6, dtype=torch.uint8),
    }
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as file:
        written = write_tensors(file, specs_of(tensors), tensors.values(), {"format": "pt"})
    data = path.read_bytes()
    assert written == Written(len(data), hashlib.sha256(data).hexdigest())
    assert int.from_bytes(data[:8], "little") % 8 == 0  # values begin at a multiple of eight bytes
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_values_come_one_at_a_time_while_the_file_grows() -> None:
    file = io.BytesIO()
    sizes = []

    def values() -> object:
        for _ in range(3):
            sizes.append(len(file.getvalue()))
            yield torch.zeros(10)

    write_tensors(file, [Spec(name, torch.float32, (10,)) for name in "abc"], values())  # type: ignore[arg-type]
    assert [size - sizes[0] for size in sizes] == [0, 40, 80]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (torch.zeros(3), r"a is torch\.float32 \(3,\), not torch\.float32 \(2,\)"),
        (torch.zeros(2).half(), r"a is torch\.float16 \(2,\), not torch\.float32 \(2,\)"),
    ],
)
def test_a_value_that_is_not_as_announced_is_an_error(value: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        write_tensors(io.BytesIO(), [Spec("a", torch.float32, (2,))], [value])


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_or_too_many_values_are_an_error(count: int) -> None:
    with pytest.raises(ValueError):
        write_tensors(io.BytesIO(), [Spec(name, torch.float32, (2,)) for name in "ab"], [torch.zeros(2)] * count)


def test_writing_400_megabytes_takes_a_few_more(tmp_path: Path) -> None:
    # in a process of its own: the peak of this one is history
    code = f"""
import resource, torch
from raygpt.model.tensorfile import Spec, write_tensors
tensors = {{str(i): torch.ones(10_000_000) for i in range(10)}}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open({str(tmp_path / "x.safetensors")!r}, "wb") as file:
    write_tensors(file, [Spec(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()], tensors.values())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40_000  # KiB
