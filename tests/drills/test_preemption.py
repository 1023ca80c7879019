"""A spot machine is taken away during training: its notice, a checkpoint, and the very next step on what is left."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from raygpt.cluster.preemption import SIGNAL
from raygpt.track.metrics_export import figures
from raygpt.train.resolve import resolve
from raygpt.train.trainer import run_training
from tests.cluster.metadata_service import ACTION, aws_time, metadata_service
from tests.train.running import Screen, letters, records, sequence, settings

GRACE = 120  # seconds between AWS's notice and the end


class Goes(Screen):
    """Begins the notice at step 10, and gives the driver's own node one by a signal ten lines after training has gone
    on."""

    def __init__(self, notice: threading.Thread) -> None:
        super().__init__({"step 10/": notice.start})
        self.later = -1

    def write(self, text: str) -> int:
        if "Going on from step" in text:
            self.later = 0
        elif self.later >= 0 and text.startswith("step "):
            self.later += 1
            if self.later == 10:
                for process in psutil.Process().children(recursive=True):
                    if " ".join(process.cmdline()).startswith("ray::NodeWatcher"):
                        process.send_signal(SIGNAL)
        return super().write(text)


class Scraper(threading.Thread):
    """Reads the metrics agent of the driver's node once a second, as Prometheus does; `shown` are the run's gauges."""

    def __init__(self) -> None:
        import ray

        super().__init__(daemon=True)
        here = ray.get_runtime_context().get_node_id()
        [port] = [node["MetricsExportPort"] for node in ray.nodes() if node["NodeID"] == here]
        self.url = f"http://127.0.0.1:{port}/metrics"
        self.shown: dict[str, float] = {}
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(1):
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url, timeout=10) as answer:
                for line in answer.read().decode().splitlines():
                    if 'run="r"' in line:
                        self.shown[line.split("{")[0]] = float(line.split()[-1])

    def at_step(self, step: int) -> dict[str, float]:
        """What was shown last, which is of this step."""
        until = time.monotonic() + 60
        while self.shown.get("ray_train_num_steps") != step and time.monotonic() < until:
            time.sleep(0.2)
        self.ended.set()
        self.join()
        return self.shown


def tracked_run() -> tuple[Any, list[Any]]:
    """The one run and its attempts in the list that the dashboard's Train tab shows."""
    import ray
    from ray.train.v2._internal.state.state_actor import get_state_actor

    actor = get_state_actor()
    [run] = ray.get(actor.get_train_runs.remote()).values()
    return run, list(ray.get(actor.get_train_run_attempts.remote())[run.id].values())


@pytest.mark.timeout(600)
def test_after_a_spot_notice_training_goes_on_from_that_very_step_on_the_node_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.cluster_utils import Cluster

    from raygpt.cluster.connect import connect
    from raygpt.cluster.preemption import draining_nodes

    ray.shutdown()
    monkeypatch.setenv("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")  # by itself only where there is a dashboard
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")  # on a machine with other work beside
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "3000")  # by itself every 10 s
    node = {"num_cpus": 1, "object_store_memory": 150_000_000, "include_dashboard": False}
    told: list[float] = []
    with metadata_service() as service:
        spot = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": service.url, "AWS_EC2_METADATA_DISABLED": "false"}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        try:
            taken = cluster.add_node(**node, env_vars=spot)
            config = settings(
                letters(tmp_path / "shards"), tmp_path, scale__num_workers="[1, 2]", scale__address=cluster.address,
                train__max_steps="100000", train__checkpoint_every="0", eval__every="0", train__micro_batch_size="4",
            )  # fmt: skip
            connect(config.scale)

            def give_notice() -> None:
                while not any(path == ACTION for _, path, _ in service.asked):
                    time.sleep(0.05)  # its watcher is there, and has asked in vain
                goes = {"action": "terminate", "time": aws_time(time.time() + GRACE)}
                service.answers[ACTION] = json.dumps(goes).encode()
                told.append(time.time())

            scraper = Scraper()
            scraper.start()
            screen = Goes(threading.Thread(target=give_notice, daemon=True))
            outcome = run_training(config, resolve(config), "raygpt pretrain …", screen)
            rows, text, leaving = records(config), screen.getvalue(), draining_nodes()
            shown = scraper.at_step(rows[-1]["step"])
            tracked = tracked_run()
        finally:
            ray.shutdown()
            cluster.shutdown()
    sizes, at = sequence(rows, "world_size"), sequence(rows, "time")
    last = max(sizes)
    assert [row["step"] for row in rows] == list(range(1, last + 1))  # each once, none missing
    [left] = [step for step in range(1, last) if sizes[step] == 2 and sizes[step + 1] == 1]
    assert {sizes[step] for step in range(left + 1, last + 1)} == {1}
    # nothing else than the notice made a checkpoint, and it was of the step at hand, of two workers
    assert f"Going on from step {left}: " in text and "AWS will terminate this spot machine" in text
    assert at[left] - told[0] < GRACE / 2  # type: ignore[operator]
    assert not leaving - {taken.node_id}
    # a notice for the node of the driver ends the run, saved
    assert (outcome.outcome, outcome.summary["stopped_by"]) == ("stopped", "preempted")
    assert "which this job's driver runs on" in text and f"Stopped after step {last} of" in text
    # what Prometheus sees is what metrics.jsonl says
    last_of = {key: value for row in rows for key, value in row.items()}
    expected = {f"ray_{name}": value for name, value in figures(last_of).items()} | {"ray_train_restarts": 1}
    assert shown.keys() >= expected.keys() and {name: shown[name] for name in expected} == expected
    assert shown["ray_train_started_time_s"] < last_of["time"] and shown["ray_train_diverged"] == 0
    # and what Ray's dashboard does of the run and its two groups of workers
    run, attempts = tracked
    assert (run.name, run.status.value) == ("r", "FINISHED")
    assert [len(each.workers) for each in attempts] == [2, 1]
    assert run.run_settings.train_loop_config["model"]["preset"] == "nano"
    print(f"notice to last step {at[left] - told[0]:.1f} s, stood still {at[left + 1] - at[left]:.1f} s")  # type: ignore[operator]
