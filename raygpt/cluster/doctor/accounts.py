"""Keys that a run will want: whether they are there, never what they are."""

from __future__ import annotations

from raygpt.cluster.doctor.finding import Finding, fail, ok, warn
from raygpt.errors import UserError
from raygpt.track.wandb_run import choose_wandb_mode


def wandb_key(setting: str) -> Finding:
    """Whether track.wandb can be done here, where rank 0 may run."""
    try:
        mode, note = choose_wandb_mode(setting)
    except UserError as error:
        return fail("wandb", "track.wandb=online but there is no key", str(error).partition(": ")[2])
    note = note.removeprefix("W&B: ")
    if mode == "offline" and setting == "auto" and "no key" in note:
        return warn("wandb", note, "set WANDB_API_KEY or run `wandb login`, or be content with track.wandb=offline")
    return ok("wandb", "a key is there" if mode == "online" else note)
