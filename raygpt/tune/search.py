"""Where trials come from: a list made beforehand (grid, random, final runs) or Optuna; and Optuna's own storage.

Every sweep leaves a study in optuna.db, whoever proposed its trials, so `optuna-dashboard sqlite:///…/optuna.db` opens
it and parameter importance is Optuna's. While the search runs, the study is part of Tune's snapshots and nothing else:
a database beside them would know of trials that a killed driver's last snapshot has never heard of.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.search import Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator

from raygpt import storage
from raygpt.config import Config
from raygpt.storage import Location
from raygpt.tune.space import Dimension, Space, Value

if TYPE_CHECKING:
    import optuna

DATABASE = "optuna.db"


class ListSearch(Searcher):
    """Proposes given parameters one after the other."""

    def __init__(self, trials: Sequence[dict[str, Value]], metric: str, mode: str) -> None:
        super().__init__(metric=metric, mode=mode)
        self.trials = list(trials)
        self.next = 0

    def suggest(self, trial_id: str) -> dict[str, Value] | str:  # type: ignore[override]
        if self.next >= len(self.trials):
            return Searcher.FINISHED
        self.next += 1
        return dict(self.trials[self.next - 1])

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text(json.dumps({"trials": self.trials, "next": self.next}))

    def restore(self, checkpoint_path: str) -> None:
        state = json.loads(Path(checkpoint_path).read_text())
        self.trials, self.next = state["trials"], state["next"]


def planned(config: Config, space: Space) -> list[dict[str, Value]]:
    """Parameters of a grid or random sweep, the same for the same seed."""
    if config.tune.search == "grid":
        return [params for _ in range(config.tune.trials) for params in space.grid()]
    random = np.random.default_rng(config.run.seed)
    return [space.sample(random) for _ in range(config.tune.trials)]


def make_search(config: Config, space: Space, metric: str, mode: str) -> tuple[Any, int]:
    """(searcher, number of trials) of a new sweep."""
    if config.tune.scheduler in ("pbt", "pb2"):
        # Tune gives these schedulers no searcher: the population is drawn from the parameter space itself
        return BasicVariantGenerator(random_state=config.run.seed % 2**32), config.tune.trials
    if config.tune.search != "optuna":
        trials = planned(config, space)
        return ListSearch(trials, metric, mode), len(trials)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Optuna's 10 random trials before TPE begins are most of a small sweep
    startup = max(4, min(10, config.tune.trials // 3))
    sampler = optuna.samplers.TPESampler(multivariate=True, seed=config.run.seed % 2**32, n_startup_trials=startup)
    search = OptunaSearch(
        distributions(space),
        metric=metric,
        mode=mode,
        sampler=sampler,
    )
    return search, config.tune.trials


def distributions(space: Space) -> dict[str, Any]:
    """Optuna's distribution of every dimension."""
    return {key: _distribution(item) for key, item in space.dimensions.items()}


def record_study(folder: Location, space: Space, mode: str, trials: Sequence[Any]) -> optuna.Study:
    """Write `folder`/optuna.db, a study named after the sweep with every trial in it, and return the study.

    `trials` are TrialRecords. A trial that reported nothing is a failed one.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = optuna.study.StudyDirection.MAXIMIZE if mode == "max" else optuna.study.StudyDirection.MINIMIZE
    study = optuna.create_study(study_name=folder.name, direction=direction)
    study.add_trials([_frozen(trial, space) for trial in trials])
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / DATABASE
        database = optuna.storages.RDBStorage(f"sqlite:///{file}")
        optuna.create_study(study_name=folder.name, storage=database, direction=direction).add_trials(study.trials)
        database.engine.dispose()
        storage.write_bytes(folder / DATABASE, file.read_bytes())
    return study


def _frozen(trial: Any, space: Space) -> optuna.trial.FrozenTrial:
    import optuna

    state = optuna.trial.TrialState.COMPLETE if trial.score is not None else optuna.trial.TrialState.FAIL
    return optuna.trial.create_trial(
        state=state,
        value=trial.score,
        params=trial.params,
        distributions=distributions(space),
        user_attrs={"trial_id": trial.id, "status": trial.status},
        intermediate_values={int(row["epoch"]): row[trial.metric] for row in trial.history if trial.metric in row},
    )


def importance(study: optuna.Study) -> dict[str, float]:
    """Share of the score's variance that each parameter explains (fANOVA); empty with fewer than four scores."""
    import optuna

    done = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if len(done) < 4 or len({trial.value for trial in done}) < 2:
        return {}
    try:
        found = optuna.importance.get_param_importances(study)
    except (RuntimeError, ValueError, ImportError):
        return {}
    return {key: float(value) for key, value in found.items()}


def _distribution(item: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if item.kind == "randint":
        return IntDistribution(int(item.low), int(item.high))
    if item.is_numeric:
        return FloatDistribution(item.low, item.high, log=item.kind == "loguniform")
    return CategoricalDistribution(item.options)
