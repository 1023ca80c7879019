"""The training loop's surroundings under Ray Train: records to the trackers, snapshots to storage, the wish to stop."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

import ray.train

from raygpt.config import Config
from raygpt.config.settings import dump
from raygpt.parallel import checkpoint
from raygpt.parallel.checkpoint import RunState, TensorStream
from raygpt.parallel.distributed import World
from raygpt.run.control import ControlLink
from raygpt.storage import Location
from raygpt.track.record import Record
from raygpt.track.trackers import Trackers
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
    ) -> None:
        self.tokenizer_json, self.config, self.run, self.world = tokenizer_json, config, run, world
        self.strategy, self.link = strategy, link
        self.stored = threading.Event()
        self.stored.set()
        self.best_step = state.best_step
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
            self._pass_on_notes()

    def log(self, record: Record) -> None:
        assert self.trackers is not None and self.link is not None
        self.trackers.log(record)
        self.link.send("record", record)
        self._pass_on_notes()

    def stop_requested(self) -> bool:
        return self.link is not None and self.link.stop_requested()

    def save(self, state: RunState, rank_state: dict) -> None:
        self.stored.wait()  # the buffers still belong to the checkpoint before
        self.best_step = state.best_step
        files: dict[str, bytes | TensorStream] = {**self.strategy.tensor_files()}
        if self.world.rank == 0:
            files["state.json"] = state.to_json().encode()
            files["config.yaml"] = dump(self.config).encode()
            files["tokenizer.json"] = self.tokenizer_json
        rng = checkpoint.rng_state(self.world.device)
        files[checkpoint.rank_file(self.world.rank)] = checkpoint.rank_bytes({"rng": rng, "loss": rank_state})
        name = checkpoint.folder_name(state.step)
        target = self.run / checkpoint.FOLDER / name

        if not self.strategy.background:
            checkpoint.write_part(target, self.world.rank, self.world.size, files)

        def store(_: ray.train.Checkpoint, __: str) -> ray.train.Checkpoint:
            try:
                if self.strategy.background:
                    checkpoint.write_part(target, self.world.rank, self.world.size, files)
                if self.world.rank == 0:
                    checkpoint.delete_old(self.run, self.config.train.keep_checkpoints, self.best_step)
                    if self.trackers is not None:
                        self.trackers.flush()
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

    def finish(self) -> None:
        """Wait for the checkpoint in flight and close the trackers."""
        self.stored.wait()
        if self.world.rank == 0:
            checkpoint.delete_old(self.run, self.config.train.keep_checkpoints, self.best_step)
        if self.trackers is not None:
            self.trackers.close({})
            self._pass_on_notes()

    def _pass_on_notes(self) -> None:
        assert self.trackers is not None and self.link is not None
        for note in self.trackers.notes:
            self.link.send("note", note)
        self.trackers.notes.clear()
