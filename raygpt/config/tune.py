"""`tune`: the search for hyperparameters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from raygpt.config.section import Fixed, OfSettings, Section

_SEARCH = Fixed(("sweep",), "the search was begun with it")
_FINALS = Fixed(("sweep",), "the final runs are named and counted by it")


class Tune(Section):
    space: Annotated[dict[str, Any], _SEARCH, OfSettings()] = Field(
        {}, description="what to search: any setting -> choice, uniform, loguniform, randint or grid, and its values"
    )
    search: Annotated[Literal["random", "grid", "optuna"], _SEARCH] = Field(
        "optuna", description="how trials are proposed: optuna is multivariate TPE"
    )
    scheduler: Annotated[Literal["asha", "hyperband", "pbt", "pb2", "median", "none"], _SEARCH] = Field(
        "asha", description="how bad trials are stopped early (pbt, pb2: replaced by mutated good ones)"
    )
    job: Annotated[Literal["auto", "classify", "pretrain", "finetune"], _SEARCH] = Field(
        "auto", description="what a trial runs (auto: classify where task.name is set, else pretrain)"
    )
    metric: Annotated[str | None, _SEARCH] = Field(
        None, description="what trials are ranked by: accuracy, f1, loss; val_loss or train_loss; none: the usual one"
    )
    trials: Annotated[int, _SEARCH] = Field(
        16, description="trials in all; with grid: passes over the grid (1 is usual)", ge=1
    )
    concurrent: int | None = Field(
        None, description="most trials at a time (not with pbt, pb2); none: as many as resources allow", ge=1
    )
    cpus_per_trial: float = Field(1, description="CPU cores of one classification trial", gt=0)
    gpus_per_trial: float | Literal["auto"] = Field(
        "auto", description="GPUs of one classification trial; 0.5 puts two on one GPU (auto: 1 where there are any)"
    )
    memory_gb: float | None = Field(
        None, description="host memory a classification trial may take beside the libraries; more ends it", gt=0
    )
    grace: Annotated[int, _SEARCH] = Field(
        1, description="epochs (or evaluations) before asha, hyperband or median may stop a trial", ge=1
    )
    reduction_factor: Annotated[float, _SEARCH] = Field(
        3, description="asha, hyperband: one trial in this many goes on at a rung", gt=1
    )
    interval: Annotated[int, _SEARCH] = Field(2, description="pbt, pb2: epochs between exploits", ge=1)
    max_seconds: float | None = Field(None, description="stop searching after this long, restarts counted in", gt=0)
    max_failures: int = Field(2, description="restarts of a trial whose worker or node was lost", ge=0)
    top: Annotated[int, _FINALS] = Field(
        3, description="best configurations that are run again over tune.seeds; 0: no final runs", ge=0
    )
    seeds: Annotated[int, _FINALS] = Field(5, description="seeds per configuration in the final runs", ge=1)
    baseline: Annotated[dict[str, Any], _FINALS, OfSettings()] = Field(
        {}, description="settings of the configuration to beat; empty: this config as it is, without tune.space"
    )
    resamples: int = Field(5000, description="bootstrap resamples behind the confidence intervals", ge=100)
    show_every: float = Field(30, description="seconds between tables in a job log (a terminal: each change)", gt=0)
