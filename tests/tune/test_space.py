"""Search spaces: what may be written, what is drawn, and every mistake named before any trial."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raygpt.config import Config
from raygpt.config.settings import config_with
from raygpt.errors import UserError
from raygpt.tune.space import decode, read_space


def config(space: dict, search: str = "random", **more: object) -> Config:
    return config_with(Config(), {"tune.space": space, "tune.search": search, **more}, "test")


def problems(space: dict, search: str = "random") -> str:
    return "\n".join(read_space(config(space, search))[1])


def test_draws_stay_in_range_and_follow_their_kind() -> None:
    space, wrong = read_space(
        config(
            {
                "optim.lr": {"loguniform": [1e-5, 1e-2]},
                "optim.weight_decay": {"uniform": [0, 0.3]},
                "task.reinit_layers": {"randint": [0, 3]},
                "task.batch_size": {"choice": [8, 16]},
            }
        )
    )
    assert not wrong
    random = np.random.default_rng(0)
    drawn = [space.sample(random) for _ in range(2000)]
    logs = [math.log10(float(d["optim.lr"])) for d in drawn]  # type: ignore[arg-type]
    assert min(logs) >= -5 and max(logs) <= -2 and np.mean(logs) == pytest.approx(-3.5, abs=0.1)
    assert {d["task.reinit_layers"] for d in drawn} == {0, 1, 2, 3}
    assert {d["task.batch_size"] for d in drawn} == {8, 16}
    assert all(0 <= float(d["optim.weight_decay"]) <= 0.3 for d in drawn)  # type: ignore[arg-type]


def test_a_grid_is_every_combination() -> None:
    space, _ = read_space(
        config({"task.batch_size": {"grid": [16, 32]}, "optim.lr": {"grid": [1e-5, 2e-5, 3e-5]}}, "grid")
    )
    points = list(space.grid())
    assert len(points) == 6 and points[0] == {"task.batch_size": 16, "optim.lr": 1e-5}
    assert len({tuple(point.items()) for point in points}) == 6


def test_a_trial_has_its_own_config_and_an_alternative_gives_way() -> None:
    base = config({"optim.betas": {"choice": [[0.9, 0.95], [0.9, 0.999]]}, "optim.warmup_fraction": {"choice": [0.1]}})
    base = config_with(base, {"optim.warmup_steps": 50}, "test")
    space, wrong = read_space(base)
    assert not wrong
    params = {"optim.betas": space.dimensions["optim.betas"].options[1], "optim.warmup_fraction": 0.1}
    changed = space.apply(base, params)
    assert changed.optim.betas == (0.9, 0.999)
    assert (changed.optim.warmup_fraction, changed.optim.warmup_steps) == (0.1, None)
    assert decode({"x": np.float64(0.5)}) == {"x": 0.5}


def test_mutated_values_come_back_into_range() -> None:
    space, _ = read_space(config({"optim.lr": {"uniform": [0.1, 0.2]}, "task.reinit_layers": {"randint": [0, 3]}}))
    assert space.clip({"optim.lr": 0.24, "task.reinit_layers": 3.6}) == {"optim.lr": 0.2, "task.reinit_layers": 3}


@pytest.mark.parametrize(
    ("space", "search", "says"),
    [
        ({"optim.lrr": {"choice": [1]}}, "random", "optim.lrr (tune.space) is no setting: did you mean optim.lr?"),
        ({"optim.lr": {"uniform": [0.2, 0.1]}}, "random", "uniform from 0.2 to 0.1 is empty"),
        ({"optim.lr": {"loguniform": [0, 1]}}, "random", "loguniform must begin above 0"),
        ({"task.batch_size": {"randint": [3, 3]}}, "random", "randint from 3 to 3 is empty"),
        ({"task.batch_size": {"randint": [1.5, 3]}}, "random", "randint takes whole numbers"),
        ({"optim.lr": {"choice": []}}, "random", "choice has no values"),
        ({"optim.lr": {"normal": [0, 1]}}, "random", "must be one of choice, grid, uniform"),
        ({"optim.lr": [1, 2]}, "random", "must be one of choice, grid, uniform"),
        ({"optim.lr": {"choice": [1.0, 1.0]}}, "random", "names a value twice"),
        ({"optim.lr": {"uniform": [0, 1]}}, "grid", "uniform has no grid"),
        ({"model.dropout": {"uniform": [0, 1.5]}}, "random", "model.dropout (tune.space) is 1.49"),
        ({"optim.schedule": {"choice": ["linear", "step"]}}, "random", "is 'step': must be cosine | wsd"),
        ({"tune.trials": {"choice": [1]}}, "random", "cannot be searched"),
        ({}, "random", "tune.space is empty"),
    ],
)
def test_mistakes_are_named(space: dict, search: str, says: str) -> None:
    assert says in problems(space, search)


def test_all_mistakes_come_at_once() -> None:
    found = problems(
        {"optim.lrr": {"choice": [1]}, "optim.lr": {"uniform": [2, 1]}, "train.compile": {"choice": ["x"]}}
    )
    assert len(found.splitlines()) == 3


def test_a_changed_setting_that_is_none_is_refused_with_its_origin() -> None:
    with pytest.raises(UserError, match="nothing.here \\(mine\\) is no setting"):
        config_with(Config(), {"nothing.here": 1}, "mine")
