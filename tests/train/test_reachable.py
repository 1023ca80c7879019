"""What a lost host or worker does to a group of workers: those that nobody can reach are not trained on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from raygpt.train.reachable import unreachable, with_reachable_hosts


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def node(name: str, port: int, alive: bool = True) -> dict[str, object]:
    return {"NodeID": name, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port, "Alive": alive}


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_living_node_whose_raylet_does_not_answer_is_unreachable(listener: int) -> None:
    nodes = [node("here", listener), node("gone", closed_port()), node("dead", closed_port(), alive=False)]
    assert unreachable(nodes, 1) == {"gone"} and unreachable([], 1) == set()


def test_elastic_training_counts_reachable_hosts_and_does_not_resize_while_one_is_gone(listener: int) -> None:
    from ray.train import ScalingConfig
    from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, create_scaling_policy

    nodes = [node("a", listener), node("b", listener), node("c", closed_port())]
    config = ScalingConfig(num_workers=(1, 3), resources_per_worker={"CPU": 2}, elastic_resize_monitor_interval_s=0)  # type: ignore[arg-type]
    policy = with_reachable_hosts(create_scaling_policy(config), lambda: nodes)
    reserved = {name: {"CPU": 3.0} for name in "abc"}
    assert policy._count_possible_workers(reserved) == 2
    nodes[2] = node("c", listener, alive=False)  # dead, and reserved all the same
    assert policy._count_possible_workers(reserved) == 2
    nodes[2] = node("c", closed_port())
    # what Ray's coordinator would answer
    policy._maybe_send_resource_request = lambda: None
    policy._get_reserved_resources = lambda: reserved
    group = SimpleNamespace(start_time=0.0, num_workers=1)
    assert policy.make_decision_for_non_running_worker_group().num_workers == 2
    assert isinstance(policy.make_decision_for_running_worker_group(group, None), NoopDecision)
    nodes[2] = node("c", listener)
    grown = policy.make_decision_for_running_worker_group(group, None)
    assert isinstance(grown, ResizeDecision) and grown.num_workers == 3


def test_a_fixed_number_of_workers_is_left_to_ray() -> None:
    from ray.train import ScalingConfig
    from ray.train.v2._internal.execution.scaling_policy import create_scaling_policy

    policy = create_scaling_policy(ScalingConfig(num_workers=2))
    assert with_reachable_hosts(policy) is policy


def test_a_worker_that_the_memory_monitor_killed_does_not_end_the_run_at_the_shutdown_of_its_group() -> None:
    from ray.exceptions import OutOfMemoryError

    from raygpt.train.lean_trainer import GroupConfig

    class Group:
        def __len__(self) -> int:
            return 2

        def execute_async(self, *_: object, **__: object) -> list[object]:
            raise OutOfMemoryError("a worker was killed")

    config = GroupConfig(backend="gloo")
    with pytest.raises(OutOfMemoryError):
        super(GroupConfig, config).backend_cls().on_shutdown(Group(), config)
    config.backend_cls().on_shutdown(Group(), config)
