"""A run on Weights & Biases, and whether there is one: of a training, or one of many in the driver of a sweep."""

from __future__ import annotations

import netrc
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raygpt.errors import UserError, one_line
from raygpt.storage import Location

# Seconds to wait for W&B's server: at the start before going offline, at the end before giving up.
INIT_SECONDS = 30.0
FINISH_SECONDS = 60.0
OFFLINE_INIT_SECONDS = 120.0  # no server to wait for, only a share of a busy machine


class WandbRun:
    """One W&B run. Trouble with it is told once, to `give_up`, and stops nothing: it takes no more figures then.

    `mode` is online, offline or disabled, `note` a sentence on that, empty after trouble, `id` the run's. Its files are
    in `folder`/wandb, which ends up in `kept`/wandb. Several may be open in one process.
    """

    def __init__(
        self,
        setting: str,
        folder: Path,
        kept: Location,
        give_up: Callable[[BaseException], None],
        *,
        step: str,
        **about: Any,
    ) -> None:
        """`setting` is track.wandb's; `step` names the figure that curves are drawn over; `about` is what `wandb.init`
        is told of the run: project, name, id, group, job_type, config without secrets."""
        self._folder, self._give_up, self._step, self._about = folder, give_up, step, about
        self._run: Any = None
        self.id: str | None = about.get("id")
        try:
            self.mode, self.note = choose_wandb_mode(setting)
        except UserError as error:
            self.mode, self.note = "offline", f"{error} Logging offline"
        if self.mode == "online":
            try:
                self._run = self._init()
            except Exception as error:
                self.mode = "offline"
                self.note = f"W&B: the server did not answer ({one_line(error)}), logging offline"
        if self.mode == "offline":
            try:
                self._run = self._init()
            except Exception as error:
                self.mode, self.note = "disabled", ""
                give_up(error)
        if self._run is None:
            return
        self.id = self._run.id
        if self.mode == "offline":
            where = kept / f"wandb/{Path(self._run.dir).parent.name}"
            fetch = "" if kept.is_local else " after copying it here"
            self.note += f"; send it later{fetch} with: wandb sync {shlex.quote(where.uri)}"
        else:
            self.note += f": {self._run.url}"

    @property
    def is_open(self) -> bool:
        return self._run is not None

    def log(self, figures: Mapping[str, Any]) -> None:
        """Log figures, the step among them."""
        if self._run is None:
            return
        try:
            # the step is a metric like others (see define_metric): W&B's own refuses to go back on a resume
            self._run.log(dict(figures))
        except Exception as error:
            self._run = None
            self._give_up(error)

    def finish(self, summary: Mapping[str, Any] | None = None, exit_code: int = 0, wait: bool = False) -> None:
        """Close the run with its summary; with `wait`, its files are whole on return. May be called twice."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.summary.update(dict(summary or {}))
            run.finish(exit_code=exit_code)
            if wait:
                wait_for_wandb()
        except Exception as error:
            self._give_up(error)

    def _init(self) -> Any:
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            **self._about,
            # offline there is no server to ask: parts with one id are joined by `wandb sync`
            resume="allow" if self.mode == "online" else None,
            dir=str(self._folder),
            mode=self.mode,  # type: ignore[arg-type]
            reinit="create_new",
            settings=wandb.Settings(
                init_timeout=INIT_SECONDS if self.mode == "online" else OFFLINE_INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                console="off",  # a Ray worker's output is Ray's
                silent=True,  # what matters of W&B's own messages is in `note`
                save_code=False,
            ),
        )
        run.define_metric(self._step)
        run.define_metric("*", step_metric=self._step)
        return run


def wait_for_wandb() -> None:
    """Wait until W&B's own process has written everything, of all runs: an offline `finish` returns before that, and a
    Ray worker may be ended without W&B's exit hook."""
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
