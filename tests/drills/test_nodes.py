"""The same settings on a cluster of several nodes: real raylets, on one machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train.running import letters, run, sequence, zero_settings


@pytest.fixture
def two_nodes() -> Iterator[list[dict]]:
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 300_000_000})
    cluster.add_node(num_cpus=2, object_store_memory=300_000_000)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield ray.nodes()
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.timeout(600)
def test_weights_are_shared_out_over_two_nodes(two_nodes: list[dict], tmp_path: Path) -> None:
    assert len(two_nodes) == 2
    shards = letters(tmp_path / "shards")
    # a node has room for one worker of 1.5 CPUs and a reader
    options = {"train__max_steps": "10", "train__checkpoint_every": "5", "eval__every": "5"}
    _, rows, text = run(zero_settings(shards, tmp_path, "zero3", "all", scale__cpus_per_worker="1.5", **options))
    assert "2 workers" in text and len(sequence(rows, "train_loss")) == 10
    assert {row["world_size"] for row in rows} == {2}
