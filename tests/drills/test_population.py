"""A population in step on a real cluster: no epoch twice, and nobody waited for in vain."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from ray import tune

from tests.tune.test_population import EPOCHS, scheduler


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
