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
from raygpt.train.leaving import Leaving, LeavingPolicy, StayingScaling, node_is_leaving, with_leaving

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
    policy = StayingScaling(ScalingConfig(num_workers=(1, 8), resources_per_worker={"CPU": 1}))
    going: set[str] = set()
    monkeypatch.setattr(leaving, "draining_nodes", lambda: going)
    assert policy._count_possible_workers(policy._get_reserved_resources()) == 8
    going.add("b")
    assert policy._get_reserved_resources().keys() == {"a", "c"}
    going.add("a")
    assert policy._count_possible_workers(policy._get_reserved_resources()) == 4
    monkeypatch.setattr(ElasticScalingPolicy, "_get_reserved_resources", lambda _: None)  # Ray did not say
    assert policy._get_reserved_resources() is None


@pytest.mark.parametrize("workers, expected", [((1, 4), "StayingScaling"), (4, "FixedScalingPolicy")])
def test_the_controller_gets_these_policies_beside_what_it_has(workers: object, expected: str) -> None:
    scaling = ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1})  # type: ignore[arg-type]
    options = {"scaling_policy": create_scaling_policy(scaling), "failure_policy": None, "train_fn_ref": "kept"}
    changed = with_leaving(options, FailureConfig(), scaling)
    assert type(changed["scaling_policy"]).__name__ == expected
    assert isinstance(changed["failure_policy"], LeavingPolicy) and changed["train_fn_ref"] == "kept"


def test_a_rank_that_is_no_worker_of_ray_train_is_never_told_to_leave() -> None:
    assert not node_is_leaving()
    # what node_is_leaving reads is no part of Ray's interface: this Ray has it
    assert "preemption_context" in TrainContext.__dataclass_fields__
    assert PreemptionContext().preemption_info is None
