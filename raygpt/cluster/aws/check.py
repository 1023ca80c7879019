"""What AWS says of a cluster file before it costs anything: key, rights, types, AMIs, quotas, network, names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raygpt.cluster.aws.api import DENIED, Account, code
from raygpt.cluster.aws.prepare import SSH, node_types, profile_name, template_name
from raygpt.cluster.findings import Findings
from raygpt.errors import one_line
from raygpt.prices import MACHINES

SSM = "resolve:ssm:"
ALIVE = ["pending", "running", "stopping", "stopped"]
# vCPUs of all running machines of a kind: the first letters of a type, quota on demand, quota on spot
# (`aws service-quotas list-service-quotas --service-code ec2`)
QUOTAS = (
    (
        ("g", "vt"),
        ("L-DB2E81BA", "Running On-Demand G and VT instances"),
        ("L-3819A6DF", "All G and VT Spot Instance Requests"),
    ),
    (("p5",), ("L-417A185B", "Running On-Demand P instances"), ("L-C4BD4855", "All P5 Spot Instance Requests")),
    (
        ("p",),
        ("L-417A185B", "Running On-Demand P instances"),
        ("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
    ),
    (
        ("a", "c", "d", "h", "i", "m", "r", "t", "z"),
        ("L-1216C47A", "Running On-Demand Standard instances"),
        ("L-34B43A08", "All Standard Spot Instance Requests"),
    ),
)


def inspect(config: dict[str, Any], path: str) -> Findings:
    """What AWS says of `config`, read from `path`. Raises UserError without a region or a good key."""
    from botocore.exceptions import BotoCoreError, ClientError

    found = Findings()
    account = Account(config["provider"]["region"])
    who, _ = account.whoami()
    found.verified.append(f"the AWS key is {who}'s")
    for look in (_types, _images, _profiles, _network, _key_pair, _name, _quotas, _launch):
        try:
            look(account, config, path, found)
        except (ClientError, BotoCoreError) as error:
            found.problems.append(
                f"AWS was asked for {look.__name__.strip('_')} and failed ({one_line(error, 160)}): try again."
            )
    if account.denied:
        found.problems.append(
            f"the AWS key lacks the rights {', '.join(sorted(account.denied))}: what they show was not checked; let an "
            "administrator allow them (docs/cluster/aws.md has the list)."
        )
    return found


def _types(account: Account, config: dict[str, Any], path: str, found: Findings) -> None:
    ec2 = account.client("ec2")
    names = sorted({node["InstanceType"] for _, node in node_types(config)})
    offers = account.ask(
        "ec2:DescribeInstanceTypeOfferings",
        lambda: ec2.describe_instance_type_offerings(
            LocationType="region", Filters=[{"Name": "instance-type", "Values": names}]
        )["InstanceTypeOfferings"],
    )
    if offers is None:
        return
    missing = sorted(set(names) - {offer["InstanceType"] for offer in offers})
    if missing:
        gone = [name for name in missing if any(m.name == name and m.retired for m in MACHINES)]
        why = f" (AWS no longer lists {', '.join(gone)})" if gone else ""
        found.problems.append(
            f"{account.region} does not offer {', '.join(missing)}{why}: set provider.region to a region that does, or "
            "take another file of cluster/."
        )
    else:
        found.verified.append(f"{account.region} offers {', '.join(names)}")


def _images(account: Account, config: dict[str, Any], path: str, found: Findings) -> None:
    from botocore.exceptions import ClientError

    ec2, ssm = account.client("ec2"), account.client("ssm")
    for image in sorted({node.get("ImageId", "") for _, node in node_types(config)}):
        named = image.removeprefix(SSM)
        try:
            ami: str | None = image
            if image.startswith(SSM):
                ami = account.ask(
                    "ssm:GetParameter",
                    lambda: ssm.get_parameter(Name=named)["Parameter"]["Value"],  # noqa: B023
                )
            if ami is None:
                continue
            answer = account.ask("ec2:DescribeImages", lambda: ec2.describe_images(ImageIds=[ami])["Images"])  # noqa: B023
        except ClientError as error:
            if code(error) not in {"ParameterNotFound", "InvalidAMIID.NotFound", "InvalidAMIID.Malformed"}:
                raise
            answer = []
        if answer == []:
            found.problems.append(
                f"AMI {named} is not in {account.region}: set ImageId to one that is, `aws ssm get-parameters-by-path "
                f"--path /aws/service/deeplearning/ami/x86_64 --recursive --region {account.region}` lists them."
            )
        elif answer:
            found.verified.append(f"AMI {ami} is {answer[0].get('Name', 'there')}")


def _profiles(account: Account, config: dict[str, Any], path: str, found: Findings) -> None:
    from botocore.exceptions import ClientError

    iam = account.client("iam")
    for name in sorted({name for _, node in node_types(config) if (name := profile_name(node))}):
        try:
            answer = account.ask(
                "iam:GetInstanceProfile",
                lambda: iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"],  # noqa: B023
            )
        except ClientError as error:
            if code(error) != "NoSuchEntity":
                raise
            answer = {"Roles": []}
        if answer and not answer["Roles"]:
            found.problems.append(
                f"instance profile {name}, with which machines reach S3, is not there or has no role: run "
                f"`raygpt cluster prepare {path}`."
            )
        elif answer:
            found.verified.append(f"instance profile {name} has a role")


def _network(account: Account, config: dict[str, Any], path: str, found: Findings) -> None:
    """Launch templates are there, and no security group lets the world in but through SSH."""
    from botocore.exceptions import ClientError

    ec2 = account.client("ec2")
    groups: set[str] = {group for _, node in node_types(config) for group in node.get("SecurityGroupIds", [])}
    for name in sorted({name for _, node in node_types(config) if (name := template_name(node))}):
        try:
            versions = account.ask(
                "ec2:DescribeLaunchTemplateVersions",
                lambda: ec2.describe_launch_template_versions(LaunchTemplateName=name, Versions=["$Default"]),  # noqa: B023
            )
        except ClientError as error:
            if not code(error).startswith("InvalidLaunchTemplateName"):
                raise
            found.problems.append(f"launch template {name} is not there: run `raygpt cluster prepare {path}`.")
            continue
        if versions:
            cards = versions["LaunchTemplateVersions"][0]["LaunchTemplateData"].get("NetworkInterfaces", [])
            efa = sum(card.get("InterfaceType", "").startswith("efa") for card in cards)
            found.verified.append(f"launch template {name} has {efa or 'no'} EFA interface{'s' * (efa > 1)}")
            groups |= {group for card in cards for group in card.get("Groups", [])}
    asked = (
        {"GroupIds": sorted(groups)}
        if groups
        else {"Filters": [{"Name": "group-name", "Values": _group_names(config)}]}
    )
    try:
        answer = account.ask(
            "ec2:DescribeSecurityGroups", lambda: ec2.describe_security_groups(**asked)["SecurityGroups"]
        )
    except ClientError as error:
        if code(error) != "InvalidGroup.NotFound":
            raise
        found.problems.append(
            f"a security group of {', '.join(sorted(groups))} is gone: run `raygpt cluster prepare {path}`."
        )
        return
    for group in answer or []:
        if ports := _open_to_all(group):
            found.problems.append(
                f"security group {group['GroupId']} ({group['GroupName']}) lets the whole world reach {ports}, and Ray "
                "runs whatever reaches its ports: leave port 22 and the group itself."
            )
        else:
            found.verified.append(
                f"security group {group['GroupId']} ({group['GroupName']}) lets in SSH and itself alone"
            )


def _group_names(config: dict[str, Any]) -> list[str]:
    named = config["provider"].get("security_group", {}).get("GroupName")
    return [named or f"ray-autoscaler-{config['cluster_name']}"]


def _open_to_all(group: dict[str, Any]) -> str:
    """The ports but SSH's that any address may reach, in words; empty when there are none."""
    ports = []
    for rule in group["IpPermissions"]:
        world = [r for r in rule.get("IpRanges", []) if r.get("CidrIp") == "0.0.0.0/0"]
        world += [r for r in rule.get("Ipv6Ranges", []) if r.get("CidrIpv6") == "::/0"]
        first, last = rule.get("FromPort", -1), rule.get("ToPort", -1)
        if world and (first, last) != (SSH, SSH):
            ports.append("all ports" if first == -1 else f"ports {first} to {last}")
    return ", ".join(ports)


def _key_pair(account: Account, config: dict[str, Any], path: str, found: Findings) -> None:
    from botocore.exceptions import ClientError

    ec2 = account.client("ec2")
    key = config.get("auth", {}).get("ssh_private_key")
    if not key:
        found.verified.append("the SSH key pair is Ray's own, made where it is missing")
        return
    if not Path(key).expanduser().is_file():
        found.problems.append(f"auth.ssh_private_key={key} is no file: name the key's file, or leave it to Ray.")
    for kind, node in node_types(config):
        name = node.get("KeyName")
        if not name:
            found.problems.append(
                f"node type {kind} has no KeyName beside auth.ssh_private_key: add the key pair's name."
            )
            continue
        try:
            account.ask("ec2:DescribeKeyPairs", lambda: ec2.describe_key_pairs(KeyNames=[name]))  # noqa: B023
        except ClientError as error:
            if code(error) != "InvalidKeyPair.NotFound":
                raise
            found.problems.append(
                f"{account.region} has no key pair {name} (KeyName of {kind}): run `aws ec2 import-key-pair`, or leave "
                "KeyName and auth.ssh_private_key to Ray."
            )


def _name(account: Account, config: dict[str, Any], path: str, found: Findings) -> None:
    """Another cluster of that name: `ray up` would take its head for this file's."""
    ec2 = account.client("ec2")
    name = config["cluster_name"]
    filters = [
        {"Name": "tag:ray-cluster-name", "Values": [name]},
        {"Name": "instance-state-name", "Values": ALIVE},
    ]
    answer = account.ask("ec2:DescribeInstances", lambda: ec2.describe_instances(Filters=filters)["Reservations"])
    if answer is None:
        return
    machines = [machine for reservation in answer for machine in reservation["Instances"]]
    if not machines:
        found.verified.append(f"no cluster named {name} runs in {account.region}")
        return
    mine = {kind: node["InstanceType"] for kind, node in node_types(config)}
    others = [m for m in machines if mine.get(_tag(m, "ray-user-node-type")) != m["InstanceType"]]
    keys = {m.get("KeyName") for m in machines} - {None}
    held = all((Path.home() / ".ssh" / f"{key}.pem").is_file() for key in keys) or config["auth"].get("ssh_private_key")
    first = (others or machines)[0]
    said = (
        f"{len(machines)} machine{'s' * (len(machines) > 1)}, such as {first['InstanceId']} ({first['InstanceType']})"
    )
    if others or not held:
        found.problems.append(
            f"another cluster named {name} runs in {account.region} ({said}), and `ray up` would change that one: set "
            "another cluster_name, or end it with `ray down`."
        )
    else:
        found.verified.append(f"this cluster runs already ({said}); `ray up` brings it up to date")


def _tag(machine: dict[str, Any], key: str) -> str:
    return next((tag["Value"] for tag in machine.get("Tags", []) if tag["Key"] == key), "")


def _quotas(account: Account, config: dict[str, Any], path: str, found: Findings) -> None:
    """Each node type that may be launched fits at least once."""
    from botocore.exceptions import BotoCoreError, ClientError

    quotas = account.client("service-quotas")
    cpus = {machine.name: machine.cpus for machine in MACHINES}
    seen: set[tuple[str, str]] = set()
    for kind, node in node_types(config):
        entry, name = config["available_node_types"][kind], node["InstanceType"]
        spot = node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        head = kind == config["head_node_type"]
        if name not in cpus or not (head or entry.get("max_workers", config.get("max_workers", 0))):
            continue
        known = next((row for row in QUOTAS if name.startswith(row[0])), None)
        if known is None:
            continue
        number, title = known[2] if spot else known[1]
        if (number, name) in seen:
            continue
        seen.add((number, name))
        try:
            answer = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=number)["Quota"]["Value"]
        except (ClientError, BotoCoreError) as error:
            # named, and no reason to stop: a key that launches machines need not read quotas
            why = "needs the right servicequotas:GetServiceQuota" if code(error) in DENIED else one_line(error, 120)
            found.unknown.append(f'quota "{title}" could not be read ({why})')
            continue
        if answer < cpus[name]:
            found.problems.append(
                f'quota "{title}" is {answer:g} vCPUs in {account.region} and one {name} ({kind}) takes {cpus[name]}: '
                f"run `aws service-quotas request-service-quota-increase --service-code ec2 --quota-code {number} "
                f"--desired-value {cpus[name] * max(1, entry.get('max_workers', 1))} --region {account.region}` and "
                f"wait for the mail, or set max_workers: 0 of {kind}."
            )
        else:
            enough = int(answer // cpus[name])
            found.verified.append(f'quota "{title}" is {answer:g} vCPUs, enough for {enough} {name}')


def _launch(account: Account, config: dict[str, Any], path: str, found: Findings) -> None:
    """AWS is asked whether it would launch each node type; `DryRun` launches none."""
    from botocore.exceptions import ClientError

    if found.problems:
        return  # it would say one of them again, in its own words
    ec2 = account.client("ec2")
    fine = []
    for kind, node in node_types(config):
        wanted = {k: node[k] for k in ("ImageId", "InstanceType", "IamInstanceProfile", "LaunchTemplate") if k in node}
        try:
            ec2.run_instances(DryRun=True, MinCount=1, MaxCount=1, **wanted)
        except ClientError as error:
            if code(error) == "DryRunOperation":
                fine.append(kind)
            elif code(error) in DENIED:
                account.denied |= {"ec2:RunInstances", "iam:PassRole"}
            else:
                found.problems.append(f"AWS would not launch node type {kind}: {one_line(error, 200)}.")
    if fine:
        found.verified.append(f"AWS would launch {', '.join(fine)} with this key (dry run)")
