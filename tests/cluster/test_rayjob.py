"""cluster/kuberay-rayjob.yaml, and what is said of one that KubeRay would not take or that would run for ever."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from raygpt.cluster.rayjob import inspect
from raygpt.prices import machine

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "cluster" / "kuberay-rayjob.yaml"


def job() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def test_the_file_is_fit_and_ends_whatever_happens() -> None:
    found = inspect(job())
    assert found.problems == [] and "workers, cluster and job are deleted after every ending" in found.verified
    spec = job()["spec"]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={spec['rayClusterSpec']['rayVersion']}" in pins
    # every pod has its shared memory and may reach S3, none is root
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        assert pod["serviceAccountName"] == "raygpt" and pod["securityContext"]["runAsNonRoot"]
        assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
        assert pod["volumes"][0]["emptyDir"]["medium"] == "Memory"
    worker = groups[1]
    kind = machine(worker["template"]["spec"]["nodeSelector"]["node.kubernetes.io/instance-type"])
    assert worker["labels"]["raygpt.io/instance-type"] == kind.name
    assert int(worker["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) == kind.gpus
    text = " ".join(FILE.read_text().replace("#", " ").split())
    assert f"{kind.name}: ${kind.price:.10g} an hour on demand, read {kind.read}" in text
    # the entrypoint asks for the GPUs that are there, with a config that the image has
    config = re.search(r"--config /opt/raygpt/(\S+)", spec["entrypoint"])
    assert config is not None and (ROOT / config[1]).is_file()
    assert f"--scale.num_workers={kind.gpus * worker['replicas']} " in spec["entrypoint"]


def _without_lost_head(spec: dict[str, Any]) -> None:
    rules = spec["deletionStrategy"]["deletionRules"]
    spec["deletionStrategy"]["deletionRules"] = [r for r in rules if "jobStatus" in r["condition"]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_without_lost_head, "no deletion rule ends the cluster after a deadline or a lost head"),
        (lambda spec: spec.pop("activeDeadlineSeconds"), "spec.activeDeadlineSeconds is missing"),
        (lambda spec: spec["rayClusterSpec"].pop("authOptions"), "authOptions.mode is not token"),
        (lambda spec: spec.update(shutdownAfterJobFinishes=True), "exclude each other"),
        (lambda spec: spec["rayClusterSpec"].update(enableInTreeAutoscaling=True), "no DeleteWorkers beside"),
        (lambda spec: spec.update(activeDeadlineSecond=1), "KubeRay does not take spec (Additional properties"),
        (
            lambda spec: spec["deletionStrategy"]["deletionRules"][0].update(policy="DeleteWorker"),
            "does not take spec.deletionStrategy.deletionRules.0.policy ('DeleteWorker' is not one of",
        ),
        (
            lambda spec: spec["deletionStrategy"]["deletionRules"][0]["condition"].update(ttlSeconds=900),
            "end more before less",
        ),
        (
            lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0].update(
                image="x"
            ),
            "head and workers have different images",
        ),
    ],
)
def test_what_kuberay_would_refuse_or_leave_running(change: Callable[[dict[str, Any]], object], sentence: str) -> None:
    config = job()
    change(config["spec"])
    (said,) = inspect(config).problems
    assert sentence in said and said.endswith(".")
