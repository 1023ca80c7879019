"""Checkpoints: a folder per step that is complete or does not count, verified before it is used.

    step_00000100/
      model.safetensors      weights, fp32, vocabulary padded as inside the model
      optimizer.safetensors  AdamW's moments by parameter name
      zero-00000.safetensors with ZeRO instead of these two: one rank's part of both (see pieces.py)
      state.json             step, data position, totals, scaler, W&B id, fingerprints
      config.yaml            the resolved config
      tokenizer.json
      rank-00000.pt          random generators and open loss sums of one rank (loads with weights_only=True)
      manifest-00000.json    size and sha256 of each file that rank wrote; written last

A checkpoint is complete when the manifest of every rank is there and the sizes agree.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pyarrow import fs as pafs

from raygpt import storage
from raygpt.errors import UserError
from raygpt.model.tensorfile import TensorStream, write_tensors
from raygpt.parallel.pieces import CheckpointTensors
from raygpt.parallel.rng import restore_rng, rng_state
from raygpt.storage import Location

__all__ = ["TensorStream", "restore_rng", "rng_state"]  # beside what is defined here

FOLDER = "checkpoints"
BEST = "best"  # stands in for the name of a step's folder
VERSION = 1
_verified: dict[str, str] = {}  # URI -> sizes and times of its files when their contents were found right
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
    scaler: dict[str, Any] = field(default_factory=dict)
    wandb_id: str | None = None
    order_version: int = 1  # of raygpt.data.order; states written before it was recorded are of version 1
    fingerprint: str = ""
    tokenizer_sha256: str = ""
    tokenizer_name: str = ""
    eot_id: int = 0
    model: dict[str, Any] = field(default_factory=dict)
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
    found = []
    for entry in storage.list_folder(root):
        name = entry.path.rstrip("/").rsplit("/", 1)[-1]
        if entry.type == pafs.FileType.Directory and _STEP.fullmatch(name) and missing(root / name) is None:
            found.append(root / name)
    return sorted(found, key=lambda where: step_of(where.name) or 0, reverse=True)


def missing(where: Location) -> str | None:
    """Why a checkpoint folder is incomplete, or None when every rank's files are there in full."""
    sizes = {entry.base_name: entry.size for entry in storage.list_folder(where)}
    try:
        world_size = json.loads(storage.read_text(where / _manifest_name(0)))["world_size"]
        for rank in range(world_size):
            for name, facts in json.loads(storage.read_text(where / _manifest_name(rank)))["files"].items():
                if sizes.get(name) != facts["bytes"]:
                    return f"{name} has {sizes.get(name, 'no')} bytes instead of {facts['bytes']}"
    except FileNotFoundError as error:
        return f"it was never finished ({Path(str(error)).name[:60]})"
    except (ValueError, KeyError, TypeError) as error:
        return f"a manifest is damaged ({error})"
    return None


def verify(where: Location) -> str | None:
    """Why a checkpoint must not be used, or None: every file has the sha256 its manifest records."""
    problem = missing(where)
    if problem:
        return problem
    files = _files(where)
    state = repr(sorted((entry.base_name, entry.size, entry.mtime_ns) for entry in storage.list_folder(where)))
    if _verified.get(where.uri) == state:
        return None  # by this process, and nothing was written since: a large one takes minutes to read
    for name, facts in files.items():
        if storage.sha256(where / name) != facts["sha256"]:
            return f"{name} is damaged (sha256 differs)"
    _verified[where.uri] = state
    return None


def newest_usable(run: Location) -> tuple[Location | None, list[str]]:
    """(newest checkpoint that verifies, one sentence for each newer one that was passed over)."""
    notes: list[str] = []
    root = run / FOLDER
    names = [entry.path.rstrip("/").rsplit("/", 1)[-1] for entry in storage.list_folder(root)]
    for name in sorted((name for name in names if _STEP.fullmatch(name)), reverse=True):
        problem = verify(root / name)
        if problem is None:
            return root / name, notes
        notes.append(f"checkpoint {name} is passed over: {problem}")
    return None, notes


def read_state(where: Location) -> RunState:
    return RunState.from_json(storage.read_text(where / "state.json"))


def open_tensors(where: Location) -> CheckpointTensors:
    """Weights and moments of a complete checkpoint, read piece by piece when they are asked for."""
    return CheckpointTensors(where, _files(where))


def size(where: Location) -> int:
    """Bytes of a complete checkpoint."""
    return sum(facts["bytes"] for facts in _files(where).values())


def _files(where: Location) -> dict[str, dict[str, Any]]:
    """Name -> bytes and sha256 of every rank's files, as the manifests have them."""
    first = json.loads(storage.read_text(where / _manifest_name(0)))
    found = dict(first["files"])
    for rank in range(1, first["world_size"]):
        found |= json.loads(storage.read_text(where / _manifest_name(rank)))["files"]
    return found


def read_rank(where: Location, rank: int) -> dict[str, Any] | None:
    """What one rank saved, None where the checkpoint was written by fewer ranks."""
    try:
        data = storage.read_bytes(where / _rank_name(rank))
    except FileNotFoundError:
        return None
    return torch.load(io.BytesIO(data), weights_only=True)


def write_part(where: Location, rank: int, world_size: int, files: dict[str, bytes | TensorStream]) -> None:
    """Write one rank's files into a checkpoint folder; its manifest goes last, so a kill leaves it incomplete.

    Tensors go to their file one after another, hashed on the way: nothing is held twice.
    """
    try:
        if storage.exists(where / _manifest_name(rank)):
            # a damaged checkpoint of the same step is being replaced: until the end it must not count
            storage.delete(where / _manifest_name(rank))
        facts = {}
        for name, content in files.items():
            with _replacing(where, name, rank) as file:
                if isinstance(content, bytes):
                    file.write(content)
                    facts[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                else:
                    written = write_tensors(file, content.specs, content.values(), content.metadata)
                    facts[name] = {"bytes": written.bytes, "sha256": written.sha256}
        manifest = json.dumps({"version": VERSION, "world_size": world_size, "files": facts}, indent=2) + "\n"
        with _replacing(where, _manifest_name(rank), rank) as file:
            file.write(manifest.encode())
    except OSError as error:
        raise storage.explain(error, where) from error


@contextmanager
def _replacing(where: Location, name: str, rank: int) -> Iterator[BinaryIO]:
    """A file to write that takes its name only when it is whole: by renaming here, by the end of the upload on S3."""
    if not where.is_local:
        with where.fs.open_output_stream((where / name).path) as stream:
            yield stream
        return
    folder = Path(where.path)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{name}.{rank}.{os.getpid()}"
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, folder / name)
    finally:
        aside.unlink(missing_ok=True)


def delete_old(run: Location, keep: int, best_step: int | None) -> list[str]:
    """Delete complete checkpoints but the newest `keep` and the best; names of those deleted. A manifest goes first."""
    deleted = []
    for where in complete_checkpoints(run)[keep:]:
        if step_of(where.name) != best_step:
            storage.delete(where / _manifest_name(0))  # from here on it is incomplete, never damaged
            storage.delete(where)
            deleted.append(where.name)
    return deleted


def delete_leftovers(run: Location) -> None:
    """Delete what killed writers left: hidden parts and folders that never became complete."""
    root = run / FOLDER
    for entry in storage.list_folder(root):
        name = entry.path.rstrip("/").rsplit("/", 1)[-1]
        if entry.type != pafs.FileType.Directory:
            continue
        unfinished = _STEP.fullmatch(name) and not storage.exists(root / name / _manifest_name(0))
        if name.startswith(".step_") or unfinished:
            storage.delete(root / name)


def rank_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def rank_file(rank: int) -> str:
    return _rank_name(rank)


def locate_checkpoint(uri: str) -> Location | None:
    """Checkpoint a URI means: a step folder itself, `…/checkpoints/best` for the one of the best evaluation, or the
    newest usable one of a run folder. None for neither."""
    where = storage.locate(uri)
    if where.name == BEST and where.parent.name == FOLDER:
        where = _best(where.parent.parent)
    if step_of(where.name) is not None and storage.exists(where / _manifest_name(0)):
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


def _rank_name(rank: int) -> str:
    return f"rank-{rank:05d}.pt"


def _manifest_name(rank: int) -> str:
    return f"manifest-{rank:05d}.json"
