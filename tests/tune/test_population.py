"""A population in step: no epoch twice, nobody waited for in vain, and a place in the schedule after a kill."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune

from raygpt.tune.population import PopulationInStep

EPOCHS = 3


def climb(params: dict[str, Any]) -> None:
    """Adds the learning rate to a score, three times; the third member fails in its second epoch."""
    score, epoch = 0.0, 0
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            score, epoch = json.loads((Path(folder) / "state.json").read_text())
    while epoch < EPOCHS:
        epoch, score = epoch + 1, score + params["lr"]
        if params["fails"] and epoch == 2:
            raise RuntimeError("as it was told to")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "state.json").write_text(json.dumps([score, epoch]))
            tune.report({"score": score, "epoch": epoch}, checkpoint=tune.Checkpoint.from_directory(folder))


def scheduler() -> PopulationInStep:
    return PopulationInStep(
        "training_iteration", longest=EPOCHS, perturbation_interval=1, hyperparam_mutations={"lr": tune.uniform(0, 1)}
    )


def test_every_epoch_is_trained_once_though_slots_are_few_and_a_member_fails(ray_cluster: str, tmp_path: Path) -> None:
    tuner = tune.Tuner(
        tune.with_resources(climb, {"cpu": 3}),  # two at a time on the cluster's six
        param_space={"lr": tune.grid_search([0.1, 0.2, 0.3, 0.4]), "fails": tune.sample_from(_third)},
        tune_config=tune.TuneConfig(scheduler=scheduler(), metric="score", mode="max"),
        run_config=tune.RunConfig(name="pbt", storage_path=str(tmp_path), verbose=0),
    )
    grid = tuner.fit()
    failed = [result for result in grid if result.error]
    assert len(grid) == 4 and len(failed) == 1
    for result in grid:
        if not result.error:
            assert list(result.metrics_dataframe["epoch"]) == [1, 2, 3]
    # the weakest took over from the strongest: by itself it would have come to 0.3
    assert min(result.metrics["score"] for result in grid if not result.error) > 0.35


def _third(spec: Any) -> bool:
    return spec.config["lr"] == 0.3


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
