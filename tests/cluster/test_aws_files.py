"""cluster/aws-*.yaml: what Ray's own launcher makes of them, held against moto's AWS. Nothing is launched."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from raygpt.cluster.check import prepared_config, read
from raygpt.prices import machine
from tests.cluster.moto_aws import Aws, aws  # noqa: F401 (a fixture)

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "cluster").glob("aws-*.yaml"))
NAMES = [path.stem for path in FILES]
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line and line[0] != "#"
)
every_file = pytest.mark.parametrize("path", FILES, ids=NAMES)


@pytest.fixture(autouse=True)
def _from_the_checkout(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    yield


def gpu_types(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: entry for name, entry in config["available_node_types"].items() if name != config["head_node_type"]}


def header(path: Path) -> str:
    lines = path.read_text().splitlines()
    return "\n".join(
        line.lstrip("# ") for line in lines[: next(i for i, s in enumerate(lines) if not s.startswith("#"))]
    )


def test_there_is_a_file_for_every_machine() -> None:
    assert NAMES == ["aws-g5", "aws-g6e", "aws-p3-2xlarge", "aws-p3dn-24xlarge", "aws-p4d", "aws-p5"]


@every_file
def test_ray_takes_the_file_and_every_machine_says_what_it_is(path: Path) -> None:
    config = prepared_config(read(str(path)), str(path))
    assert config["available_node_types"][config["head_node_type"]]["max_workers"] == 0
    assert config["idle_timeout_minutes"] <= 15 and config["provider"]["cache_stopped_nodes"] is False
    for entry in config["available_node_types"].values():
        node = entry["node_config"]
        kind = machine(node["InstanceType"])
        spot = node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        assert entry["labels"] == {
            "raygpt.io/instance-type": kind.name,
            "raygpt.io/market": "spot" if spot else "on-demand",
        }
        assert entry["resources"].get("GPU", 0) == kind.gpus and entry["resources"]["CPU"] == kind.cpus
        assert node["InstanceInitiatedShutdownBehavior"] == "terminate"
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert node["ImageId"].startswith("resolve:ssm:/aws/service/") and node["IamInstanceProfile"]["Name"]


@every_file
def test_spot_comes_first_and_on_demand_beside_it(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    spot, on_demand = (gpu_types(config)[name] for name in ("spot", "on_demand"))
    assert spot["node_config"].pop("InstanceMarketOptions") == {
        "MarketType": "spot",
        "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
    }
    assert spot["node_config"] == on_demand["node_config"]
    assert spot["priority"] > on_demand.get("priority", 0) and spot["resources"] == on_demand["resources"]
    assert "InstanceMarketOptions" not in config["available_node_types"]["head"]["node_config"]


@every_file
def test_versions_are_those_of_constraints_and_the_wheel_fits_the_gpu(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    install = next(command for command in config["setup_commands"] if "pip install" in command)
    assert (
        f'"ray[default]=={PINS["ray"]}" "torch=={PINS["torch"]}"' in install
        and "-c ~/raygpt/constraints.txt" in install
    )
    # a V100 is sm_70, which PyTorch has in its CUDA 12.6 build alone
    v100 = any("V100" in (machine(e["node_config"]["InstanceType"]).gpu or "") for e in gpu_types(config).values())
    assert ("--torch-backend cu126" in install) == v100
    assert any("uv venv" in command and "--python 3.11" in command for command in config["setup_commands"])
    assert "Python 3.11" in (ROOT / "constraints.txt").read_text()


@every_file
def test_nothing_listens_to_the_world_and_ray_asks_for_a_token(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head and "RAY_health_check_timeout_ms" in head
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("RAY_AUTH_MODE=token" in command for command in config["setup_commands"])
    assert "IpPermissions" not in config["provider"].get("security_group", {})
    for start in ("head_start_ray_commands", "worker_start_ray_commands"):
        stores = re.findall(r"--object-store-memory=(\d+)", " ".join(config[start]))
        assert len(stores) == 1 and 1e9 <= int(stores[0]) <= 16e9
        assert any("end_without_ray.sh" in command for command in config[start])
    for local in set(config["file_mounts"].values()) - {"~/.ray/auth_token"}:
        assert (ROOT / local).exists(), local


@every_file
def test_the_header_has_dated_prices_of_the_one_table_and_commands_that_exist(path: Path) -> None:
    config, text = yaml.safe_load(path.read_text()), header(path)
    for name in {e["node_config"]["InstanceType"] for e in config["available_node_types"].values()}:
        kind = machine(name)
        said = f"${kind.price:.10g} an hour on demand, read {kind.read}" if kind.price else "price not known here"
        assert f"{name}: {said}" in text
        assert kind.spot is None or f"spot ${kind.spot:g}" in text
    assert f"ray up -y cluster/{path.name}" in text and f"ray down -y cluster/{path.name}" in text
    assert f"raygpt cluster check cluster/{path.name}" in text and f"raygpt cluster prepare cluster/{path.name}" in text
    submit = re.search(
        r"ray job submit --address \S+ --working-dir \. \\\n-- python (jobs/\w+\.py) --config (jobs/configs/\S+\.yaml)",
        text,
    )
    assert submit is not None and all((ROOT / part).is_file() for part in submit.groups())
    if "p3" in path.name:
        assert "AWS no longer lists p3.2xlarge" in " ".join(text.split())


def test_prepared_every_file_bootstraps_in_a_region_that_has_its_machines(aws: Aws) -> None:  # noqa: F811
    """Ray's own bootstrap, as `ray up` calls it: key pair, subnet, security group, AMI."""
    from ray.autoscaler._private.aws.config import bootstrap_aws

    from raygpt.cluster.aws.prepare import prepare

    said: list[str] = []
    for path in FILES:
        config = prepared_config(read(str(path)), str(path))
        prepare(config, said.append)
        made = bootstrap_aws(config)
        groups = set()
        for name, entry in made["available_node_types"].items():
            node = entry["node_config"]
            kind = machine(node["InstanceType"])
            assert kind.retired or aws.offers(kind.name), kind.name
            assert aws.ssm.get_parameter(Name=node["ImageId"].removeprefix("resolve:ssm:"))["Parameter"]["Value"]
            assert node["KeyName"] and node["SubnetIds"]
            groups |= set(node["SecurityGroupIds"])
            cards = node.get("NetworkInterfaces", [])
            if name != "head" and kind.name != "p3.2xlarge":
                assert [card["InterfaceType"] for card in cards] == ["efa"] and cards[0]["AssociatePublicIpAddress"]
                assert node["Placement"]["GroupName"] in aws.placement_groups
        (group,) = aws.ec2.describe_security_groups(GroupIds=sorted(groups))[
            "SecurityGroups"
        ]  # one, of head and workers
        world = [rule["FromPort"] for rule in group["IpPermissions"] if rule["IpRanges"]]
        among = [rule for rule in group["IpPermissions"] if rule["UserIdGroupPairs"]]
        assert world == [22]
        assert [rule["UserIdGroupPairs"][0]["GroupId"] for rule in among] == [group["GroupId"]]
        if path.stem != "aws-p3-2xlarge":  # EFA needs it both ways
            out = [pair["GroupId"] for rule in group["IpPermissionsEgress"] for pair in rule["UserIdGroupPairs"]]
            assert out == [group["GroupId"]]
    assert any("EFA on 1 of 32 cards" in sentence for sentence in said)


def test_workers_reach_s3_and_the_head_may_hand_their_role_on(aws: Aws) -> None:  # noqa: F811
    from raygpt.cluster.aws.prepare import prepare

    config = prepared_config(read("cluster/aws-p3-2xlarge.yaml"), "")
    config["metadata"]["s3_bucket"] = "mine"
    prepare(config, lambda sentence: None)
    prepare(config, lambda sentence: None)  # twice is once
    rights: dict[str, list[dict[str, Any]]] = {}
    for name in ("raygpt-head", "raygpt-worker"):
        (role,) = aws.iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]
        policy = aws.iam.get_role_policy(RoleName=role["RoleName"], PolicyName=config["cluster_name"])["PolicyDocument"]
        rights[name] = (policy if isinstance(policy, dict) else json.loads(policy))["Statement"]
    worker, head = rights["raygpt-worker"], rights["raygpt-head"]
    assert {right for s in worker for right in s["Action"]} >= {"s3:GetObject", "s3:PutObject", "s3:ListBucket"}
    assert {s["Resource"] for s in worker} == {"arn:aws:s3:::mine", "arn:aws:s3:::mine/*"}
    assert all(statement in head for statement in worker)
    (passing,) = [s for s in head if s["Action"] == "iam:PassRole"]
    assert [arn.rpartition("/")[2] for arn in passing["Resource"]] == ["raygpt-worker"]
    (ending,) = [s for s in head if "ec2:TerminateInstances" in s["Action"]]
    assert "ray-cluster-name" in json.dumps(ending["Condition"])  # machines of Ray, and no others


def test_without_public_addresses_every_card_carries_efa() -> None:
    from raygpt.cluster.aws.prepare import interfaces

    cards = interfaces(32, subnet="subnet-1", group="sg-1", public=False, efa=True)
    kinds = [card["InterfaceType"] for card in cards]
    assert kinds.count("efa-only") == 32 and kinds.count("interface") == 1 and kinds[0] == "interface"
    assert {card["NetworkCardIndex"] for card in cards} == set(range(32))
    assert len({(card["NetworkCardIndex"], card["DeviceIndex"]) for card in cards}) == 33
    assert not any("AssociatePublicIpAddress" in card for card in cards)
    assert all(card["SubnetId"] == "subnet-1" and card["Groups"] == ["sg-1"] for card in cards)


def test_two_files_share_roles_and_keep_a_bucket_each(aws: Aws) -> None:  # noqa: F811
    from raygpt.cluster.aws.prepare import prepare

    for stem, bucket in (("aws-p3-2xlarge", "one"), ("aws-g5", "other")):
        config = prepared_config(read(f"cluster/{stem}.yaml"), "")
        config["metadata"]["s3_bucket"] = bucket
        prepare(config, lambda sentence: None)
    names = aws.iam.list_role_policies(RoleName="raygpt-worker")["PolicyNames"]
    policies = [aws.iam.get_role_policy(RoleName="raygpt-worker", PolicyName=name)["PolicyDocument"] for name in names]
    assert len(names) == 2 and all(f"arn:aws:s3:::{name}/*" in json.dumps(policies) for name in ("one", "other"))
