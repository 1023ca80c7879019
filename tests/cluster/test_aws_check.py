"""`raygpt cluster check` on AWS: each mistake is one sentence with its way out, and a good file is fit to start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raygpt.cli import main
from tests.cluster.moto_aws import DLAMI, UBUNTU, Aws, aws  # noqa: F401 (a fixture)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _from_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def changed(tmp_path: Path, name: str, change: Any) -> str:
    """The file of cluster/, changed."""
    config = yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())
    change(config)
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def problems(path: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of the error of `raygpt cluster check`; none where it passed."""
    status = main(["cluster", "check", path])
    printed = capsys.readouterr()
    assert status == (2 if printed.err else 0)
    lines = [line.removeprefix("  - ").removeprefix("raygpt: ") for line in printed.err.splitlines() if line.strip()]
    return lines[1:] if lines and lines[0].endswith(" problems") else lines


def workers(config: dict[str, Any], key: str, value: object) -> None:
    for name in ("spot", "on_demand"):
        config["available_node_types"][name]["node_config"][key] = value


def test_a_prepared_file_is_fit_to_start_and_an_unprepared_one_says_how(
    aws: Aws,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = "cluster/aws-p4d.yaml"
    said = problems(path, capsys)
    assert len(said) == 4 and all(f"run `raygpt cluster prepare {path}`" in line for line in said)
    assert main(["cluster", "prepare", path]) == 0
    assert "EFA on 1 of 4 cards" in capsys.readouterr().out
    assert main(["cluster", "check", path]) == 0
    out = capsys.readouterr().out
    assert "us-east-1 offers m5.2xlarge, p4d.24xlarge" in out and "is fit to start" in out
    assert '"Running On-Demand P instances" is 5000 vCPUs, enough for 52 p4d.24xlarge' in out
    assert "AWS would launch head, spot, on_demand with this key (dry run)" in out
    assert aws.ec2.describe_instances()["Reservations"] == []  # nothing was launched
    aws.denied = {"RunInstances", "GetServiceQuota"}
    assert main(["cluster", "check", path]) == 2
    printed = capsys.readouterr()
    assert "the AWS key lacks the rights ec2:RunInstances, iam:PassRole: " in printed.err
    assert "could not be read (needs the right servicequotas:GetServiceQuota)" in printed.out


def test_every_mistake_of_one_file_is_told_at_once(
    aws: Aws,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A region without the type, an AMI that is gone, a quota of zero, an open group, a key pair that is not there."""
    group = aws.ec2.create_security_group(GroupName="open", Description="-")["GroupId"]
    rule = {"IpProtocol": "tcp", "FromPort": 8265, "ToPort": 8265, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    aws.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
    del aws.images[UBUNTU]
    aws.quotas["L-1216C47A"] = 0

    def change(config: dict[str, Any]) -> None:
        config["provider"]["security_group"] = {"GroupName": "open"}
        config["auth"]["ssh_private_key"] = "~/.ssh/mine.pem"
        for entry in config["available_node_types"].values():
            entry["node_config"]["KeyName"] = "mine"
            del entry["node_config"]["IamInstanceProfile"]
        config["setup_commands"][2] = config["setup_commands"][2].replace(
            "ray[default]==2.60.0", "ray[default]==2.59.0"
        )

    said = problems(changed(tmp_path, "aws-p3-2xlarge", change), capsys)
    wanted = [
        "installs ray 2.59.0 and installed here is 2.60.0: write 2.60.0",
        "us-east-1 does not offer p3.2xlarge (AWS no longer lists p3.2xlarge): set provider.region",
        f"AMI {UBUNTU} is not in us-east-1: set ImageId",
        f"security group {group} (open) lets the whole world reach ports 8265 to 8265",
        "auth.ssh_private_key=~/.ssh/mine.pem is no file",
        "us-east-1 has no key pair mine (KeyName of head)",
        'quota "Running On-Demand Standard instances" is 0 vCPUs in us-east-1 and one m5.2xlarge (head) takes 8',
    ]
    for sentence in wanted:
        assert sum(sentence in line for line in said) == 1, (sentence, said)
    assert all(": " in line and line.endswith(".") for line in said), said


def test_no_key_and_a_wrong_key(
    aws: Aws,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for error, sentence in {
        "InvalidClientTokenId": "AWS refuses the key of the environment (InvalidClientTokenId): make a new one",
        "ExpiredToken": "log in again where it has run out",
    }.items():
        aws.bad_key = error
        (said,) = problems("cluster/aws-p4d.yaml", capsys)
        assert sentence in said and "testing" not in said
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (said,) = problems("cluster/aws-p4d.yaml", capsys)
    assert "no AWS key is found: run `aws configure`" in said


def test_a_key_without_rights_is_told_which(
    aws: Aws,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = "cluster/aws-p3-2xlarge.yaml"
    aws.denied = {"DescribeImages", "DescribeSecurityGroups", "GetServiceQuota"}
    said = problems(path, capsys)
    assert (
        sum("the AWS key lacks the rights ec2:DescribeImages, ec2:DescribeSecurityGroups: " in line for line in said)
        == 1
    )
    assert not any("quota" in line for line in said)  # launching needs no quotas read
    aws.denied = {"CreateRole"}
    assert main(["cluster", "prepare", path]) == 2
    assert "the AWS key may not CreateRole: let an administrator run" in capsys.readouterr().err


def test_two_clusters_of_one_name(
    aws: Aws,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = "cluster/aws-p3-2xlarge.yaml"

    def run(kind: str, node_type: str) -> str:
        tags = {"ray-cluster-name": "raygpt-aws-p3-2xlarge", "ray-user-node-type": node_type}
        return aws.ec2.run_instances(
            ImageId=aws.images[DLAMI],
            InstanceType=kind,
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[
                {"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
            ],
        )["Instances"][0]["InstanceId"]

    run("m5.2xlarge", "head")
    # this one, running: `ray up` updates it
    assert not any("another cluster" in line for line in problems(path, capsys))
    other = run("p4d.24xlarge", "spot")
    (said,) = [line for line in problems(path, capsys) if "another cluster" in line]
    assert f"named raygpt-aws-p3-2xlarge runs in us-east-1 (2 machines, such as {other} (p4d.24xlarge))" in said
    assert "set another cluster_name" in said


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("provider: [aws", "is no YAML ("),
        ("- 1", "is no cluster file: it has neither provider nor kind: RayJob"),
        ("cluster_name: a\nprovider: {type: aws, region: us-east-1}\nidle_timeout_minutez: 3", "idle_timeout_minutez"),
        ("cluster_name: 3\nprovider: {type: aws, region: us-east-1}", ", at cluster_name (3 is not of type 'string')"),
        ("cluster_name: a\nprovider: {type: aws, region: us-east-7}", "provider.region=us-east-7 is no region of AWS"),
        ("cluster_name: a\nprovider: {type: amazon}", "Ray does not take"),
    ],
)
def test_a_file_that_is_none(text: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    (said,) = problems(str(path), capsys)
    assert sentence in said
