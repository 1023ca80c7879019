"""The training loop's surroundings under Ray Train: records to the trackers, snapshots to storage, the wish to stop."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray.train

from raygpt.config import Config
from raygpt.config.settings import dump
from raygpt.errors import UserError
from raygpt.model.tensorfile import TensorStream
from raygpt.parallel import checkpoint, saving
from raygpt.parallel.checkpoint import RunState
from raygpt.parallel.distributed import World
from raygpt.parallel.rng import rng_state
from raygpt.run.control import ControlLink
from raygpt.storage import Location
from raygpt.track.record import Record
from raygpt.track.samples import SampleLog
from raygpt.track.trackers import Trackers
from raygpt.train.leaving import node_is_leaving
from raygpt.train.strategy import Strategy


class RunHooks:
    """Records go to the trackers and the driver, snapshots to storage through `ray.train.report`."""

    def __init__(
        self,
        tokenizer_json: bytes,
        config: Config,
        run: Location,
        world: World,
        strategy: Strategy,
        state: RunState,
        link: ControlLink | None,
        attempt: str,
    ) -> None:
        """`attempt` is the id of this start of the group of workers, the same on every rank."""
        self.tokenizer_json, self.config, self.run, self.world = tokenizer_json, config, run, world
        self.strategy, self.link = strategy, link
        self.stored = threading.Event()
        self.stored.set()
        self.recorded = threading.Event()  # what belongs to the checkpoint's step has been logged
        self.abandoned = threading.Event()  # training failed: no part of another rank is waited for
        self.attempt = attempt
        self.best_step = state.best_step
        self._began, self._steps = time.monotonic(), 0  # for the table of the launch
        self.trackers: Trackers | None = None
        if link is not None:
            self.trackers = Trackers(
                run,
                config.run.name,
                config.to_dict(),
                wandb=config.track.wandb,
                wandb_project=config.track.wandb_project,
                wandb_id=state.wandb_id,
                tensorboard=config.track.tensorboard,
                resume_step=state.step,
                local_dir=Path(tempfile.gettempdir()) / "raygpt" / config.run.name,
            )
            state.wandb_id = self.trackers.wandb_id
            self.samples = SampleLog(run, state.step)
            self._pass_on_notes()

    def log(self, record: Record) -> None:
        assert self.trackers is not None and self.link is not None
        self.trackers.log(record)
        self.recorded.set()
        self.link.send("record", record)
        self._pass_on_notes()

    def keep_samples(self, step: int, texts: list[str]) -> None:
        """Storage that would not take them is no reason to stop: the next ones come with them."""
        if self.link is None:
            return
        try:
            self.samples.append(step, texts)
        except UserError as error:
            self.link.send("note", f"samples were not kept: {error}")

    def stop_requested(self) -> bool:
        self.recorded.set()  # asked in the next step: the one before had no record, or it was logged
        if self.link is not None:
            self._steps += 1
            if self._steps == 2:
                self.link.send("first_step", time.monotonic() - self._began)
        return node_is_leaving() or (self.link is not None and self.link.stop_requested())

    def save(self, state: RunState, rank_state: dict) -> None:
        self.recorded.set()
        self.stored.wait()  # the buffers still belong to the checkpoint before
        self.recorded.clear()
        self.best_step = state.best_step
        files: dict[str, bytes | TensorStream] = {**self.strategy.tensor_files()}
        if self.world.rank == 0:
            files["state.json"] = state.to_json().encode()
            files["config.yaml"] = dump(self.config).encode()
            files["tokenizer.json"] = self.tokenizer_json
        rng = rng_state(self.world.device)
        files[checkpoint.rank_file(self.world.rank)] = checkpoint.rank_bytes({"rng": rng, "loss": rank_state})
        step = state.step  # `state` goes on
        name = checkpoint.folder_name(step)
        target = self.run / checkpoint.FOLDER / name

        def write() -> None:
            saving.write_part(target, self.world.rank, self.world.size, files, attempt=self.attempt)

        if not self.strategy.background:
            write()

        def store(_: ray.train.Checkpoint, __: str) -> ray.train.Checkpoint:
            try:
                if self.strategy.background:
                    write()
                if self.world.rank == 0:
                    self._commit(target, step)
            finally:
                self.stored.set()
            return ray.train.Checkpoint(target.path, target.fs)

        metrics: dict[str, float] = {"step": state.step, "tokens": state.tokens}
        if state.val_loss is not None:
            metrics["val_loss"] = state.val_loss
        self.stored.clear()
        try:
            self._report(metrics, name, store)
        except BaseException:
            self.stored.set()
            raise

    def _report(self, metrics: dict[str, Any], name: str, store: Any) -> None:
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint(tempfile.gettempdir()),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=False,
            checkpoint_upload_fn=store,
        )

    def _commit(self, target: Location, step: int) -> None:
        """Make the checkpoint count, after every record that it counts has been kept; then delete what it replaces."""
        self.recorded.wait()
        if self.trackers is not None:
            self.trackers.flush(wait=True)
        saving.commit(target, self.world.size, self.attempt, self.abandoned.is_set)
        try:
            _, notes = checkpoint.delete_old(self.run, self.config.train.keep_checkpoints, self.best_step, step)
        except (UserError, OSError) as error:
            notes = [f"old checkpoints were not deleted: {error}"]
        if self.link is not None:
            for note in notes:
                self.link.send("note", note)

    def finish(self, failed: bool = False) -> None:
        """Wait for the checkpoint in flight and close the trackers. After a failure nothing that goes wrong here is
        raised: it would hide the reason."""
        self.recorded.set()
        if failed:
            self.abandoned.set()
        try:
            self.stored.wait()
            if self.trackers is not None:
                self.trackers.close({})
                self._pass_on_notes()
        except Exception as error:
            if not failed:
                raise
            if self.link is not None:
                self.link.send("note", f"the run's records were not closed: {error}")

    def _pass_on_notes(self) -> None:
        assert self.trackers is not None and self.link is not None
        for note in self.trackers.notes:
            self.link.send("note", note)
        self.trackers.notes.clear()
