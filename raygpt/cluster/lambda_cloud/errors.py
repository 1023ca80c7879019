"""What Lambda's error codes mean for whoever asked: try again, try another region, take it as gone, or give up.

Codes are those of the OpenAPI 1.10.0 (`ApiError*`). The API asks that nobody reads `message` or `suggestion`: they are
shown, never branched on.
"""

from __future__ import annotations

from enum import Enum

from raygpt.errors import UserError

INSUFFICIENT_CAPACITY = "instance-operations/launch/insufficient-capacity"


class Action(Enum):
    RETRY = "ask again later"
    OTHER_REGION = "ask for it in another region"
    GONE = "what was asked for is not there"
    GIVE_UP = "only the user can mend it"


# What the user does about codes that end in GIVE_UP.
WAYS_OUT = {
    "global/invalid-api-key": "make a key at cloud.lambda.ai/api-keys and put it into provider.key_file or "
    "LAMBDA_API_KEY",
    "global/account-inactive": "verify the account's address and means of payment at cloud.lambda.ai",
    "global/invalid-address": "mend the account's billing address at cloud.lambda.ai",
    "global/forbidden": "use a key that may manage instances",
    "global/quota-exceeded": "end machines, take a smaller type or fewer workers, or ask Lambda's support for more",
    "global/duplicate": "choose another name",
    "global/conflict": "look at it in the dashboard and try again",
    "global/invalid-parameters": "mend the cluster's file",
    "instance-operations/launch/file-system-in-wrong-region": "take a filesystem of that region, or leave "
    "provider.filesystem out",
    "filesystems/filesystem-in-use": "end the machines that use it first",
    "firewall-rulesets/firewall-ruleset-in-use": "end the machines that use it first",
}
# The API's own trouble and that of its providers: it passes, and does not say whether anything was done.
PASSING = ("global/internal-error", "provider/")
GONE = ("global/object-does-not-exist", "global/not-found")

OTHERWISE = {
    Action.RETRY: "try again later",
    Action.OTHER_REGION: "take another region or type, or try again later",
    Action.GONE: "look at the names in the cluster's file, and at what is left in the dashboard",
    Action.GIVE_UP: "look at the cluster's file and at cloud.lambda.ai",
}


class LambdaError(UserError):
    """An answer that is no success: the API's `code` (`http/STATUS` where it gave none), its HTTP status, its words."""

    def __init__(self, asked: str, status: int, code: str, message: str = "", retry_after: float | None = None) -> None:
        self.status, self.code, self.retry_after = status, code, retry_after
        self.action = action(status, code)
        said = " ".join(message.split()).rstrip(".")[:200]
        way = WAYS_OUT.get(code, OTHERWISE[self.action])
        super().__init__(f"Lambda refused to {asked} ({code}{f': {said}' if said else ''}): {way}.")


class Unanswered(LambdaError):
    """No answer, or one that does not say whether it was done: a lost connection, a time-out, a 5xx."""


def action(status: int, code: str) -> Action:
    if code == INSUFFICIENT_CAPACITY:
        return Action.OTHER_REGION
    if code in GONE:
        return Action.GONE
    if code in WAYS_OUT:
        return Action.GIVE_UP
    if status in (0, 408, 425, 429) or status >= 500 or code.startswith(PASSING):  # 0: no answer at all
        return Action.RETRY
    return Action.GONE if status == 404 else Action.GIVE_UP
