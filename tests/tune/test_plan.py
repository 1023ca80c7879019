"""A sweep is checked as a whole before any trial starts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raygpt.config import Config
from raygpt.errors import UserError
from raygpt.tune.plan import make_plan
from raygpt.tune.schedulers import rungs
from raygpt.tune.search import planned


def refusal(config: Config) -> str:
    with pytest.raises(UserError) as caught:
        make_plan(config)
    return str(caught.value)


def test_a_sound_sweep_is_described(sweep_config: Callable[..., Config]) -> None:
    plan = make_plan(sweep_config())
    assert (plan.kind, plan.metric, plan.mode, plan.longest) == ("classify", "accuracy", "max", 3)
    assert "4 points of classify by grid search" in plan.describe()


def test_every_kind_of_mistake_comes_out_at_once(sweep_config: Callable[..., Config], tmp_path) -> None:
    three = tmp_path / "three.csv"
    three.write_text("a,b,c\n1,2,3\n4,5,6\n")
    config = sweep_config(
        {
            "tune.space": {"optim.lrr": {"choice": [1]}, "optim.lr": {"choice": []}},
            "tune.metric": "bleu",
            "tune.baseline": {"optim.rate": 1},
            "task.train": str(three),
            "model.init_from": "random",
            "data.tokenizer": "bytes",
            "train.epochs": 2.5,
        }
    )
    text = refusal(config)
    for part in (
        "optim.lrr (tune.space) is no setting",
        "choice has no values",
        "tune.metric=bleu is reported by no trial of this sweep: choose accuracy, f1, loss",
        "optim.rate (tune.baseline) is no setting",
        "three.csv has the 3 columns a, b, c",
        "model.init_from is not set",
        "train.epochs must be a whole number",
    ):
        assert part in text, part
    assert len(text.splitlines()) == 7


def test_labels_that_are_not_in_the_data_are_named(sweep_config: Callable[..., Config]) -> None:
    assert "task.labels names maybe" in refusal(sweep_config({"task.labels": ["0", "1", "maybe"]}))


@pytest.mark.parametrize("scheduler", ["pbt", "pb2"])
def test_a_population_over_training_jobs_is_refused_with_the_reason(
    sweep_config: Callable[..., Config], scheduler: str
) -> None:
    text = refusal(
        sweep_config(
            {
                "task.name": None,
                "data.train": "x",
                "data.tokenizer": "bytes",
                "tune.scheduler": scheduler,
                "tune.search": "random",
                "tune.space": {"optim.lr": {"uniform": [1e-4, 1e-3]}},
            }
        )
    )
    assert f"tune.scheduler={scheduler} cannot be used" in text and "nothing would ever be exploited" in text


def test_schedulers_refuse_what_they_cannot_do(sweep_config: Callable[..., Config]) -> None:
    assert "searches ranges of numbers only: drop optim.lr" in refusal(
        sweep_config({"tune.scheduler": "pb2", "tune.search": "random"})
    )
    assert "mutates what a grid fixes" in refusal(sweep_config({"tune.scheduler": "pbt"}))
    held = {"tune.search": "random", "tune.scheduler": "pbt", "tune.concurrent": 2}
    assert "tune.concurrent=2 cannot hold back pbt" in refusal(sweep_config(held))
    assert "train.epochs must be drawn by randint" in refusal(
        sweep_config({"tune.search": "random", "tune.space": {"train.epochs": {"uniform": [1, 4]}}})
    )
    space = {"task.reinit_layers": {"randint": [0, 2]}}
    text = refusal(sweep_config({"tune.search": "random", "tune.scheduler": "pbt", "tune.space": space}))
    assert "task.reinit_layers cannot change within a trial" in text


def test_a_random_sweep_is_the_same_for_the_same_seed(sweep_config: Callable[..., Config]) -> None:
    change = {"tune.search": "random", "tune.trials": 5, "tune.space": {"optim.lr": {"uniform": [0.1, 0.2]}}}
    plan = make_plan(sweep_config(change))
    assert planned(plan.config, plan.space) == planned(plan.config, plan.space)
    assert len({str(params) for params in planned(plan.config, plan.space)}) == 5


def test_rungs_grow_by_the_reduction_factor(sweep_config: Callable[..., Config]) -> None:
    settings = sweep_config({"tune.scheduler": "asha", "tune.grace": 1, "tune.reduction_factor": 3}).tune
    assert rungs(settings, 10) == [1, 3, 9, 10]
    assert rungs(sweep_config().tune, 10) == [10]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tune.job": "finetune", "model.init_from": "random"}, "model.init_from is not set: name the model to fine"),
        ({"tune.job": "pretrain", "model.lora_rank": 8, "train.strategy": "zero2"}, "model.lora_rank needs train.str"),
        ({"model.lora_rank": 8}, "model.lora_rank has no meaning for a classification task"),
        ({"tune.space": {"train.strategy": {"choice": ["ddp", "zero1"]}}}, "train.strategy changes nothing of a clas"),
    ],
)
def test_what_a_trial_would_ignore_is_refused(sweep_config, change: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make_plan(sweep_config(change, check=False))
