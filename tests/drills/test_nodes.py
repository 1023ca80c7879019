"""The same settings on a cluster of several nodes: real raylets, on one machine."""

# ruff: noqa: F811 - fixtures of tests/tune are imported by name
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raygpt.config import Config
from tests.drills.program import Program
from tests.drills.test_sweeps import SETTINGS, check_same, finish
from tests.train.running import letters, run, sequence, zero_settings
from tests.tune.conftest import sweep_config, tiny_base, tiny_task  # noqa: F401


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
    import ray
    from ray._private.state import actors

    from raygpt.run.control import make_control

    assert len(two_nodes) == 2
    # what the driver cannot do without lies where it lies, not where an actor of zero CPUs happens to be put
    here, controls = ray.get_runtime_context().get_node_id(), [make_control() for _ in range(8)]
    ray.get([control.take.remote() for control in controls])
    found = [each for each in actors().values() if each["ActorClassName"] == "RunControl"]
    assert len(found) == 8 and {each["Address"]["NodeID"] for each in found} == {here}
    del controls
    shards = letters(tmp_path / "shards")
    # a node has room for one worker of 1.5 CPUs and a reader
    options = {"train__max_steps": "10", "train__checkpoint_every": "5", "eval__every": "5"}
    _, rows, text = run(zero_settings(shards, tmp_path, "zero3", "all", scale__cpus_per_worker="1.5", **options))
    assert "2 workers" in text and len(sequence(rows, "train_loss")) == 10
    assert {row["world_size"] for row in rows} == {2}


@pytest.mark.timeout(900)
def test_a_lost_node_costs_no_trial(sweep_config: Callable[..., Config]) -> None:
    """Two nodes of one CPU for trials; one dies while both run."""
    import ray
    from ray.cluster_utils import Cluster

    config = sweep_config(SETTINGS)
    ray.shutdown()
    head = {"num_cpus": 1, "object_store_memory": 150_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        node = cluster.add_node(num_cpus=1, object_store_memory=150_000_000)
        file = Path(config.run.storage) / "sweep.yaml"
        program = Program(
            "tune", "--config", str(file), "--run.name=node", f"--scale.address={cluster.address}",
            "--tune.cpus_per_trial=0.5", "--tune.concurrent=4",
        )  # fmt: skip
        program.wait_for("4 running", 300)
        time.sleep(3)
        cluster.remove_node(node, allow_graceful=False)
        curves, summary = finish(program, Path(config.run.storage) / "node")
        check_same(curves, summary, 4)
    finally:
        cluster.shutdown()


@pytest.mark.timeout(120)
def test_the_memory_plan_is_of_a_node_that_workers_run_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The head node has no CPUs for workers, as a small one beside large ones has none."""
    import ray
    from ray.cluster_utils import Cluster

    from raygpt.capacity import preflight
    from raygpt.capacity.fit import Hardware
    from raygpt.errors import UserError
    from raygpt.storage import locate

    def named(_: object, __: bool) -> Hardware:
        return Hardware(host_memory=1, gpu=ray.get_runtime_context().get_node_id())

    ray.shutdown()
    head = {"num_cpus": 0, "object_store_memory": 150_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        node = cluster.add_node(num_cpus=2, object_store_memory=150_000_000)
        ray.init(address=cluster.address, log_to_driver=False)
        monkeypatch.setattr(preflight, "probe", named)
        hardware, share = preflight.survey(locate(tmp_path), use_gpu=False, cpus=1, workers=2)
        assert hardware.gpu == node.node_id and share == 2
        with pytest.raises(UserError, match="scale.cpus_per_worker=3 is more than any node of the cluster has"):
            preflight.survey(locate(tmp_path), use_gpu=False, cpus=3, workers=2)
    finally:
        ray.shutdown()
        cluster.shutdown()
