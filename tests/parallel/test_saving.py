"""Many ranks make one checkpoint: one index, one attempt, few requests; a kill at any write leaves old or new."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from raygpt import storage
from raygpt.errors import UserError
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.model.tensorfile import Spec, TensorStream
from raygpt.parallel import checkpoint, saving
from raygpt.parallel.checkpoint import RunState
from raygpt.parallel.index import Index
from raygpt.parallel.pieces import Piece, starts_of
from raygpt.parallel.saving import GivenUp
from raygpt.parallel.shares import file_of, share_out
from raygpt.storage import Location, locate
from tests.parallel.filesystems import Killed, counting
from tests.train.thread_world import on_ranks

SHAPES = {"wte": (40, 8), "w": (8, 24), "b": (24,), "proj": (24, 8)}

KINDS = ("weight", "exp_avg", "exp_avg_sq")


def tensors(value: float) -> dict[str, torch.Tensor]:
    """Weights and moments; every value tells its place and the checkpoint it belongs to."""
    out = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        count = torch.Size(shape).numel()
        for kind, more in zip(("", ".exp_avg", ".exp_avg_sq"), (0, 0.25, 0.5), strict=True):
            out[name + kind] = torch.arange(count).view(shape) + 1000.0 * number + more + 10_000 * value
    return out


def files_of(rank: int, world: int, step: int, value: float) -> dict[str, bytes | TensorStream]:
    """What one rank of DDP writes."""
    whole = tensors(value)
    mine = share_out({name: each.numel() for name, each in whole.items()}, world)[rank]
    kinds = {"model": [n for n in mine if "." not in n], "optimizer": [n for n in mine if "." in n]}
    files: dict[str, bytes | TensorStream] = {
        file_of(kind, rank, world): TensorStream.of({name: whole[name] for name in names})
        for kind, names in kinds.items()
        if names
    }
    if rank == 0:
        files["state.json"] = RunState(step=step, world_size=world).to_json().encode()
    return files | {checkpoint.rank_file(rank): checkpoint.rank_bytes({"rank": rank, "value": value})}


def zero_files(rank: int, world: int, value: float) -> dict[str, bytes | TensorStream]:
    """What one rank of ZeRO writes: its run of the flattened values of every parameter."""
    whole, pieces = tensors(value), []
    for name, shape in SHAPES.items():
        count = torch.Size(shape).numel()
        low, high = count * rank // world, count * (rank + 1) // world
        if low < high:
            values = {kind: whole[name + ("" if kind == "weight" else f".{kind}")].view(-1)[low:high] for kind in KINDS}
            pieces.append(Piece(name, shape, low, values))
    specs = [Spec(f"{p.name}.{kind}", torch.float32, (p.stop - p.start,)) for p in pieces for kind in KINDS]
    stream = TensorStream(specs, lambda: [p.values[kind] for p in pieces for kind in KINDS], starts_of(pieces))
    state = {"state.json": RunState(step=7, world_size=world).to_json().encode()} if rank == 0 else {}
    return {f"zero-{rank:05d}.safetensors": stream, **state}


def save(run: Location, step: int, world: int, value: float, attempt: str = "a") -> Location:
    where = run / checkpoint.FOLDER / checkpoint.folder_name(step)
    for rank in range(world):
        saving.write_part(where, rank, world, files_of(rank, world, step, value), attempt=attempt)
    saving.commit(where, world, attempt)
    return where


def value_of(where: Location, world: int) -> float:
    """The value that all of a checkpoint was written with; AssertionError where it is a mixture."""
    found = checkpoint.open_tensors(where)
    saved = checkpoint.read_rank(where, world - 1)
    assert saved is not None
    expected = tensors(saved["value"])
    for name in SHAPES:
        assert torch.equal(found.whole(name), expected[name])
        for kind in KINDS[1:]:
            assert torch.equal(found.whole(name, kind), expected[f"{name}.{kind}"])
    return saved["value"]


@pytest.mark.parametrize("world", [1, 2, 5])
def test_what_many_ranks_wrote_reads_back_as_one(tmp_path: Path, world: int) -> None:
    where = save(locate(tmp_path), 7, world, 3.0)
    assert checkpoint.verify(where) is None and value_of(where, world) == 3.0
    assert sorted(checkpoint.open_tensors(where).names) == sorted(SHAPES)
    if world == 1:
        assert {"model.safetensors", "optimizer.safetensors"} <= set(os.listdir(where.path))


@pytest.mark.parametrize("world", [1, 3, 8])
def test_pieces_are_found_through_the_index_alone(tmp_path: Path, world: int) -> None:
    run, counts = counting(tmp_path)
    where = run / checkpoint.FOLDER / checkpoint.folder_name(7)
    for rank in range(world):
        saving.write_part(where, rank, world, zero_files(rank, world, 2.0), attempt="a")
    saving.commit(where, world, "a")
    counts.requests.clear()
    found = checkpoint.open_tensors(where)
    assert dict(counts.requests) == {"read": 1}
    for name, shape in SHAPES.items():
        flat, count = tensors(2.0)[name].view(-1), torch.Size(shape).numel()
        assert torch.equal(found.whole(name), tensors(2.0)[name])
        assert torch.equal(found.read(name, "weight", 5, count - 3), flat[5 : count - 3])


def test_tensors_are_shared_out_evenly() -> None:
    model = GPT(GPTConfig(vocab_size=50257), initialise=False)
    sizes = {f"{name}{kind}": p.numel() for name, p in model.named_parameters() for kind in ("", ".m", ".v")}
    for ranks in (1, 2, 3, 4, 8, 64):
        shares = share_out(sizes, ranks)
        assert sorted(name for share in shares for name in share) == sorted(sizes)
        largest = max(sum(sizes[name] for name in share) for share in shares)
        best = max(max(sizes.values()), sum(sizes.values()) / ranks)
        assert largest <= 4 / 3 * best
    shuffled = list(sizes.items())
    random.Random(0).shuffle(shuffled)
    assert share_out(dict(shuffled), 8) == share_out(sizes, 8)


def test_an_index_says_everything_again_after_reading(tmp_path: Path) -> None:
    where = save(locate(tmp_path), 7, 3, 1.0)
    text = storage.read_text(where / "index.json")
    assert Index.from_json(text).to_json() == text
    for name, facts in json.loads(text)["files"].items():
        data = storage.read_bytes(where / name)
        assert facts == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_parts_of_two_attempts_never_make_a_checkpoint(tmp_path: Path) -> None:
    """A group dies while it saves; the next one saves the same step, and a worker of the dead one is still writing."""
    run = locate(tmp_path)
    where = run / checkpoint.FOLDER / checkpoint.folder_name(7)
    saving.write_part(where, 1, 2, files_of(1, 2, 7, 1.0), attempt="old")
    saving.write_part(where, 0, 2, files_of(0, 2, 7, 2.0), attempt="new")
    for attempt in ("old", "new"):
        with pytest.raises(GivenUp):
            saving.commit(where, 2, attempt, give_up=lambda: True)
    assert checkpoint.complete_checkpoints(run) == []
    saving.write_part(where, 1, 2, files_of(1, 2, 7, 2.0), attempt="new")
    saving.commit(where, 2, "new")
    assert value_of(where, 2) == 2.0
    # the dying worker comes last: what it left is not what the index names
    saving.write_part(where, 1, 2, files_of(1, 2, 7, 1.0), attempt="old")
    assert "damaged" in str(checkpoint.verify(where))


def test_a_new_group_deletes_what_a_dying_one_left_and_the_dying_one_makes_no_checkpoint_of_the_rest(
    tmp_path: Path,
) -> None:
    run = locate(tmp_path)
    where = run / checkpoint.FOLDER / checkpoint.folder_name(7)
    saving.write_part(where, 0, 2, files_of(0, 2, 7, 1.0), attempt="old")
    assert checkpoint.delete_leftovers(run) == [] and not storage.exists(where)
    saving.write_part(where, 1, 2, files_of(1, 2, 7, 1.0), attempt="old")
    assert checkpoint.complete_checkpoints(run) == []
    save(run, 9, 2, 2.0, attempt="new")
    assert checkpoint.delete_old(run, 2, None, 9) == (["step_00000007"], [])


def requests_of(folder: Path, world: int) -> tuple[int, int]:
    """(requests of all ranks for a save and the deleting after it, for a start from it): each rank's share as
    `RunHooks` and the worker ask."""
    run, counts = counting(folder)
    for step in (1, 2):
        save(run, step, world, 1.0)
    counts.requests.clear()
    save(run, 3, world, 1.0)
    assert checkpoint.delete_old(run, 2, None, 3) == (["step_00000001"], [])
    saves = sum(counts.requests.values())
    counts.requests.clear()
    counts.bytes_read.clear()
    chosen = on_ranks(world, lambda ranks: checkpoint.newest_usable(run, ranks))
    assert [found.name for found, notes in chosen if not notes] == ["step_00000003"] * world
    newest = Path(folder) / checkpoint.FOLDER / "step_00000003"
    read = {name: size for name, size in counts.bytes_read.items() if name != "index.json"}
    assert read == {path.name: path.stat().st_size for path in newest.iterdir() if path.name in read}
    assert read.keys() == Index.from_json((newest / "index.json").read_text()).files.keys()
    for rank in range(world):
        checkpoint.read_state(chosen[rank][0])
        checkpoint.open_tensors(chosen[rank][0])
        checkpoint.read_rank(chosen[rank][0], rank)
    return saves, sum(counts.requests.values())


def test_saving_and_starting_cost_requests_in_proportion_to_the_ranks_and_each_byte_is_verified_once(
    tmp_path: Path,
) -> None:
    counted = {world: requests_of(tmp_path / str(world), world) for world in (1, 2, 4, 16, 64)}
    for world, (saves, starting) in counted.items():
        assert saves <= 20 + 6 * world, counted  # three files and a part of each rank, and the reading of the part
        assert starting <= 10 + 7 * world, counted


def test_deleting_asks_as_much_of_64_ranks_as_of_one(tmp_path: Path) -> None:
    asked = {}
    for world in (1, 64):
        run, counts = counting(tmp_path / str(world))
        for step in (1, 2, 3):
            save(run, step, world, 1.0)
        counts.requests.clear()
        assert checkpoint.delete_old(run, 2, None)[0] == ["step_00000001"]
        asked[world] = dict(counts.requests)
    assert asked[1] == asked[64] and "read" not in asked[1]


def test_a_checkpoint_that_cannot_be_deleted_is_a_note(tmp_path: Path) -> None:
    run, counts = counting(tmp_path)
    for step in (1, 2, 3):
        save(run, step, 1, 1.0)
    counts.refuse_deletes = True
    deleted, notes = checkpoint.delete_old(run, 1, None)
    assert deleted == [] and len(notes) == 2 and "step_00000002 was not deleted" in notes[0]


def test_checkpoints_of_a_course_that_the_run_left_push_out_none(tmp_path: Path) -> None:
    """The newest was damaged and passed over: it must not be counted among those kept."""
    run = locate(tmp_path)
    for step in (10, 20, 30):
        save(run, step, 1, 1.0)
    assert checkpoint.delete_old(run, 2, None, newest=20)[0] == []
    assert [where.name for where in checkpoint.complete_checkpoints(run)][-1] == "step_00000010"


def test_all_ranks_hear_of_damage_that_one_found_and_of_storage_that_one_cannot_read(tmp_path: Path) -> None:
    run = locate(tmp_path)
    save(run, 1, 4, 1.0)
    damaged = Path(save(run, 2, 4, 2.0).path) / "rank-00003.pt"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    for found, notes in on_ranks(3, lambda world: checkpoint.newest_usable(run, world)):
        assert found.name == "step_00000001" and notes == [
            "checkpoint step_00000002 is passed over: rank-00003.pt is damaged (sha256 differs)"
        ]

    def deny(*_: object) -> None:
        raise PermissionError("AccessDenied")

    run, counts = counting(tmp_path)
    counts.get_file_info_selector = deny  # type: ignore[method-assign]
    refused = on_ranks(3, lambda world: checkpoint.newest_usable(run, world))
    assert len(refused) == 3 and {type(each) for each in refused} == {UserError}


def test_a_checkpoint_of_before_the_index_loads_verifies_and_is_deleted(tmp_path: Path) -> None:
    """As raygpt wrote it until then: a manifest of every rank, written last, and all tensors by rank 0."""
    run = locate(tmp_path)

    def write_old(step: int) -> Location:
        where = run / checkpoint.FOLDER / checkpoint.folder_name(step)
        saving.write(where, files_of(0, 1, step, 5.0))
        saving.write_part(where, 1, 2, {"rank-00001.pt": checkpoint.rank_bytes({"value": 5.0})}, attempt="x")
        for name in os.listdir(where.path):
            if name.startswith(("index", "part")):
                (Path(where.path) / name).unlink()
        names = [["model.safetensors", "optimizer.safetensors", "state.json", "rank-00000.pt"], ["rank-00001.pt"]]
        for rank, mine in enumerate(names):
            data = {name: storage.read_bytes(where / name) for name in mine}
            files = {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in data.items()}
            manifest = {"version": 1, "world_size": 2, "files": files}
            storage.write_text(where / f"manifest-{rank:05d}.json", json.dumps(manifest))
        return where

    where = write_old(4)
    assert checkpoint.complete_checkpoints(run) == [where] and checkpoint.verify(where) is None
    assert value_of(where, 2) == 5.0 and checkpoint.size(where) > 1000
    assert checkpoint.locate_checkpoint(where.uri) == where
    checkpoint.delete_leftovers(run)
    (Path(where.path) / "manifest-00001.json").unlink()
    assert checkpoint.complete_checkpoints(run) == []
    write_old(4)
    save(run, 6, 1, 6.0)
    assert checkpoint.delete_old(run, 1, None, 6) == (["step_00000004"], [])
    # a damaged old one is written anew
    write_old(8)
    assert value_of(save(run, 8, 3, 8.0), 3) == 8.0


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("again", [False, True], ids=["a new step", "over a damaged one"])
def test_a_kill_at_any_write_leaves_the_old_checkpoint_or_the_whole_new_one(
    tmp_path: Path, world: int, again: bool
) -> None:
    outcomes = []
    for fail_at in range(100):
        folder = tmp_path / str(fail_at)
        save(locate(folder), 10, world, 1.0)
        if again:
            damaged = Path(save(locate(folder), 20, world, 2.0).path) / "state.json"
            damaged.write_bytes(bytes(damaged.stat().st_size))
        run, counts = counting(folder, fail_at)
        killed = False
        try:
            save(run, 20, world, 3.0, attempt="b")
        except Killed:
            killed = True
        plain = locate(folder)
        found, _ = checkpoint.newest_usable(plain)
        assert found is not None
        outcomes.append(value_of(found, world))
        assert outcomes[-1] == (1.0 if killed else 3.0)
        # the next start
        assert checkpoint.delete_leftovers(plain) == []
        steps = {path.name for path in (folder / checkpoint.FOLDER).iterdir()}
        assert steps == {"step_00000010"} | ({"step_00000020"} if outcomes[-1] == 3.0 else set())
        shutil.rmtree(folder)
        if not killed:
            break
    assert fail_at == counts.requests["write"] > 4 and outcomes[-1] == 3.0


def test_a_kill_at_any_renaming_on_a_local_disk_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.replace, [0, 0]

    def replace(old: str, new: str) -> None:
        calls[0] += 1
        if calls[0] == calls[1]:
            raise Killed
        real(old, new)

    for fail_at in range(1, 100):
        run = locate(tmp_path / str(fail_at))
        calls[:] = [0, -1]
        monkeypatch.setattr(os, "replace", replace)
        save(run, 10, 2, 1.0)
        calls[:] = [0, fail_at]
        try:
            save(run, 20, 2, 2.0)
            killed = False
        except Killed:
            killed = True
        found, _ = checkpoint.newest_usable(run)
        assert found is not None and value_of(found, 2) == (1.0 if killed else 2.0)
        checkpoint.delete_leftovers(run)
        assert len(list((tmp_path / str(fail_at) / checkpoint.FOLDER).iterdir())) == 2 - killed
        if not killed:
            break
    assert fail_at > 5
