"""Tune's snapshots of an experiment, checked before a resume.

Tune keeps one snapshot per session (start of the driver): `experiment_state-<session>.json` and beside it the files of
searcher and callbacks. It copies them over the old ones in storage, which is not atomic, so a kill may leave an empty
or cut file.

What Tune unpickles on a resume, and cannot be kept from: `tuner.pkl` and the trials' fields inside
`experiment_state-*.json` (ray/tune/impl/tuner_internal.py, experiment/trial.py), `callback-states-*.pkl`, and Optuna's
`searcher-state-*.pkl`. Whoever can write to a sweep's folder can therefore run code where the sweep is resumed; weights
and trials' checkpoints are safetensors and JSON. The list of a grid, a random search and the final runs is JSON.
"""

from __future__ import annotations

import json
import re

from raygpt import storage
from raygpt.errors import UserError
from raygpt.storage import Location

STATE = re.compile(r"experiment_state-(.+)\.json")
ASIDE = ".broken"
PICKLED = b"\x80"  # a pickle's first byte: Tune's search_gen_state-*.json is one under JSON's name


def mend_snapshots(home: Location) -> str | None:
    """Set incomplete snapshots of the experiment in `home` aside, so that Tune goes on from the newest whole one.

    Returns a sentence about what was set aside, None where nothing was. Raises UserError where no whole one is left.
    """
    names = [entry.base_name for entry in storage.list_folder(home) if not entry.base_name.startswith((".", "tmp-"))]
    sessions = sorted((found[1] for name in names if (found := STATE.fullmatch(name))), reverse=True)
    broken: list[str] = []
    for session in sessions:
        cut = next((name for name in names if session in name and not _is_whole(home / name)), None)
        if cut is None:
            break
        broken.append(cut)
    else:
        if broken:
            raise UserError(
                f"{(home / broken[0]).uri} is cut off, as a kill leaves it, and there is no earlier snapshot of this "
                f"sweep: delete {home.uri} to begin it anew, or give it another run.name."
            )
    for session in sessions[: len(broken)]:
        for name in names:
            if session in name and not name.endswith(ASIDE):
                home.fs.move((home / name).path, (home / f"{name}{ASIDE}").path)
    if not broken:
        return None
    return (
        f"The newest snapshot of the sweep was cut off by a kill ({', '.join(broken)}): going on from the one before, "
        "so trials begun since then run again."
    )


def _is_whole(where: Location) -> bool:
    """Whether a file of a snapshot was written to its end, told without unpickling anything."""
    data = storage.read_bytes(where)
    if data.startswith(b"{") or (where.name.endswith(".json") and not data.startswith(PICKLED)):
        try:
            json.loads(data)
        except ValueError:
            return False
    elif where.name.endswith((".pkl", ".json")):
        return data.endswith(b".")  # a pickle's STOP opcode
    return True
