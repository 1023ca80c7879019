"""A RayJob for KubeRay, looked over: the operator's own fields and rules, and that nothing of it runs on for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raygpt.cluster.findings import Findings

# what is deleted, from least to most
POLICIES = ("DeleteNone", "DeleteWorkers", "DeleteCluster", "DeleteSelf")
ENDINGS = {
    "jobStatus: SUCCEEDED": "a job that ends well",
    "jobStatus: FAILED": "a job that fails",
    # a deadline that has passed, a head that died, a submission that never came about: Ray's job has no end then
    "jobDeploymentStatus: Failed": "a deadline or a lost head",
}


def inspect(config: dict[str, Any]) -> Findings:
    """Whether KubeRay takes it, and whether every way to end frees its machines."""
    import jsonschema
    import yaml

    found = Findings()
    spec = config.get("spec", {})
    if config.get("apiVersion") != "ray.io/v1":
        found.problems.append(f"apiVersion {config.get('apiVersion')} is none of KubeRay's: write ray.io/v1.")
    fields = yaml.safe_load((Path(__file__).parent / "rayjob_fields.yaml").read_text())
    for error in jsonschema.Draft202012Validator(fields).iter_errors(spec):
        where = ".".join(str(part) for part in ("spec", *error.absolute_path))
        found.problems.append(f"KubeRay does not take {where} ({error.message}): mend it there.")
    if found.problems:
        return found
    found.verified.append("KubeRay's fields")
    cluster = spec.get("rayClusterSpec", {})
    _endings(spec, bool(cluster.get("enableInTreeAutoscaling")), found)
    if spec.get("activeDeadlineSeconds"):
        found.verified.append(f"ends after {spec['activeDeadlineSeconds'] / 3600:g} hours at the latest")
    else:
        found.problems.append("spec.activeDeadlineSeconds is missing, so that a job that hangs runs for ever: set it.")
    if cluster.get("authOptions", {}).get("mode") == "token":
        found.verified.append("Ray asks for its token")
    else:
        found.problems.append(
            "spec.rayClusterSpec.authOptions.mode is not token, and any pod of Kubernetes could run jobs: set it."
        )
    groups = [cluster.get("headGroupSpec", {}), *cluster.get("workerGroupSpecs", [])]
    images = {container.get("image") for group in groups for container in _containers(group)}
    if len(images) > 1:
        found.problems.append(
            f"head and workers have different images ({', '.join(sorted(map(str, images)))}): use one."
        )
    return found


def _endings(spec: dict[str, Any], autoscaling: bool, found: Findings) -> None:
    strategy = spec.get("deletionStrategy", {})
    rules = strategy.get("deletionRules", [])
    if rules and (spec.get("shutdownAfterJobFinishes") or spec.get("ttlSecondsAfterFinished")):
        found.problems.append(
            "deletionRules and shutdownAfterJobFinishes or ttlSecondsAfterFinished exclude each other: leave the rules."
        )
    if autoscaling and any(rule["policy"] == "DeleteWorkers" for rule in rules):
        found.problems.append(
            "KubeRay has no DeleteWorkers beside enableInTreeAutoscaling: leave that rule out, or the autoscaling."
        )
    after: dict[str, dict[str, int]] = {}
    for rule in rules:
        condition = dict(rule["condition"])
        seconds = condition.pop("ttlSeconds", 0)
        if len(condition) != 1:
            found.problems.append("a deletion rule needs either jobStatus or jobDeploymentStatus: keep one of them.")
            continue
        ((kind, value),) = condition.items()
        after.setdefault(f"{kind}: {value}", {})[rule["policy"]] = seconds
    for ending, meaning in ENDINGS.items():
        times = after.get(ending, {})
        if not {"DeleteCluster", "DeleteSelf"} & set(times):
            found.problems.append(
                f"no deletion rule ends the cluster after {meaning} ({ending}), and its machines would run on: add "
                "DeleteCluster or DeleteSelf."
            )
        ordered = [times[policy] for policy in POLICIES if policy in times]
        if ordered != sorted(ordered):
            found.problems.append(f"deletion rules of {ending} end more before less: order their ttlSeconds.")
    if not found.problems:
        found.verified.append("workers, cluster and job are deleted after every ending")


def _containers(group: dict[str, Any]) -> list[dict[str, Any]]:
    return group.get("template", {}).get("spec", {}).get("containers", [])
