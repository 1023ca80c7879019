"""Tune's schedulers with a sweep's settings: who is stopped early, who is replaced."""

from __future__ import annotations

from typing import Any

from ray import tune
from ray.tune import schedulers

from raygpt.config import Tune
from raygpt.tune.space import Space

TIME = "training_iteration"  # epochs of a classification trial, evaluations of a nested one


def make_scheduler(settings: Tune, space: Space, longest: int, seed: int) -> Any:
    """The scheduler of `tune.scheduler`; `longest` is the most epochs a trial may have."""
    import random

    import numpy as np

    random.seed(seed)  # PBT draws from the global generators
    np.random.seed(seed)
    name = settings.scheduler
    if name == "asha":
        return schedulers.ASHAScheduler(
            TIME, max_t=longest, grace_period=settings.grace, reduction_factor=settings.reduction_factor
        )
    if name == "hyperband":
        return schedulers.HyperBandScheduler(TIME, max_t=longest, reduction_factor=settings.reduction_factor)
    if name == "median":
        return schedulers.MedianStoppingRule(TIME, grace_period=settings.grace, min_samples_required=3)
    if name == "pbt":
        from raygpt.tune.population import PopulationInStep

        return PopulationInStep(
            TIME,
            longest=longest,
            perturbation_interval=settings.interval,
            hyperparam_mutations=mutations(space),
            custom_explore_fn=space.clip,
            log_config=False,
        )
    if name == "pb2":
        from raygpt.tune.population import PB2InStep

        bounds = {key: [item.low, item.high] for key, item in space.dimensions.items() if item.is_numeric}
        return PB2InStep(
            TIME,
            longest=longest,
            perturbation_interval=settings.interval,
            hyperparam_bounds=bounds,
            custom_explore_fn=space.clip,
            log_config=False,
        )
    return schedulers.FIFOScheduler()


def mutations(space: Space) -> dict[str, Any]:
    """Tune's domain for every dimension: what PBT resamples from."""
    out: dict[str, Any] = {}
    for key, item in space.dimensions.items():
        if item.kind == "uniform":
            out[key] = tune.uniform(item.low, item.high)
        elif item.kind == "loguniform":
            out[key] = tune.loguniform(item.low, item.high)
        elif item.kind == "randint":
            out[key] = tune.randint(int(item.low), int(item.high) + 1)
        else:
            out[key] = list(item.options)
    return out


def parameter_space(settings: Tune, space: Space) -> dict[str, Any] | None:
    """What a population is drawn from; None for the other schedulers, whose searchers propose whole configurations."""
    if settings.scheduler not in ("pbt", "pb2"):
        return None
    return {key: tune.choice(item) if isinstance(item, list) else item for key, item in mutations(space).items()}


def rungs(settings: Tune, longest: int) -> list[int]:
    """Epochs at which asha looks at trials; for the others the only rung is the end."""
    if settings.scheduler not in ("asha", "hyperband"):
        return [longest]
    out, at = [], float(settings.grace)
    while at < longest:
        out.append(int(at))
        at *= settings.reduction_factor
    return sorted({*out, longest})
