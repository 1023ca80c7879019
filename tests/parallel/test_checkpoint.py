"""A checkpoint is complete or does not count, verified before use, and old ones go while the best stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from raygpt import storage
from raygpt.errors import UserError
from raygpt.model.tensorfile import Spec, TensorStream
from raygpt.parallel import checkpoint, saving
from raygpt.parallel.checkpoint import RunState
from raygpt.parallel.rng import restore_rng, rng_state
from raygpt.parallel.snapshot import SnapshotBuffers
from raygpt.storage import Location, locate


def write(run: Location, step: int, ranks: int = 2, only: tuple[int, ...] | None = None) -> Location:
    where = run / checkpoint.FOLDER / checkpoint.folder_name(step)
    for rank in only or range(ranks):
        files: dict = {checkpoint.rank_file(rank): checkpoint.rank_bytes({"rng": rng_state(torch.device("cpu"))})}
        if rank == 0:
            files["model.safetensors"] = TensorStream.of({"w": torch.full((3, 2), float(step))})
            files["state.json"] = RunState(step=step, val_loss=1.5).to_json().encode()
        saving.write_part(where, rank, ranks, files, attempt="a")
    if only is None:
        saving.commit(where, ranks, "a")
    return where


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "s3":
        return locate(f"{request.getfixturevalue('bucket')}/runs/first")
    return locate(tmp_path / "first")


def test_what_is_written_reads_back(run: Location) -> None:
    where = write(run, 100)
    assert checkpoint.verify(where) is None
    assert checkpoint.read_state(where).step == 100
    assert torch.equal(checkpoint.open_tensors(where).whole("w"), torch.full((3, 2), 100.0))
    saved = checkpoint.read_rank(where, 1)
    assert saved is not None and torch.equal(saved["rng"]["torch"], torch.get_rng_state())
    assert checkpoint.read_rank(where, 2) is None


def test_a_checkpoint_one_rank_never_finished_does_not_count(run: Location) -> None:
    write(run, 100)
    write(run, 200, only=(0,))
    write(run, 300, only=(1,))
    assert [where.name for where in checkpoint.complete_checkpoints(run)] == ["step_00000100"]
    found, notes = checkpoint.newest_usable(run)
    assert found is not None and found.name == "step_00000100" and len(notes) == 2
    checkpoint.delete_leftovers(run)
    assert not storage.exists(run / checkpoint.FOLDER / "step_00000300")


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "index"])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_message(tmp_path: Path, damage: str) -> None:
    run = locate(tmp_path / "first")
    write(run, 100)
    path = Path(write(run, 200).path)
    weights = path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "cut":
        weights.write_bytes(data[:-4])
    elif damage == "gone":
        weights.unlink()
    else:
        (path / "index.json").write_text("{")
    found, notes = checkpoint.newest_usable(run)
    assert found is not None and found.name == "step_00000100"
    assert len(notes) == 1 and "step_00000200 is passed over" in notes[0]
    with pytest.raises(UserError, match="cannot be used"):
        checkpoint.locate_checkpoint(str(path))


def test_the_newest_and_the_best_are_kept(run: Location) -> None:
    for step in (100, 200, 300, 400):
        write(run, step, ranks=1)
    assert checkpoint.delete_old(run, keep=2, best_step=100) == (["step_00000200"], [])
    kept = [where.name for where in checkpoint.complete_checkpoints(run)]
    assert kept == ["step_00000400", "step_00000300", "step_00000100"]


def test_nothing_in_a_checkpoint_needs_unpickling_code(tmp_path: Path) -> None:
    where = Path(write(locate(tmp_path / "first"), 1).path)
    assert {path.suffix for path in where.iterdir()} <= {".safetensors", ".json", ".yaml", ".pt"}
    for path in where.glob("*.pt"):
        torch.load(path, weights_only=True)


def test_a_failed_write_leaves_no_checkpoint_behind(tmp_path: Path) -> None:
    run = locate(tmp_path / "first")
    where = run / checkpoint.FOLDER / "step_00000100"
    wrong = TensorStream([Spec("b", torch.float32, (3,))], lambda: [torch.zeros(4)])
    with pytest.raises(ValueError, match="b is"):
        saving.write(where, {"a": b"1", "b": wrong})
    assert checkpoint.complete_checkpoints(run) == []
    checkpoint.delete_leftovers(run)
    assert [path.name for path in (tmp_path / "first" / checkpoint.FOLDER).iterdir()] == []


def test_random_generators_go_on_where_they_were() -> None:
    state = rng_state(torch.device("cpu"))
    first = torch.rand(5)
    torch.rand(100)
    restore_rng(state, torch.device("cpu"))
    assert torch.equal(torch.rand(5), first)


def test_state_of_a_newer_version_with_more_fields_still_reads() -> None:
    text = json.dumps({**json.loads(RunState(step=5).to_json()), "later": 1})
    assert RunState.from_json(text).step == 5


def test_a_snapshot_does_not_change_with_the_weights_and_reuses_its_memory() -> None:
    buffers = SnapshotBuffers()
    weight = torch.nn.Parameter(torch.ones(4))
    first = buffers.take({"w": weight})["w"]
    with torch.no_grad():
        weight.fill_(2)
    assert first.tolist() == [1, 1, 1, 1]
    assert buffers.take({"w": weight})["w"].data_ptr() == first.data_ptr()
