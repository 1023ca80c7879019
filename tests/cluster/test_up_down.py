"""What `raygpt cluster up` and `down` read: phases, workers, processes and machines that are left. Three seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from raygpt.cluster import down, up
from raygpt.errors import UserError
from tests.drills.program import ROOT

ON_PREMISE = ROOT / "cluster" / "on-premise.yaml"


def test_phases_are_timed_from_the_lines_of_ray_up() -> None:
    lines = [
        (10.0, ""),
        (11.0, "Acquiring an up-to-date head node\n"),
        (13.5, "[1/7] Waiting for SSH to become available\n"),
        (43.5, "[2/7] Processing file mounts\n"),
        (44.0, "[6/7] Running setup commands\n"),
        (104.0, "[7/7] Starting the Ray runtime\n"),
        (110.0, ""),
    ]
    found = {each["name"]: each["seconds"] for each in up.phases_of(lines)}
    assert found == {"API": 3.5, "boot": 30.0, "setup": 60.5, "Ray": 6.0}
    shown = up.table(up.phases_of(lines))
    assert "setup         60.5 s  files and setup commands" in shown and "together     100.0 s" in shown
    # a host that is set up already skips to 2-6; one that never answers ends in boot
    assert [each["name"] for each in up.phases_of([*lines[:3], (20.0, "[2-6/7] up to date"), (21.0, "")])][
        -1
    ] == "setup"
    assert up.phases_of([*lines[:3], (63.5, "")])[-1] == {"name": "boot", "seconds": 50.0}


@pytest.mark.parametrize(
    ("cluster", "workers"),
    [
        ({"provider": {"type": "local", "head_ip": "h", "worker_ips": ["a", "b"]}}, 2),
        ({"provider": {"type": "local", "head_ip": "h", "worker_ips": ["a", "b"]}, "min_workers": 1}, 1),
        ({"provider": {"type": "local", "head_ip": "h"}}, 0),
        (
            {
                "provider": {"type": "aws"},
                "head_node_type": "head",
                "available_node_types": {"head": {"min_workers": 0}, "gpu": {"min_workers": 3}, "spot": {}},
            },
            3,
        ),
    ],
)
def test_up_waits_for_the_workers_that_no_job_has_to_ask_for(cluster: dict, workers: int) -> None:
    assert up.workers_asked_for(cluster) == workers


@pytest.mark.parametrize("text", ["a: [", "- 1", "cluster_name: x\n", "provider: {type: local}\n"])
def test_what_is_no_cluster_file_is_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match="c.yaml"):
        up.read_cluster(str(tmp_path / "c.yaml"))


def test_ray_takes_the_on_premise_file_with_all_its_workers() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(yaml.safe_load(ON_PREMISE.read_text()))
    validate_config(prepared)
    assert prepared["max_workers"] == up.workers_asked_for(prepared) == len(prepared["provider"]["worker_ips"])
    # Ray's autoscaler v2 would leave the last of them out, and nothing but loopback offers the dashboard
    head = " ".join(prepared["head_start_ray_commands"])
    assert "RAY_enable_autoscaler_v2=0" in head and "--dashboard-host=127.0.0.1" in head
    assert up.environment(prepared)["RAY_UP_enable_autoscaler_v2"] == "0"


def test_processes_of_ray_are_told_from_others() -> None:
    site = "/root/raygpt/.venv/lib/python3.11/site-packages"
    ray = [
        f"{site}/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp/ray/x",
        f"{site}/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp/ray/x",
        f"python -u {site}/ray/_private/log_monitor.py --session-dir=/tmp",
        f"python {site}/ray/dashboard/dashboard.py --host=127.0.0.1",
        f"python -u {site}/ray/autoscaler/_private/monitor.py",
        "ray::RayTrainWorker.run",
        "ray::DashboardAgent",
    ]
    others = ["COMMAND", "sshd: root@notty", "python train.py --data=xray::1", "ps -eo args", "bash -lic ray stop"]
    assert down.ray_processes("\n".join([*ray, *others])) == ray


def test_a_host_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    cluster = {"provider": {"head_ip": "127.0.0.1", "worker_ips": []}, "auth": {"ssh_user": "nobody-here"}}
    (sentence,) = down.end_hosts(cluster)
    assert sentence.startswith("Host 127.0.0.1 cannot be asked") and "run this again" in sentence


def test_machines_that_a_cloud_still_lists_are_waited_for_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for name in ("AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)  # of an S3 server that another test started
    cluster = {"cluster_name": "mine", "provider": {"type": "aws", "region": "us-east-1"}}
    with mock_aws():
        ec2 = boto3.client("ec2", region_name="us-east-1")
        ids = []
        for name in ("mine", "another"):
            tags = [{"ResourceType": "instance", "Tags": [{"Key": "ray-cluster-name", "Value": name}]}]
            made = ec2.run_instances(ImageId="ami-12c6146b", MinCount=2, MaxCount=2, TagSpecifications=tags)
            ids.append([each["InstanceId"] for each in made["Instances"]])
        mine = ids[0]
        assert down._aws_machines(cluster) == mine
        ec2.stop_instances(InstanceIds=mine[:1])
        ec2.terminate_instances(InstanceIds=mine[1:])
        assert down._aws_machines(cluster) == mine[:1]  # its disk is paid for
        assert down.wait_until_gone(lambda: down._aws_machines(cluster), limit=0.1, pause=0.05) == mine[:1]
        ec2.terminate_instances(InstanceIds=mine[:1])
        assert down.wait_until_gone(lambda: down._aws_machines(cluster)) == []
