"""One call that logs a record everywhere: metrics.jsonl, Weights & Biases, TensorBoard.

metrics.jsonl is the run's own record and must succeed; the other two are services to the user, and
trouble with them is told once and never stops training.
"""

from __future__ import annotations

import netrc
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raygpt.errors import UserError, one_line
from raygpt.storage import Location, upload_folder
from raygpt.track.jsonl import MetricsLog
from raygpt.track.record import Record

# Seconds to wait for W&B's server: at the start before going offline, at the end before giving up.
WANDB_INIT_SECONDS = 30.0
WANDB_FINISH_SECONDS = 60.0

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
        self._wandb_run: Any = None
        self._board: Any = None
        if tensorboard:
            self._start_tensorboard()
            for record in self.metrics.restored:
                self._log_tensorboard(record)
        if wandb != "off":
            mode = self._start_wandb(wandb, wandb_project, run_name, public_config(config))
            # the server joins the parts of an online run; offline parts replace each other when they are sent
            for record in self.metrics.restored if mode == "offline" else []:
                self._log_wandb(record)
        self.metrics.restored = []

    def log(self, record: Record) -> None:
        """Log one record. Raises UserError only when metrics.jsonl cannot be written."""
        self.metrics.append(record)
        self._log_tensorboard(record)
        self._log_wandb(record)

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
        run, self._wandb_run = self._wandb_run, None
        if board is not None:
            try:
                board.close()
            except Exception as error:
                self._give_up("TensorBoard", error)
        if run is not None:
            try:
                run.summary.update(dict(summary or {}))
                run.finish(exit_code=exit_code)
                _wait_for_wandb()
            except Exception as error:
                self._give_up("W&B", error)
        if not self._run_location.is_local:
            copied = [self._copy(name) for name, used in (("tensorboard", board), ("wandb", run)) if used is not None]
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

    def _log_wandb(self, record: Record) -> None:
        if self._wandb_run is None:
            return
        try:
            # `step` is a metric like others (see define_metric): W&B's own step refuses to go back on a resume
            self._wandb_run.log(_numbers(record))
        except Exception as error:
            self._wandb_run = None
            self._give_up("W&B", error)

    def _start_tensorboard(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step=0 hides what earlier attempts logged
            self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=0)
        except Exception as error:
            self._give_up("TensorBoard", error)

    def _start_wandb(self, setting: str, project: str, name: str, config: dict[str, Any]) -> str:
        """Start the run; returns its mode, `disabled` where there is none."""
        try:
            mode, note = choose_wandb_mode(setting)
        except UserError as error:
            mode, note = "offline", f"{error} Logging offline"
        if mode == "disabled":
            self.notes.append(note)
            return mode
        try:
            self._wandb_run = self._init_wandb(mode, project, name, config)
        except Exception as error:
            if mode == "offline":
                self._give_up("W&B", error)
                return "disabled"
            mode, note = "offline", f"W&B: the server did not answer ({one_line(error)}), logging offline"
            try:
                self._wandb_run = self._init_wandb(mode, project, name, config)
            except Exception as again:
                self._give_up("W&B", again)
                return "disabled"
        self.wandb_id = self._wandb_run.id
        if mode == "offline":
            kept = self._run_location / f"wandb/{Path(self._wandb_run.dir).parent.name}"
            fetch = "" if self._run_location.is_local else " after copying it here"
            self.notes.append(f"{note}; send it later{fetch} with: wandb sync {kept.uri}")
        else:
            self.notes.append(f"{note}: {self._wandb_run.url}")
        return mode

    def _init_wandb(self, mode: str, project: str, name: str, config: dict[str, Any]) -> Any:
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            init_timeout=WANDB_INIT_SECONDS,
            finish_timeout=WANDB_FINISH_SECONDS,
            console="off",  # a Ray worker's output is Ray's
            silent=True,  # what matters of W&B's own messages is in `notes`
            save_code=False,
        )
        run = wandb.init(
            project=project,
            name=name,
            id=self.wandb_id,
            # offline there is no server to ask: parts with one id are joined by `wandb sync`
            resume="allow" if mode == "online" else None,
            config=config,
            dir=str(self._folder),
            mode=mode,  # type: ignore[arg-type]
            settings=settings,
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run

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


def _wait_for_wandb() -> None:
    """Wait until W&B's own process has written everything: an offline `finish` returns before that, and a Ray
    worker may be ended without W&B's exit hook."""
    import wandb

    wandb.teardown()


def choose_wandb_mode(setting: str, environ: Mapping[str, str] | None = None) -> tuple[str, str]:
    """W&B's mode (online, offline or disabled) for `track.wandb`, and a note saying why.

    WANDB_MODE decides for `auto`. Raises UserError for `online` without a key.
    """
    environ = os.environ if environ is None else environ
    has_key = _has_wandb_key(environ)
    if setting == "off":
        return "disabled", "W&B: off (track.wandb=off)"
    if setting == "offline":
        return "offline", "W&B: logging offline (track.wandb=offline)"
    if setting == "auto":
        wished = environ.get("WANDB_MODE", "")
        if wished in ("disabled", "offline"):
            return wished, f"W&B: {'off' if wished == 'disabled' else 'logging offline'} (WANDB_MODE={wished})"
        return ("online", "W&B") if has_key else ("offline", "W&B: no key found, logging offline")
    if not has_key:
        raise UserError(
            "track.wandb=online needs a W&B key on the machine of rank 0: set WANDB_API_KEY or run `wandb login`, or "
            "use track.wandb=offline."
        )
    return "online", "W&B"


def _has_wandb_key(environ: Mapping[str, str]) -> bool:
    """Whether W&B would find a key without asking: in the environment or in the netrc file."""
    if environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    home = Path(environ.get("HOME") or Path.home())
    for path in [Path(environ["NETRC"])] if environ.get("NETRC") else [home / ".netrc", home / "_netrc"]:
        try:
            found = netrc.netrc(str(path)).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if found and found[2]:
            return True
    return False


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
