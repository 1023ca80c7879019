"""The honest part of a sweep: the best configurations and the baseline over fresh seeds, then one look at validation.

The winner is chosen by its mean over seeds on the selection part of the training file. The validation split decides
nothing; of it only the winner's and the baseline's scores are ever computed, once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors.numpy import load

from raygpt import storage
from raygpt.classify.shared import STATE_TENSORS
from raygpt.classify.training import EncodedTask
from raygpt.evaluate.statistics import compare
from raygpt.storage import Location
from raygpt.tune.plan import SweepPlan
from raygpt.tune.results import TrialRecord, best_first
from raygpt.tune.space import encode_value
from raygpt.tune.trial import FINAL_KEYS

BASELINE = 0  # the configuration number of the one to beat; the best K are 1 to K
SEED_STEP = 1000  # seeds of the final runs are run.seed + 1000, + 1001, ...: none that the search has used


@dataclass(frozen=True)
class Candidate:
    """A configuration in the final runs: its scores on the selection part, one per seed that came through."""

    number: int
    params: dict[str, Any]
    search_score: float | None
    scores: list[float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores)) if self.scores else float("nan")

    @property
    def sd(self) -> float:
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else 0.0


@dataclass(frozen=True)
class Verdict:
    """What the final runs say. `validation` holds `statistics.compare`'s figures, empty without a validation file."""

    winner: Candidate
    baseline: Candidate
    candidates: list[Candidate]
    seeds: int
    validation: dict[str, Any] = field(default_factory=dict)
    examples: int = 0
    trials: list[TrialRecord] = field(default_factory=list)

    @property
    def beats_baseline(self) -> bool | None:
        """Whether the winner's accuracy gain over the baseline excludes 0; None without a validation file."""
        if not self.validation:
            return None
        return self.validation["accuracy"]["over_baseline"]["low"] > 0


def final_jobs(plan: SweepPlan, trials: list[TrialRecord]) -> list[dict[str, Any]]:
    """Parameters of all final runs: the baseline and the best K different configurations, each over the same seeds."""
    chosen: list[dict[str, Any]] = []
    for trial in best_first(trials, plan.mode):
        if trial.params not in chosen:
            chosen.append(trial.params)
        if len(chosen) == plan.config.tune.top:
            break
    baseline = {key: encode_value(value) for key, value in plan.config.tune.baseline.items()}
    first = plan.config.run.seed + SEED_STEP
    return [
        {"configuration": number, "seed": first + index, **params}
        for index in range(plan.config.tune.seeds)
        for number, params in enumerate([baseline, *chosen])
    ]


def judge(
    plan: SweepPlan, folder: Location, task: EncodedTask, jobs: list[dict[str, Any]], done: list[TrialRecord]
) -> Verdict | None:
    """Choose the winner on the selection part and score it and the baseline on the validation split.

    None where no candidate finished a single run.
    """
    candidates = []
    for number in sorted({job["configuration"] for job in jobs}):
        mine = [trial for trial in done if trial.params["configuration"] == number and trial.score is not None]
        params = next(job for job in jobs if job["configuration"] == number)
        candidates.append(
            Candidate(
                number,
                {key: value for key, value in params.items() if key not in FINAL_KEYS},
                None,
                [float(trial.score) for trial in mine if trial.score is not None],
            )
        )
    scored = [candidate for candidate in candidates if candidate.scores and candidate.number != BASELINE]
    baseline = candidates[0]
    if not scored or not baseline.scores:
        return None
    sign = 1 if plan.mode == "max" else -1
    winner = max(scored, key=lambda candidate: sign * candidate.mean)
    seeds = plan.config.tune.seeds
    if task.val is None:
        return Verdict(winner, baseline, candidates, seeds, trials=done)
    ours, theirs = (_guesses(folder, done, candidate.number) for candidate in (winner, baseline))
    validation = compare(
        task.val.labels,
        len(task.labels),
        task.train.labels,
        ours,
        theirs,
        resamples=plan.config.tune.resamples,
    )
    return Verdict(winner, baseline, candidates, seeds, validation, len(task.val), done)


def _guesses(folder: Location, done: list[TrialRecord], number: int) -> dict[int, np.ndarray]:
    """{seed: (N,) classes a configuration gave the validation split, at the epoch best on the selection part}; a seed
    that failed is absent."""
    rows = {}
    for trial in sorted(done, key=lambda trial: trial.params["seed"]):
        if trial.params["configuration"] == number and trial.checkpoint is not None:
            state = Location(folder.fs, trial.checkpoint, trial.checkpoint) / STATE_TENSORS
            rows[int(trial.params["seed"])] = load(storage.read_bytes(state))["best_val_logits"].argmax(1)
    return rows
