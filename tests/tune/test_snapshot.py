"""Snapshots that a kill cut off: the newest whole one is gone on from, or a sentence says there is none."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from raygpt.errors import UserError
from raygpt.storage import locate
from raygpt.tune.search import ListSearch
from raygpt.tune.snapshot import mend_snapshots

OLD, NEW = "2026-01-01_10-00-00", "2026-01-01_11-00-00"


def write_session(home: Path, session: str) -> None:
    home.mkdir(exist_ok=True)
    (home / "tuner.pkl").write_bytes(pickle.dumps({"name": "x"}))
    (home / f"experiment_state-{session}.json").write_text(json.dumps({"trial_data": [], "runner_data": {}}))
    (home / f"search_gen_state-{session}.json").write_bytes(pickle.dumps({"counter": 4}))  # as Tune does
    (home / f"searcher-state-{session}.pkl").write_bytes(pickle.dumps({"study": [1, 2, 3]}))
    (home / f"callback-states-{session}.pkl").write_bytes(pickle.dumps({}))


@pytest.mark.parametrize("kind", ["experiment_state-{}.json", "searcher-state-{}.pkl", "search_gen_state-{}.json"])
@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_cut_snapshot_is_set_aside_with_all_files_of_its_session(tmp_path: Path, kind: str, keep: float) -> None:
    home = tmp_path / "search"
    write_session(home, OLD)
    before = {path.name for path in home.iterdir()}
    write_session(home, NEW)
    cut = home / kind.format(NEW)
    cut.write_bytes(cut.read_bytes()[: int(keep * cut.stat().st_size)])
    note = mend_snapshots(locate(str(home)))
    assert note is not None and cut.name in note
    # what Tune looks for by name, the newest first, is the old session's alone
    assert {path.name for path in home.iterdir() if not path.name.endswith(".broken")} == before
    assert max(home.glob("experiment_state-*.json")).name == f"experiment_state-{OLD}.json"
    assert mend_snapshots(locate(str(home))) is None


def test_whole_snapshots_and_no_snapshots_are_left_alone(tmp_path: Path) -> None:
    home = tmp_path / "search"
    assert mend_snapshots(locate(str(home))) is None
    write_session(home, OLD)
    (home / f".1-tmp-searcher-state-{OLD}.pkl").write_bytes(b"")  # Tune's own scratch
    names = sorted(path.name for path in home.iterdir())
    assert mend_snapshots(locate(str(home))) is None
    assert sorted(path.name for path in home.iterdir()) == names


def test_without_a_whole_snapshot_the_way_out_is_named(tmp_path: Path) -> None:
    home = tmp_path / "search"
    write_session(home, OLD)
    (home / f"experiment_state-{OLD}.json").write_bytes(b"")
    with pytest.raises(UserError, match=r"is cut off.*delete .*/search to begin it anew, or give it another run.name"):
        mend_snapshots(locate(str(home)))


def test_the_list_of_a_search_is_kept_as_data(tmp_path: Path) -> None:
    trials = [{"optim.lr": 1e-5, "optim.betas": "[0.9, 0.95]", "task.swap_train": True}, {"optim.lr": 3}]
    search = ListSearch(trials, "best_accuracy", "max")
    assert search.suggest("a") == trials[0]
    search.save(str(tmp_path / "state"))
    assert json.loads((tmp_path / "state").read_text())["trials"] == trials
    other = ListSearch([], "best_accuracy", "max")
    other.restore(str(tmp_path / "state"))
    assert other.suggest("b") == trials[1] and other.suggest("c") == "FINISHED"
