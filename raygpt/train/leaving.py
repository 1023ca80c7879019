"""Leaving a node that will be taken away: every rank saves at once, and the group starts again on what is left.

Ray Train finds drained nodes and tells every worker of the group. Left alone it then lets training go on until the node
is gone and starts again from whatever was saved last, with steps repeated; and an elastic group that starts again
meanwhile counts on the very node that is being left. Here the group stops after the step at hand, saves it, and says so
by an exception that counts as a preemption, not as a failure of `train.max_failures`.
"""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy import ScalingPolicy
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2.api.exceptions import PreemptionError, TrainingFailedError
from ray.train.v2.api.preemption import PreemptionInfo

from raygpt.cluster.preemption import draining_nodes


class Leaving(Exception):
    """This group of workers has saved and ended, to be started again without a node that is going."""


def node_is_leaving() -> bool:
    """Whether Ray Train has told this rank that a node of its group is being drained. Asks nobody: Ray's own
    `get_preemption_info` waits for all ranks, and a step should not."""
    try:
        return get_train_context().preemption_context.preemption_info is not None
    except RuntimeError:  # no worker of Ray Train
        return False


class LeavingPolicy(DefaultFailurePolicy):
    """Ray Train's policy, to which a group that left counts as preempted."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        failures = getattr(training_failed_error, "worker_failures", {}).values()
        if any(isinstance(failure, Leaving) for failure in failures):
            training_failed_error = PreemptionError(PreemptionInfo(None, {}))
        return super().make_decision(training_failed_error)


class _Staying:
    """Part of an elastic policy: no counting on nodes that are being left. No worker would start there, and the group
    would wait for it until the start times out."""

    def _get_reserved_resources(self) -> Any:
        reserved = super()._get_reserved_resources()  # type: ignore[misc]
        if not reserved:
            return reserved
        leaving = draining_nodes()
        return {node: resources for node, resources in reserved.items() if node not in leaving}


def without_leaving_nodes(policy: ScalingPolicy) -> ScalingPolicy:
    """The same for a fixed number of workers; an elastic policy with that part, whatever else it has."""
    if not isinstance(policy, ElasticScalingPolicy):
        return policy
    return type("StayingPolicy", (_Staying, type(policy)), {})(policy.scaling_config)
