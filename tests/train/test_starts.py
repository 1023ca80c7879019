"""Which processes a run starts: each takes a core for a second or more, and the first step waits."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import ray

from raygpt.cluster.connect import TRAIN_ENVIRONMENT, is_own, train_environment
from tests.train.running import letters, run, settings


def actors() -> set[str]:
    """Names of the actors that run in processes below this one, as Ray writes them into their titles."""
    titles = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    return {match[1] for title in titles if (match := re.match(r"ray::(\w+)", title))}


def test_a_run_starts_workers_a_reader_and_what_ray_cannot_do_without(ray_cluster: object, tmp_path: Path) -> None:
    seen: list[set[str]] = []
    config = settings(letters(tmp_path / "shards"), tmp_path, scale__num_workers="2", train__max_steps="12")
    run(config, {"step 6/12": lambda: seen.append(actors())})
    assert {"RayTrainWorker", "RunControl", "ReaderService", "SynchronizationActor"} <= seen[0]
    # the controller is in this process; nobody asks for datasets, nothing watches a cluster of one process
    absent = {"TrainController", "DatasetManager", "PlacementGroupCleaner", "PreemptionWatcher"}
    assert not absent & seen[0]


def test_the_controller_s_environment_is_the_user_s_where_set_and_leaves_no_trace(
    ray_cluster: object, monkeypatch
) -> None:
    assert is_own() and train_environment()["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0"
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "3")
    assert train_environment()["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "3"
    assert set(TRAIN_ENVIRONMENT) <= set(train_environment())


def test_workers_run_at_the_machine_s_own_priority(ray_cluster: object) -> None:
    """Ray's default of 15 starves training beside any compilation."""

    @ray.remote(num_cpus=0)
    def niceness() -> int:
        return psutil.Process().nice()

    assert ray.get(niceness.remote()) == psutil.Process().nice()
