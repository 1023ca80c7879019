"""AWS as raygpt asks it: clients of one region, and what a refusal means."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from raygpt.errors import UserError, one_line

Answer = TypeVar("Answer")
DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "UnauthorizedException"}
BAD_KEY = {
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}


class Account:
    """An account in one region. `denied` collects the rights that the key was found to lack."""

    def __init__(self, region: str) -> None:
        import boto3
        from botocore.config import Config

        self.region = region
        self.session = boto3.Session(region_name=region)
        if region not in self.session.get_available_regions("ec2"):
            raise UserError(f"provider.region={region} is no region of AWS: take one such as us-east-1.")
        self.config = Config(connect_timeout=10, read_timeout=30, retries={"max_attempts": 3, "mode": "standard"})
        self.denied: set[str] = set()

    def client(self, service: str) -> Any:
        return self.session.client(service, config=self.config)

    def ask(self, right: str, call: Callable[[], Answer]) -> Answer | None:
        """The answer of `call`, None where the key lacks `right` (ec2:DescribeImages). Another error of AWS passes."""
        from botocore.exceptions import ClientError

        try:
            return call()
        except ClientError as error:
            if code(error) in DENIED:
                self.denied.add(right)
                return None
            raise

    def whoami(self) -> tuple[str, str]:
        """Who the key belongs to and the account's number, asked of AWS. Raises UserError without a good key."""
        from botocore.exceptions import BotoCoreError, ClientError

        keys = self.session.get_credentials()
        if keys is None:
            raise UserError(
                "no AWS key is found: run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )
        where = {"env": "the environment", "shared-credentials-file": "~/.aws/credentials"}.get(
            str(keys.method), str(keys.method)
        )
        if profile := os.environ.get("AWS_PROFILE"):
            where += f" (AWS_PROFILE={profile})"
        try:
            answer: Mapping[str, str] = self.client("sts").get_caller_identity()
        except ClientError as error:
            if code(error) not in BAD_KEY:
                raise UserError(f"AWS does not say whose key this is ({one_line(error, 160)}): try again.") from error
            raise UserError(
                f"AWS refuses the key of {where} ({code(error)}): make a new one in the console under IAM, or log in "
                "again where it has run out, and run `aws configure`."
            ) from error
        except BotoCoreError as error:
            raise UserError(
                f"AWS cannot be asked with the key of {where} ({one_line(error, 160)}): mend the network or the key."
            ) from error
        return answer["Arn"], answer["Account"]


def code(error: BaseException) -> str:
    """AWS's own name of an error, such as InvalidAMIID.NotFound; empty for what is none of its errors."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
