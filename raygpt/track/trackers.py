"""One call that logs a record everywhere: metrics.jsonl, Weights & Biases, TensorBoard.

metrics.jsonl is the run's own record and must succeed; the other two are services to the user, and
trouble with them is told once and never stops training.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from raygpt.errors import UserError, one_line
from raygpt.storage import Location, upload_folder
from raygpt.track.jsonl import MetricsLog
from raygpt.track.record import Record
from raygpt.track.wandb_run import WandbRun

SECRET_NAME = re.compile(r"(^|_)(api_?key|secret|secret_key|access_key|password|passwd|credentials?|auth|token)$", re.I)


class Trackers:
    """Logs every record of one run; lives in rank 0.

    `wandb` is auto (online with a key, else offline), online, offline or off. `wandb_id` is the id of the
    run being resumed, so that its curve continues; None starts a new one, to be read from `wandb_id` and
    kept in checkpoints. Records after `resume_step` are dropped from metrics.jsonl; what is left is written
    again to TensorBoard and to an offline W&B run, so that the newest file of each holds the whole run even
    where a killed attempt's files were lost. Where `run_location` is not local, files are kept in
    `local_dir` and copied at `close`. `notes` holds sentences for the user; new ones may come at any call.
    """

    def __init__(
        self,
        run_location: Location,
        run_name: str,
        config: Mapping[str, Any],
        *,
        wandb: str = "auto",
        wandb_project: str = "raygpt",
        wandb_id: str | None = None,
        tensorboard: bool = True,
        resume_step: int = 0,
        local_dir: Path,
    ) -> None:
        self.notes: list[str] = []
        self.wandb_id = wandb_id
        self.metrics = MetricsLog(run_location / "metrics.jsonl", resume_step)
        self._run_location = run_location
        self._folder = Path(run_location.path)
        if not run_location.is_local:
            # of this attempt alone: what lies in local_dir may be of a run with the same name elsewhere
            local_dir.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(dir=local_dir))
        self._wandb: WandbRun | None = None
        self._board: Any = None
        if tensorboard:
            self._start_tensorboard()
            for record in self.metrics.restored:
                self._log_tensorboard(record)
        if wandb != "off":
            self._wandb = WandbRun(
                wandb,
                self._folder,
                run_location,
                partial(self._give_up, "W&B"),
                step="step",
                project=wandb_project,
                name=run_name,
                id=wandb_id,
                config=public_config(config),
            )
            self.wandb_id = self._wandb.id
            if self._wandb.note:
                self.notes.append(self._wandb.note)
            # the server joins the parts of an online run; offline parts replace each other when they are sent
            for record in self.metrics.restored if self._wandb.mode == "offline" else []:
                self._wandb.log(_numbers(record))
        self.metrics.restored = []

    def log(self, record: Record) -> None:
        """Log one record. Raises UserError only when metrics.jsonl cannot be written."""
        self.metrics.append(record)
        self._log_tensorboard(record)
        if self._wandb is not None:
            self._wandb.log(_numbers(record))

    def flush(self, wait: bool = False) -> None:
        """Bring everything logged so far to where it is kept, without holding training up; with `wait`, the records
        are there on return. Raises UserError when they could not be written."""
        self.metrics.flush(wait)
        if wait and self.metrics.problem is not None:
            raise self.metrics.problem
        if self._board is not None:
            try:
                self._board.flush()
            except Exception as error:
                self._board = None
                self._give_up("TensorBoard", error)

    def close(self, summary: Mapping[str, Any] | None = None, exit_code: int = 0) -> None:
        """Finish all trackers; `summary` becomes W&B's run summary. Raises UserError when metrics.jsonl was not
        written. May be called twice."""
        board, self._board = self._board, None
        run, self._wandb = self._wandb, None
        used = run is not None and run.is_open
        if board is not None:
            try:
                board.close()
            except Exception as error:
                self._give_up("TensorBoard", error)
        if run is not None and used:
            run.finish(summary, exit_code, wait=True)
        if not self._run_location.is_local:
            copied = [self._copy(name) for name, kept in (("tensorboard", board), ("wandb", used)) if kept]
            if all(copied):
                shutil.rmtree(self._folder, ignore_errors=True)
        self.metrics.close()

    def _log_tensorboard(self, record: Record) -> None:
        if self._board is None:
            return
        try:
            for name, value in _numbers(record).items():
                self._board.add_scalar(name, value, record["step"], walltime=record.get("time"))
        except Exception as error:
            self._board = None
            self._give_up("TensorBoard", error)

    def _start_tensorboard(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step=0 hides what earlier attempts logged
            self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=0)
        except Exception as error:
            self._give_up("TensorBoard", error)

    def _copy(self, name: str) -> bool:
        """Copy the files of one tracker from the local folder to the run's; whether that succeeded."""
        folder = self._folder / name
        try:
            upload_folder(folder, self._run_location / name)
        except (UserError, OSError) as error:
            self.notes.append(f"{folder} was not copied to {self._run_location.uri}: {one_line(error)}.")
            return False
        return True

    def _give_up(self, tracker: str, error: BaseException) -> None:
        self.notes.append(f"{tracker}: {one_line(error)}; training goes on without it, metrics.jsonl has every record.")


def public_config(config: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The config with secrets struck out: keys named like one, values of the environment's secret variables
    wherever they occur, user and password in URIs."""
    environ = os.environ if environ is None else environ
    secrets = [value for name, value in environ.items() if SECRET_NAME.search(name) and len(value) >= 8]
    return {
        str(key): "***" if value and SECRET_NAME.search(str(key)) else _public(value, secrets)
        for key, value in config.items()
    }


def _public(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): "***" if part and SECRET_NAME.search(str(key)) else _public(part, secrets)
            for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [_public(part, secrets) for part in value]
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "***")
        return re.sub(r"://[^/@\s]+@", "://***@", value)
    return value


def _numbers(record: Record) -> dict[str, float]:
    return {name: value for name, value in record.items() if isinstance(value, int | float) and name != "time"}
