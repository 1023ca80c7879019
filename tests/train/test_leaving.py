"""A group of workers that saved and left is no failure, and the next one counts on no node that is going."""

from __future__ import annotations

import pytest
from ray.train import FailureConfig, ScalingConfig
from ray.train.v2._internal.execution.context import TrainContext
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.preemption import PreemptionContext
from ray.train.v2._internal.execution.scaling_policy import create_scaling_policy
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2.api.exceptions import WorkerGroupError

from raygpt.train import leaving
from raygpt.train.leaving import Leaving, LeavingPolicy, node_is_leaving, without_leaving_nodes

RETRY, RAISE = FailureDecision.RETRY, FailureDecision.RAISE


def group(*failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("", dict(enumerate(failures)))


def test_a_group_that_left_costs_none_of_the_failures_that_the_user_allows() -> None:
    policy = LeavingPolicy(FailureConfig(max_failures=1))
    for _ in range(5):
        assert policy.make_decision(group(Leaving("saved"), Leaving("saved"))) == RETRY
    # of those who left, one may have met with the end of the others
    assert policy.make_decision(group(Leaving("saved"), ConnectionError("peer is gone"))) == RETRY
    assert policy.make_decision(group(ValueError("a bug"))) == RETRY
    assert policy.make_decision(group(ValueError("a bug"))) == RAISE


def test_an_elastic_group_does_not_count_on_a_node_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    room = {"a": {"CPU": 4.0}, "b": {"CPU": 4.0}, "c": {"CPU": 4.0}}
    monkeypatch.setattr(ElasticScalingPolicy, "_get_reserved_resources", lambda _: room)

    class Careful(ElasticScalingPolicy):
        """One with a rule of its own."""

        def _count_possible_workers(self, reserved_resources: dict) -> int:
            return min(6, super()._count_possible_workers(reserved_resources))

    policy = without_leaving_nodes(Careful(ScalingConfig(num_workers=(1, 8), resources_per_worker={"CPU": 1})))
    assert isinstance(policy, Careful)
    going: set[str] = set()
    monkeypatch.setattr(leaving, "draining_nodes", lambda: going)
    assert policy._count_possible_workers(policy._get_reserved_resources()) == 6  # its rule
    going.add("b")
    assert policy._get_reserved_resources().keys() == {"a", "c"}
    going.add("a")
    assert policy._count_possible_workers(policy._get_reserved_resources()) == 4
    monkeypatch.setattr(ElasticScalingPolicy, "_get_reserved_resources", lambda _: None)  # Ray did not say
    assert policy._get_reserved_resources() is None


def test_a_group_of_a_fixed_size_waits_for_room_as_before() -> None:
    policy = create_scaling_policy(ScalingConfig(num_workers=4, resources_per_worker={"CPU": 1}))
    assert without_leaving_nodes(policy) is policy


def test_a_rank_that_is_no_worker_of_ray_train_is_never_told_to_leave() -> None:
    assert not node_is_leaving()
    # what node_is_leaving reads is no part of Ray's interface: this Ray has it
    assert "preemption_context" in TrainContext.__dataclass_fields__
    assert PreemptionContext().preemption_info is None
