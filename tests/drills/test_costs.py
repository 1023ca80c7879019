"""What the nodes of a real cluster cost: labels, spot, one that joins and one that is lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from raygpt.cluster.connect import connect
from raygpt.cluster.nodes import nodes, take_asked
from raygpt.config import Scale
from raygpt.prices import machine
from raygpt.track.cost import Bill

SMALL = {"num_cpus": 1, "object_store_memory": 100_000_000}


def test_nodes_of_a_cluster_are_billed_from_when_they_come_until_they_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.cluster_utils import Cluster

    (tmp_path / "prices.yaml").write_text("p4d.24xlarge: {spot: 7.2}\n")
    monkeypatch.setenv("RAYGPT_PRICES", str(tmp_path / "prices.yaml"))
    ray.shutdown()
    assert nodes() is None, "nobody can tell without a cluster"
    label = {"raygpt.io/instance-type": "m5.2xlarge", "raygpt.io/market": "on-demand"}
    cluster = Cluster(initialize_head=True, head_node_args={**SMALL, "labels": label})
    try:
        connect(Scale(address=cluster.address))
        began = take_asked()
        assert began is not None and take_asked() is None, "waiting is paid for once"
        bill = Bill("auto", since=began, nodes=nodes)
        bill.look()
        assert bill.usd_per_hour() == machine("m5.2xlarge").price
        joins = time.time()
        spot = {"raygpt.io/instance-type": "p4d.24xlarge", "raygpt.io/market": "spot"}
        lost = cluster.add_node(**SMALL, labels=spot)
        joined = time.time()
        time.sleep(2)  # it counts from its start, not from when it is seen
        bill.look()
        assert bill.usd_per_hour() == pytest.approx(0.384 + 7.2)
        leaves = time.time()
        cluster.remove_node(lost, allow_graceful=False)
        gone = _until_dead()
        bill.look()
        assert bill.usd_per_hour() == machine("m5.2xlarge").price
        usd, now = bill.attempt_usd(), time.time()
        assert usd is not None
        head = 0.384 * (now - began) / 3600
        assert 7.2 * (leaves - joined - 1) / 3600 < usd - head < 7.2 * (gone - joins + 1) / 3600
    finally:
        ray.shutdown()
        cluster.shutdown()


def _until_dead() -> float:
    limit = time.monotonic() + 60
    while sum(node.ended is None for node in nodes() or ()) != 1:
        assert time.monotonic() < limit
        time.sleep(0.2)
    return time.time()
