"""PURE. A client of the Lambda Cloud API (OpenAPI 1.10.0): paced, patient, and silent about its key."""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raygpt.cluster.lambda_cloud.errors import PASSING, Action, LambdaError, Unanswered
from raygpt.cluster.lambda_cloud.pacing import Clock, Pacing
from raygpt.errors import UserError

URL = "https://cloud.lambda.ai"
KEY_FILE = "~/.config/raygpt/lambda/key"
TIMEOUT_SECONDS = 60.0  # of one request; a launch is answered in seconds
PATIENCE_SECONDS = 150.0  # how long a request is repeated that the API does not take
BELIEVED_SECONDS = 120.0  # after that a machine that is still listed as running does run
FIRST_BACKOFF, LONGEST_BACKOFF = 2.0, 30.0

# (method, path, body) -> (HTTP status, headers, body); raises OSError where no answer came
Send = Callable[[str, str, Any], tuple[int, Mapping[str, str], bytes]]


def api_url(provider: Mapping[str, Any] = {}) -> str:
    """The endpoint: LAMBDA_API_URL, else `provider.api`, else Lambda's."""
    return str(os.environ.get("LAMBDA_API_URL") or provider.get("api") or URL).rstrip("/")


def api_key(provider: Mapping[str, Any] = {}) -> str:
    """The key: of LAMBDA_API_KEY, else of the file `provider.key_file`. Raises UserError where there is none."""
    key = os.environ.get("LAMBDA_API_KEY", "").strip()
    file = Path(str(provider.get("key_file") or KEY_FILE)).expanduser()
    if not key:
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            pass
    if not key.isascii() or not key.isprintable() or len(key.split()) != 1:
        raise UserError(
            f"no Lambda API key is in LAMBDA_API_KEY or alone in provider.key_file={file}: make one at "
            "cloud.lambda.ai/api-keys and put it there."
        )
    return key


class LambdaCloud:
    """The API with one key. Every method raises LambdaError; what is safe to repeat has been repeated before that."""

    def __init__(
        self, url: str, key: str, *, pacing: Pacing | None = None, clock: Clock = time, send: Send | None = None
    ):
        self.clock, self._key = clock, key
        self._ended: dict[str, float] = {}
        self.pacing = pacing or Pacing.of(url, key, clock=clock)
        self._send = send or _https(url, key)

    @staticmethod
    def of(provider: Mapping[str, Any]) -> LambdaCloud:
        """The one that a cluster file's `provider` section means."""
        return LambdaCloud(api_url(provider), api_key(provider))

    def instances(self, *, believing: bool = True) -> list[dict[str, Any]]:
        """Every machine of the account. What was ended here a moment ago is ending, whatever the list still says;
        `believing=False` has the list itself."""
        listed = list(self._call("list machines", "GET", "/instances"))
        if not believing:
            return listed
        since = self.clock.time() - BELIEVED_SECONDS
        for one in [one for one, at in list(self._ended.items()) if at <= since]:
            self._ended.pop(one, None)
        return [
            {**one, "status": "terminating"} if one["id"] in self._ended and one["status"] != "terminated" else one
            for one in listed
        ]

    def instance_types(self) -> dict[str, dict[str, Any]]:
        """name -> {instance_type, regions_with_capacity_available}"""
        return dict(self._call("list types of machines", "GET", "/instance-types"))

    def launch(self, request: dict[str, Any]) -> str:
        """The id of one new machine. It is asked for once: Unanswered means that it may have been launched."""
        what = f"launch {request['instance_type_name']} in {request['region_name']}"
        ids = self._call(what, "POST", "/instance-operations/launch", request, launch=True)["instance_ids"]
        return str(ids[0])

    def terminate(self, ids: list[str]) -> None:
        """End machines. One that is gone already makes no difference to the others."""
        if not ids:
            return
        try:
            self._call("end machines", "POST", "/instance-operations/terminate", {"instance_ids": ids})
            self._ended.update(dict.fromkeys(ids, self.clock.time()))
        except LambdaError as error:
            if error.action is not Action.GONE:
                raise
            if len(ids) > 1:  # the API does not say which one it does not know
                for one in ids:
                    self.terminate([one])

    def rename(self, instance: str, name: str) -> None:
        self._call("rename a machine", "POST", f"/instances/{instance}", {"name": name})

    def ssh_keys(self) -> list[dict[str, Any]]:
        return list(self._call("list SSH keys", "GET", "/ssh-keys"))

    def add_ssh_key(self, name: str, public_key: str) -> None:
        self._call("register an SSH key", "POST", "/ssh-keys", {"name": name, "public_key": public_key})

    def filesystems(self) -> list[dict[str, Any]]:
        return list(self._call("list filesystems", "GET", "/file-systems"))  # so spelled for reading only

    def create_filesystem(self, name: str, region: str) -> None:
        self._call("make a filesystem", "POST", "/filesystems", {"name": name, "region": region})

    def firewall_rulesets(self) -> list[dict[str, Any]]:
        return list(self._call("list firewall rulesets", "GET", "/firewall-rulesets"))

    def create_firewall_ruleset(self, name: str, region: str, rules: list[dict[str, Any]]) -> str:
        asked = {"name": name, "region": region, "rules": rules}
        return str(self._call("make a firewall ruleset", "POST", "/firewall-rulesets", asked)["id"])

    def prices(self) -> dict[str, float]:
        """US dollars per hour of every type, as of now."""
        types = self.instance_types()
        return {name: entry["instance_type"]["price_cents_per_hour"] / 100 for name, entry in types.items()}

    def _call(self, asked: str, method: str, path: str, body: Any = None, *, launch: bool = False) -> Any:
        give_up, backoff = self.clock.time() + PATIENCE_SECONDS, FIRST_BACKOFF
        while True:
            try:
                with self.pacing.turn(launch=launch):
                    return self._once(asked, method, path, body)
            except LambdaError as error:
                # 429 says that nothing was done; of a launch without an answer only the list of machines can tell
                again = error.action is Action.RETRY and not (launch and isinstance(error, Unanswered))
                if not again or self.clock.time() + backoff > give_up:
                    raise
                seconds = error.retry_after or backoff * random.uniform(0.75, 1.25)
                if error.status == 429:
                    self.pacing.hold(seconds)
                else:
                    self.clock.sleep(seconds)
                backoff = min(2 * backoff, LONGEST_BACKOFF)

    def _once(self, asked: str, method: str, path: str, body: Any) -> Any:
        try:
            status, headers, raw = self._send(method, f"/api/v1{path}", body)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise Unanswered(asked, 0, "no answer", f"{type(error).__name__} {reason}") from None
        try:
            answer = json.loads(raw)
            if status == 200:
                return answer["data"]
            error_entry = answer["error"]
            code, message = str(error_entry["code"]), str(error_entry.get("message", "")).replace(self._key, "***")
        except (ValueError, KeyError, TypeError):  # a proxy's page
            code, message = f"http/{status}", "" if status != 200 else "an answer that is not the API's"
        if status >= 500 or status in (200, 408) or code.startswith(PASSING):
            raise Unanswered(asked, 502 if status == 200 else status, code, message)
        raise LambdaError(asked, status, code, message, retry_after(headers))


def retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        return min(60.0, max(0.0, float(headers.get("Retry-After") or "")))
    except (TypeError, ValueError):  # none, or a date
        return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected request would carry the key to wherever the answer points."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _https(url: str, key: str) -> Send:
    opener = urllib.request.build_opener(_NoRedirect)

    def send(method: str, path: str, body: Any) -> tuple[int, Mapping[str, str], bytes]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url + path, data=data, method=method)
        request.add_unredirected_header("Authorization", f"Bearer {key}")
        request.add_header("Accept", "application/json")
        request.add_header("User-Agent", "raygpt")  # urllib's own is turned away by some fronts
        if data is not None:
            request.add_header("Content-Type", "application/json")
        try:
            with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                return answer.status, _named(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _named(error.headers), error.read()

    return send


def _named(headers: Any) -> dict[str, str]:
    """As the client asks for them, however the server spells them."""
    return {name.title(): value for name, value in headers.items()}
