"""What was compiled comes back in another process; what is damaged or foreign is ignored with a reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raygpt.train import compile_cache

CPU = torch.device("cpu")
PROGRAM = """
import sys
from pathlib import Path
import torch
from torch._dynamo.utils import counters
from raygpt.train import compile_cache
path, device = Path(sys.argv[1]), torch.device("cpu")
if path.exists():
    print(compile_cache.unpack(path.read_bytes(), device))
x = torch.arange(8.0, requires_grad=True)
torch.compile(lambda value: (value.sin() * 3).sum(), dynamic=False)(x).backward()
if not path.exists():
    path.write_bytes(compile_cache.pack(device))
found = {**counters["inductor"], **counters["aot_autograd"]}
print(found.get("fxgraph_cache_hit", 0) + found.get("autograd_cache_hit", 0))
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache") / compile_cache.NAME
    assert compiled(path, "first") == ["0"]
    return path


def compiled(path: Path, cache: str) -> list[str]:
    """Lines that a fresh process prints with torch's own caches in an empty folder."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(path.parent / cache)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split("\n")[:-1]


def test_another_process_with_empty_caches_need_not_compile(packed: Path) -> None:
    problem, hits = compiled(packed, "second")
    assert problem == "None" and int(hits) > 0


def test_a_damaged_file_is_ignored_with_the_reason(packed: Path) -> None:
    data = packed.read_bytes()
    assert "sha256" in str(compile_cache.unpack(data[:-1], CPU))
    assert "sha256" in str(compile_cache.unpack(data[:-1] + bytes([data[-1] ^ 1]), CPU))
    assert "no compile cache" in str(compile_cache.unpack(b"something else", CPU))
    assert "head is damaged" in str(compile_cache.unpack(compile_cache.MAGIC + b"[]\n", CPU))
    assert "head is damaged" in str(compile_cache.unpack(compile_cache.MAGIC, CPU))


def test_a_file_of_another_torch_or_device_is_ignored_with_the_reason(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "1.0")
    assert "torch" in str(compile_cache.unpack(packed.read_bytes(), CPU))
    monkeypatch.undo()
    other = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Pretend GPU")
    reason = compile_cache.unpack(packed.read_bytes(), other)
    assert reason is not None and reason.endswith("instead of Pretend GPU")


def test_what_torch_itself_refuses_is_ignored_too(packed: Path) -> None:
    import hashlib
    import json

    payload = b"\x00" * 64
    head = json.loads(packed.read_bytes()[len(compile_cache.MAGIC) :].partition(b"\n")[0])
    head |= {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
    reason = compile_cache.unpack(compile_cache.MAGIC + json.dumps(head).encode() + b"\n" + payload, CPU)
    assert reason is not None and reason.startswith("torch does not take it")
