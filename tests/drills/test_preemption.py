"""A spot machine is taken away during training: its notice, a checkpoint, and the very next step on what is left."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from raygpt.parallel.checkpoint import complete_checkpoints, step_of
from raygpt.storage import locate
from tests.cluster.metadata_service import ACTION, aws_time, metadata_service
from tests.train.running import Screen, letters, run, sequence, settings

STEPS = 400
T0 = time.time()


@pytest.mark.timeout(70)
def test_after_a_spot_notice_training_goes_on_from_that_very_step_on_the_node_that_is_left(tmp_path: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    from raygpt.cluster.connect import connect

    ray.shutdown()
    head = {"num_cpus": 1, "object_store_memory": 150_000_000, "include_dashboard": False}
    with metadata_service() as service:
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            spot = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": service.url, "AWS_EC2_METADATA_DISABLED": "false"}
            cluster.add_node(num_cpus=1, object_store_memory=150_000_000, env_vars=spot)
            config = settings(
                letters(tmp_path / "shards", 40_000), tmp_path, scale__num_workers="[1, 2]", scale__address=cluster.address,
                train__max_steps=str(STEPS), train__checkpoint_every="300", eval__every="0",
            )  # fmt: skip
            connect(config.scale)
            told: list[float] = []

            def give_notice() -> None:
                while not any(path == ACTION for _, path, _ in service.asked):
                    time.sleep(0.05)  # the watcher is there, and has asked in vain
                goes = {"action": "terminate", "time": aws_time(time.time() + 120)}
                service.answers[ACTION] = json.dumps(goes).encode()
                told.append(time.time())

            begin = threading.Thread(target=give_notice, daemon=True)
            class Loud(Screen):
                def write(self, text: str) -> int:
                    import sys
                    sys.__stderr__.write(f"{time.time() - T0:.1f} {text}")
                    return super().write(text)

            outcome, rows, text = run(config, screen=Loud({"step 20/": begin.start}))
        finally:
            ray.shutdown()
            cluster.shutdown()
    print(text[:3000])
    steps = [row["step"] for row in rows if "train_loss" in row]
    assert outcome.outcome == "finished" and steps == list(range(1, STEPS + 1))
    sizes = sequence(rows, "world_size")
    [left] = [step for step in range(1, STEPS) if sizes[step] == 2 and sizes[step + 1] == 1]
    assert {sizes[step] for step in range(left + 1, STEPS + 1)} == {1}
    assert f"Going on from step {left}" in text and "AWS will terminate this spot machine" in text
    at = sequence(rows, "time")
    print("notice to last step", at[left] - told[0], "stood still", at[left + 1] - at[left])
    assert at[left] - told[0] < 10
    assert outcome.summary["restarts"] == 1
