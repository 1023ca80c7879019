"""`raygpt cluster prepare`: what a cluster file names and Ray does not make, once for an account and a region.

Roles: Ray gives the head a role that may not pass another one on, so that workers of `ray up` reach no S3. Here the
head's may launch, end its own machines and pass the workers' role, and both may use the buckets of metadata.s3_bucket.
Network: interfaces with EFA have to name their subnet and security group, which no file can know. They go to launch
templates, which Ray merges into a node type. Nothing made here costs money, and all of it may be made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from raygpt.cluster.aws.api import DENIED, Account, code
from raygpt.errors import UserError, one_line

BUCKET_RIGHTS = ["s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"]
OBJECT_RIGHTS = [
    "s3:GetObject",
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
]
EC2_TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}
SSH = 22


def prepare(config: dict[str, Any], say: Callable[[str], None] = print) -> None:
    """Make what is missing of what `config` names. Raises UserError where the key or the region does not allow it."""
    from botocore.exceptions import ClientError

    account = Account(config["provider"]["region"])
    _, number = account.whoami()
    try:
        _roles(account, config, number, say)
        if any(template_name(node) for _, node in node_types(config)):
            _network(account, config, say)
    except ClientError as error:
        if code(error) in DENIED:
            raise UserError(
                f"the AWS key may not {error.operation_name}: let an administrator run `raygpt cluster prepare` once, "
                "or allow it (docs/cluster/aws.md has the list)."
            ) from error
        raise UserError(f"AWS refused {error.operation_name}: {one_line(error, 300)}.") from error


def node_types(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each node type's name and node_config, the head's first."""
    head = config["head_node_type"]
    for name in sorted(config["available_node_types"], key=lambda name: name != head):
        yield name, config["available_node_types"][name]["node_config"]


def profile_name(node: dict[str, Any]) -> str | None:
    """The instance profile that a node_config names."""
    profile = node.get("IamInstanceProfile", {})
    return profile.get("Name") or profile.get("Arn", "").rpartition("/")[2] or None


def template_name(node: dict[str, Any]) -> str | None:
    """The launch template that a node_config names."""
    return node.get("LaunchTemplate", {}).get("LaunchTemplateName")


def worker_policy(bucket: str) -> dict[str, Any]:
    """What workers may do: read and write that bucket (* for all of the account's), and nothing else."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": BUCKET_RIGHTS, "Resource": f"arn:aws:s3:::{bucket}"},
            {"Effect": "Allow", "Action": OBJECT_RIGHTS, "Resource": f"arn:aws:s3:::{bucket}/*"},
        ],
    }


def head_policy(bucket: str, account: str, workers: list[str]) -> dict[str, Any]:
    """What the head may do: what workers may, launch machines with the workers' roles, and end machines of Ray."""
    allow = worker_policy(bucket)
    allow["Statement"] += [
        {"Effect": "Allow", "Action": ["ec2:Describe*", "ec2:RunInstances", "ec2:CreateTags"], "Resource": "*"},
        {
            "Effect": "Allow",
            "Action": ["ec2:TerminateInstances", "ec2:StartInstances", "ec2:StopInstances"],
            "Resource": "*",
            "Condition": {"StringLike": {"ec2:ResourceTag/ray-cluster-name": "*"}},
        },
        # the newest AMI of a line, named in ImageId
        {"Effect": "Allow", "Action": ["ssm:GetParameter*"], "Resource": "arn:aws:ssm:*:*:parameter/aws/service/*"},
        {
            "Effect": "Allow",
            "Action": "iam:PassRole",
            "Resource": [f"arn:aws:iam::{account}:role/{name}" for name in workers],
            "Condition": {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}},
        },
        # AWS makes this role with an account's first spot machine
        {
            "Effect": "Allow",
            "Action": "iam:CreateServiceLinkedRole",
            "Resource": "*",
            "Condition": {"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}},
        },
    ]
    return allow


def interfaces(cards: int, *, subnet: str, group: str, public: bool, efa: bool) -> list[dict[str, Any]]:
    """The network interfaces of a machine with `cards` network cards.

    AWS gives a public address only to a machine of one interface, so that one card carries EFA then. Without public
    addresses the first card has an ordinary interface beside its EFA one, and every other card an EFA one (AWS EC2 User
    Guide, "Maximize network bandwidth").
    """
    common = {"SubnetId": subnet, "Groups": [group], "DeleteOnTermination": True}
    if public or not efa:
        first = {"NetworkCardIndex": 0, "DeviceIndex": 0, "InterfaceType": "efa" if efa else "interface"}
        return [{**first, **common, **({"AssociatePublicIpAddress": True} if public else {})}]
    place = [(0, 0, "interface"), (0, 1, "efa-only"), *((card, 0, "efa-only") for card in range(1, cards))]
    return [{"NetworkCardIndex": card, "DeviceIndex": at, "InterfaceType": kind, **common} for card, at, kind in place]


def _roles(account: Account, config: dict[str, Any], number: str, say: Callable[[str], None]) -> None:
    iam = account.client("iam")
    bucket = config.get("metadata", {}).get("s3_bucket") or "*"
    names = {name: profile_name(node) for name, node in node_types(config)}
    head = names.pop(config["head_node_type"])
    workers = sorted({name for name in names.values() if name})
    policies = {name: worker_policy(bucket) for name in workers}
    if head:
        policies[head] = head_policy(bucket, number, workers)
    for name, policy in policies.items():
        made = _made(lambda: iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(EC2_TRUST)))  # noqa: B023
        # one of each cluster: the files share roles, and what one may use is not taken from another
        iam.put_role_policy(RoleName=name, PolicyName=str(config["cluster_name"]), PolicyDocument=json.dumps(policy))
        _made(lambda: iam.create_instance_profile(InstanceProfileName=name))  # noqa: B023
        profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        if not profile["Roles"]:
            iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
        reach = "all buckets" if bucket == "*" else f"s3://{bucket}"
        say(f"role and instance profile {name}: {'made' if made else 'there'}, may use {reach}")


def _network(account: Account, config: dict[str, Any], say: Callable[[str], None]) -> None:
    ec2 = account.client("ec2")
    public = not config["provider"].get("use_internal_ips", False)
    templates = {template: node for _, node in node_types(config) if (template := template_name(node))}
    subnet = _subnet(ec2, config, {node["InstanceType"] for node in templates.values()})
    group = _security_group(ec2, config, subnet["VpcId"], say)
    head = template_name(dict(node_types(config))[config["head_node_type"]])
    for name, node in templates.items():
        kind = ec2.describe_instance_types(InstanceTypes=[node["InstanceType"]])["InstanceTypes"][0]["NetworkInfo"]
        efa = kind.get("EfaInfo", {}).get("MaximumEfaInterfaces", 0) if name != head else 0
        wanted: dict[str, Any] = {
            "NetworkInterfaces": interfaces(efa, subnet=subnet["SubnetId"], group=group, public=public, efa=bool(efa))
        }
        if efa:
            _made(lambda: ec2.create_placement_group(GroupName=name, Strategy="cluster"))  # noqa: B023
            wanted["Placement"] = {"GroupName": name}
        cards = sum(entry["InterfaceType"].startswith("efa") for entry in wanted["NetworkInterfaces"])
        _template(ec2, name, wanted)
        what = f"EFA on {cards} of {efa} cards, placement group {name}" if efa else "no EFA"
        say(f"launch template {name}: {subnet['AvailabilityZone']}, security group {group}, {what}")


def _template(ec2: Any, name: str, wanted: dict[str, Any]) -> None:
    if _made(lambda: ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=wanted)):
        return
    there = ec2.describe_launch_template_versions(LaunchTemplateName=name, Versions=["$Default"])
    data = there["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    if any(data.get(key) != value for key, value in wanted.items()):
        # running machines do not hang on it
        ec2.delete_launch_template(LaunchTemplateName=name)
        ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=wanted)


def _subnet(ec2: Any, config: dict[str, Any], types: set[str]) -> dict[str, Any]:
    """The subnet that metadata.subnet names, else the default one of a zone that has all those machine types."""
    if named := config.get("metadata", {}).get("subnet"):
        return ec2.describe_subnets(SubnetIds=[named])["Subnets"][0]
    region = config["provider"]["region"]
    offers = ec2.describe_instance_type_offerings(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": sorted(types)}]
    )["InstanceTypeOfferings"]
    here: dict[str, set[str]] = {}
    for offer in offers:
        here.setdefault(offer["Location"], set()).add(offer["InstanceType"])
    zones = {zone for zone, found in here.items() if found == types}
    if wished := config["provider"].get("availability_zone"):
        zones = {zone.strip() for zone in wished.split(",")} & zones
    if not zones:
        raise UserError(
            f"no zone of {region} has all of {', '.join(sorted(types))}: set provider.region to one that has."
        )
    subnets = ec2.describe_subnets(Filters=[{"Name": "default-for-az", "Values": ["true"]}])["Subnets"]
    there = sorted((s for s in subnets if s["AvailabilityZone"] in zones), key=lambda s: str(s["AvailabilityZone"]))
    if not there:
        raise UserError(
            f"{region} has no default subnet in {', '.join(sorted(zones))}: run `aws ec2 create-default-vpc --region "
            f"{region}`, or name a subnet in metadata.subnet."
        )
    return there[0]


def _security_group(ec2: Any, config: dict[str, Any], vpc: str, say: Callable[[str], None]) -> str:
    """All ports among its own machines, both ways as EFA asks, SSH from metadata.ssh_from, and no other way in."""
    name = config["cluster_name"]
    source = config.get("metadata", {}).get("ssh_from") or "0.0.0.0/0"
    found = ec2.describe_security_groups(
        Filters=[{"Name": "group-name", "Values": [name]}, {"Name": "vpc-id", "Values": [vpc]}]
    )["SecurityGroups"]
    if found:
        group, rules = found[0]["GroupId"], found[0]["IpPermissions"]
    else:
        group, rules = (
            ec2.create_security_group(
                GroupName=name, Description="raygpt: SSH, and all ports among its machines", VpcId=vpc
            )["GroupId"],
            [],
        )
    among = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    ssh = {"IpProtocol": "tcp", "FromPort": SSH, "ToPort": SSH, "IpRanges": [{"CidrIp": source}]}
    # another address than last time: the old one no longer gets in
    if stale := [rule for rule in rules if rule.get("FromPort") == SSH]:
        ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=stale)
    for call, rule in (
        (ec2.authorize_security_group_ingress, among),
        (ec2.authorize_security_group_egress, among),
        (ec2.authorize_security_group_ingress, ssh),
    ):
        _made(lambda: call(GroupId=group, IpPermissions=[rule]))  # noqa: B023
    say(f"security group {group} ({name}): all ports among its machines, port {SSH} from {source}, nothing else")
    return group


def _made(call: Callable[[], object]) -> bool:
    """Whether `call` made something; False where it was there already."""
    from botocore.exceptions import ClientError

    try:
        call()
    except ClientError as error:
        if "Duplicate" in code(error) or "AlreadyExists" in code(error):
            return False
        raise
    return True
