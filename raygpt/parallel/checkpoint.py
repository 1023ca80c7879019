"""Checkpoints: a folder per step that is complete or does not count, verified before it is used.

    step_00000100/
      model.safetensors      weights, fp32, vocabulary padded as inside the model
      optimizer.safetensors  the optimizer's state by parameter name
      model-00000.safetensors, optimizer-00000.safetensors  with several ranks: the tensors that one of them wrote
      zero-00000.safetensors with ZeRO instead of these: one rank's part of both (see pieces.py)
      state.json             step, data position, totals, scaler, W&B id, fingerprints
      config.yaml            the resolved config
      tokenizer.json
      rank-00000.pt          random generators and open loss sums of one rank (loads with weights_only=True)
      part-00000-….json      what one rank wrote (see index.py)
      index.json             size and sha256 of every file, place of every tensor; rank 0 writes it last

A checkpoint is complete when its index is there and the sizes agree. Requests do not grow faster than the number of
ranks W: a save costs each rank its own files, rank 0 W reads of parts; a start reads the index and each byte once.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from pyarrow import fs as pafs

from raygpt import storage
from raygpt.errors import UserError
from raygpt.parallel.distributed import World
from raygpt.parallel.index import Index, is_finished, read_index
from raygpt.parallel.pieces import CheckpointTensors
from raygpt.parallel.saving import unmark
from raygpt.storage import Location

FOLDER = "checkpoints"
BEST = "best"  # stands in for the name of a step's folder
VERSION = 1
_verified: dict[str, str] = {}  # URI -> sizes and times of its files when their contents were found right
ALONE = World(0, 1, torch.device("cpu"))
T = TypeVar("T")
_STEP = re.compile(r"step_(\d{8,})$")


@dataclass
class RunState:
    """Totals of a run at one step: everything but tensors. `step` counts finished optimizer steps.

    The data position is `step` alone; `epoch` and `epoch_step` say the same in the plan's terms.
    """

    step: int = 0
    tokens: int = 0
    epoch: int = 0
    epoch_step: int = 0
    skipped_steps: int = 0
    train_seconds: float = 0.0  # in steps that count
    wait_seconds: float = 0.0  # of those, waiting for data
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    stale_evaluations: int = 0  # in a row without a better loss
    stopped_early: bool = False
    world_size: int = 1
    micro_batch_size: int = 1
    device_memory: int | None = None  # bytes of the smallest rank's, 0 on CPUs
    scaler: dict[str, Any] = field(default_factory=dict)
    wandb_id: str | None = None
    order_version: int = 1  # of raygpt.data.order; states written before it was recorded are of version 1
    fingerprint: str = ""
    tokenizer_sha256: str = ""
    tokenizer_name: str = ""
    eot_id: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    objective: str = ""  # what is learned, by its name; empty where it was not recorded yet
    teacher: str = ""  # where its weights lay when the run began, of a run with a teacher beside it
    adapters: dict[str, Any] = field(default_factory=dict)  # of lora.Adapters; empty: all weights trained
    version: int = VERSION

    @property
    def optimizer_steps(self) -> int:
        """Steps in which the weights moved."""
        return self.step - self.skipped_steps

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunState:
        values = json.loads(text)
        return cls(**{key: value for key, value in values.items() if key in cls.__dataclass_fields__})


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def step_of(name: str) -> int | None:
    """Step in a checkpoint's folder name, None for another name."""
    match = _STEP.search(name.rstrip("/"))
    return int(match[1]) if match else None


def complete_checkpoints(run: Location) -> list[Location]:
    """Complete checkpoints of a run folder, newest first. Sizes are compared, contents are not read."""
    root = run / FOLDER
    return [root / name for name in _step_folders(run) if missing(root / name) is None]


def missing(where: Location) -> str | None:
    """Why a checkpoint folder is incomplete, or None when every file is there in full."""
    return _look(where)[1]


def _look(where: Location) -> tuple[Index | None, str | None]:
    """(index, None) of a complete checkpoint, else why it is none: one read and one LIST."""
    try:
        index = read_index(where)
        sizes = {entry.base_name: entry.size for entry in storage.list_folder(where)}
        for name, facts in index.files.items():
            if sizes.get(name) != facts["bytes"]:
                return None, f"{name} has {sizes.get(name, 'no')} bytes instead of {facts['bytes']}"
    except FileNotFoundError as error:
        return None, f"it was never finished ({Path(str(error)).name[:60]})"
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return None, f"its index is damaged ({error})"
    return index, None


def verify(where: Location, world: World = ALONE) -> str | None:
    """Why a checkpoint must not be used, or None: every file has the sha256 its index records.

    The ranks of `world` call it together and share the files out: each byte is read once, and all get one answer.
    """
    looked = _of_rank_0(world, lambda: _facts(where))
    if isinstance(looked, str):
        return looked
    if world.size == 1:
        state = repr(sorted((entry.base_name, entry.size, entry.mtime_ns) for entry in storage.list_folder(where)))
        if _verified.get(where.uri) == state:
            return None  # by this process, and nothing was written since: a large one takes minutes to read
    problem = None
    for name in Index(1, looked).shares(world.size)[world.rank]:
        try:
            if storage.sha256(where / name) != looked[name]["sha256"]:
                problem = f"{name} is damaged (sha256 differs)"
        except FileNotFoundError:
            problem = f"{name} is gone"
        except UserError as error:  # the others must hear of it
            problem = str(error)
        if problem:
            break
    found = next((each for each in world.gather(problem) if each), None)
    if world.size == 1 and found is None:
        _verified[where.uri] = state
    return found


def _facts(where: Location) -> dict[str, dict[str, Any]] | str:
    index, problem = _look(where)
    return index.files if index is not None else problem or ""


def _of_rank_0(world: World, act: Callable[[], T]) -> T:
    """What `act` returns or raises in rank 0, on every rank."""
    result: tuple[Any, str | None] = (None, None)
    if world.rank == 0:
        try:
            result = act(), None
        except (UserError, OSError) as error:
            result = None, str(error)
    value, refused = world.broadcast(result)
    if refused is not None:
        raise UserError(refused)
    return value


def newest_usable(run: Location, world: World = ALONE) -> tuple[Location | None, list[str]]:
    """(newest checkpoint that verifies, one sentence for each newer one that was passed over), the same on all ranks
    of `world`, which call it together."""
    notes: list[str] = []
    for name in _of_rank_0(world, lambda: _step_folders(run)):
        problem = verify(run / FOLDER / name, world)
        if problem is None:
            return run / FOLDER / name, notes
        notes.append(f"checkpoint {name} is passed over: {problem}")
    return None, notes


def _step_folders(run: Location) -> list[str]:
    """Names of the steps' folders, newest first."""
    names = [entry.base_name for entry in storage.list_folder(run / FOLDER) if entry.type == pafs.FileType.Directory]
    return sorted((name for name in names if _STEP.fullmatch(name)), key=lambda name: -(step_of(name) or 0))


def read_state(where: Location) -> RunState:
    return RunState.from_json(storage.read_text(where / "state.json"))


def open_tensors(where: Location) -> CheckpointTensors:
    """Weights and moments of a complete checkpoint, read piece by piece when they are asked for. One read."""
    index = read_index(where)
    return CheckpointTensors(where, index.files, index.places)


def size(where: Location) -> int:
    """Bytes of a complete checkpoint."""
    return read_index(where).bytes


def read_rank(where: Location, rank: int) -> dict[str, Any] | None:
    """What one rank saved, None where the checkpoint was written by fewer ranks."""
    try:
        data = storage.read_bytes(where / rank_file(rank))
    except FileNotFoundError:
        return None
    return torch.load(io.BytesIO(data), weights_only=True)


def delete_old(
    run: Location, keep: int, best_step: int | None, newest: int | None = None
) -> tuple[list[str], list[str]]:
    """Delete finished checkpoints but the `keep` newest up to step `newest` and the best, and unfinished ones before
    it. Later ones are of a course that the run left: they neither count nor are they touched.

    Returns the names of those deleted, and a sentence for each that could not be. A look at each folder: the requests
    do not depend on the number of ranks.
    """
    deleted: list[str] = []
    notes: list[str] = []
    kept = 0
    for name in _step_folders(run):
        step = step_of(name) or 0
        if newest is not None and step > newest:
            continue
        try:
            finished = is_finished(run / FOLDER / name)
            kept += finished
            if (finished and (kept <= keep or step == best_step)) or not (finished or kept):
                continue
            unmark(run / FOLDER / name)
            storage.delete(run / FOLDER / name)
            deleted.append(name)
        except (UserError, OSError) as error:
            notes.append(_left(run / FOLDER / name, error))
    return deleted, notes


def delete_leftovers(run: Location) -> list[str]:
    """Delete what killed writers left: hidden parts and folders that never became complete. A sentence for each that
    could not be deleted: a dying writer may still be at work there, and never makes a checkpoint of it."""
    root = run / FOLDER
    notes = []
    for entry in storage.list_folder(root):
        name = entry.base_name
        if entry.type != pafs.FileType.Directory:
            continue
        try:
            if name.startswith(".step_") or (_STEP.fullmatch(name) and not is_finished(root / name)):
                storage.delete(root / name)
        except (UserError, OSError) as error:
            notes.append(_left(root / name, error))
    return notes


def _left(where: Location, error: Exception) -> str:
    reason = error if isinstance(error, UserError) else storage.explain(error, where)  # type: ignore[arg-type]
    return f"{where.name} was not deleted: {reason}"


def rank_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.pt"


def locate_checkpoint(uri: str) -> Location | None:
    """Checkpoint a URI means: a step folder itself, `…/checkpoints/best` for the one of the best evaluation, or the
    newest usable one of a run folder. None for neither."""
    where = storage.locate(uri)
    if where.name == BEST and where.parent.name == FOLDER:
        where = _best(where.parent.parent)
    if step_of(where.name) is not None and is_finished(where):
        problem = verify(where)
        if problem:
            raise UserError(f"checkpoint {where.uri} cannot be used: {problem}; name another of the run's checkpoints.")
        return where
    if not storage.exists(where / FOLDER):
        return None
    found, notes = newest_usable(where)
    if found is None and notes:
        raise UserError(f"{where.uri} has no usable checkpoint: {notes[0]}.")
    return found


def _best(run: Location) -> Location:
    """Folder of the best evaluation's checkpoint. Raises UserError where there is none."""
    found = complete_checkpoints(run)
    step = read_state(found[0]).best_step if found else None
    if step is None or run / FOLDER / folder_name(step) not in found:
        raise UserError(
            f"{run.uri} keeps no checkpoint of its best evaluation: set train.save_best=true from its start, or name "
            "the run for its newest one."
        )
    return run / FOLDER / folder_name(step)
