"""A population in step: no epoch twice, nobody waited for in vain, and a place in the schedule after a kill."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune

from raygpt.tune.population import PopulationInStep

EPOCHS = 3


def scheduler() -> PopulationInStep:
    return PopulationInStep(
        "training_iteration", longest=EPOCHS, perturbation_interval=1, hyperparam_mutations={"lr": tune.uniform(0, 1)}
    )


@pytest.mark.parametrize(
    ("epochs", "next_meeting"),
    [([3, 3, 3], 6), ([4, 6, 5], 6), ([6, 6, 0], 3), ([6, 6, 6], 9), ([12, 7, 9], 9)],
)
def test_after_a_kill_the_population_meets_where_the_slowest_gets_to_next(epochs: list[int], next_meeting: int) -> None:
    population = PopulationInStep(
        "epoch", longest=12, perturbation_interval=3, hyperparam_mutations={"lr": tune.uniform(0, 1)}
    )
    population.set_search_properties("score", "max")
    for epoch in epochs:
        population.on_trial_add(SimpleNamespace(search_alg=None), _restored(epoch))
    assert population._next_perturbation_sync == next_meeting


def _restored(epoch: int) -> Any:
    manager = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=4))

    class Restored(SimpleNamespace):
        __hash__ = object.__hash__

        def is_finished(self) -> bool:
            return epoch == 12

    return Restored(
        config={"lr": 0.1},
        experiment_tag="0",
        last_result={"epoch": epoch, "score": 0.5} if epoch else {},
        run_metadata=SimpleNamespace(checkpoint_manager=manager),
    )
