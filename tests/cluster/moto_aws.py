"""moto's AWS in this process, with what it has not: placement groups, EC2's quotas, and the AMIs the files name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

UBUNTU = "/aws/service/canonical/ubuntu/server/22.04/stable/current/amd64/hvm/ebs-gp2/ami-id"
DLAMI = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"


class Aws:
    """Clients, and what moto keeps no record of. `denied` are the calls that the key may not make, `quotas` EC2's by
    code (vCPUs), `images` SSM's names of AMIs."""

    def __init__(self) -> None:
        import boto3

        self.session = boto3.Session(region_name="us-east-1")
        self.ec2, self.iam = self.session.client("ec2"), self.session.client("iam")
        self.ssm = self.session.client("ssm")
        self.placement_groups: set[str] = set()
        self.denied: set[str] = set()
        self.bad_key: str | None = None
        self.quotas: dict[str, float] = {}
        image = self.ec2.register_image(Name="a base image", RootDeviceName="/dev/sda1")["ImageId"]
        self.images = {UBUNTU: image, DLAMI: image}

    def offers(self, name: str) -> bool:
        wanted = [{"Name": "instance-type", "Values": [name]}]
        return bool(self.ec2.describe_instance_type_offerings(Filters=wanted)["InstanceTypeOfferings"])

    def answer(self, operation: str, wanted: dict[str, Any]) -> dict[str, Any] | None:
        """None: moto answers."""
        from botocore.exceptions import ClientError

        def refuse(code: str, message: str) -> ClientError:
            return ClientError({"Error": {"Code": code, "Message": message}}, operation)  # type: ignore[arg-type]

        if self.bad_key:
            raise refuse(self.bad_key, "The security token included in the request is invalid.")
        if operation in self.denied:
            raise refuse("UnauthorizedOperation" if operation != "GetServiceQuota" else "AccessDeniedException", "no")
        if operation == "CreatePlacementGroup":
            if wanted["GroupName"] in self.placement_groups:
                raise refuse("InvalidPlacementGroup.Duplicate", "exists")
            self.placement_groups.add(wanted["GroupName"])
            return {}
        if operation == "GetServiceQuota":
            return {"Quota": {"Value": self.quotas.get(wanted["QuotaCode"], 5000.0)}}
        if operation == "GetParameter" and wanted["Name"].startswith(("/aws/service/canonical", "/aws/service/deep")):
            if wanted["Name"] not in self.images:
                raise refuse("ParameterNotFound", "")
            return {"Parameter": {"Value": self.images[wanted["Name"]]}}
        return None


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Aws]:
    """A fresh account in us-east-1, its key in the environment and a home of its own."""
    import botocore.client
    import botocore.loaders
    from moto import mock_aws

    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "HOME": str(tmp_path),
        "MOTO_EC2_LOAD_DEFAULT_AMIS": "false",  # 1,300 of them, read for every account: 0.4 s
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)  # of an S3 server that another test started
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("token")
    here: list[Aws] = []
    moto = botocore.client.BaseClient._make_api_call  # type: ignore[attr-defined]

    def call(client: object, operation: str, wanted: dict[str, Any]) -> Any:
        own = here[0].answer(operation, wanted) if here else None
        return moto(client, operation, wanted) if own is None else own

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", call)
    # EC2's description is 5 MB of JSON, read anew by every session
    loader = _LOADER[0] if _LOADER else botocore.loaders.create_loader()
    _LOADER[:] = [loader]
    monkeypatch.setattr(botocore.loaders, "create_loader", lambda *paths: loader)
    with mock_aws():
        here.append(Aws())
        yield here[0]
    from ray.autoscaler._private.aws import utils

    utils.resource_cache.cache_clear()
    utils.client_cache.cache_clear()


_LOADER: list[Any] = []
