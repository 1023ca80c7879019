"""A stand-in for the Lambda Cloud API: keeps machines, holds requests to the official OpenAPI, measures their pace.

`Cloud` answers within the process and lives by any clock; `Server` puts it behind HTTP. lambda_openapi.json is Lambda's
own document of 1.10.0 (cloud.lambda.ai/api/v1/openapi.json) without its prose and the paths that raygpt does not use.
"""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema

SPEC = json.loads(Path(__file__).with_name("lambda_openapi.json").read_text())
KEY = "secret_test_0123456789abcdef"
CAPACITY = "instance-operations/launch/insufficient-capacity"
# name: (vcpus, GiB, GPUs, cents an hour); prices and shapes as in raygpt/prices.py
TYPES = {
    "cpu_4x_general": (4, 16, 0, 20),
    "gpu_1x_a10": (30, 226, 1, 129),
    "gpu_8x_v100_n": (88, 448, 8, 632),
    "gpu_8x_a100": (124, 1800, 8, 1592),
    "gpu_8x_a100_80gb_sxm4": (240, 1800, 8, 2232),
    "gpu_8x_h100_sxm5": (208, 1800, 8, 3192),
}
REGIONS = ("us-east-1", "us-west-1", "us-south-1")
ACTIONS = ("migrate", "rebuild", "restart", "cold_reboot", "terminate")
BOOT_SECONDS = 30.0

_validators: dict[str, jsonschema.Draft202012Validator] = {}


def _validator(path: str, method: str, *where: str) -> jsonschema.Draft202012Validator | None:
    """What the document says about a body; None where it says nothing of such an answer (429, 5xx)."""
    name = " ".join((path, method, *where))
    if name not in _validators:
        part = SPEC["paths"][path][method]
        for key in (*where, "content", "application/json", "schema"):
            part = part.get(key)
            if part is None:
                return None
        _validators[name] = jsonschema.Draft202012Validator({**part, "components": SPEC["components"]})
    return _validators[name]


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1e9

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Lost(ConnectionResetError):
    """The connection ended before the answer."""


@dataclass
class Machine:
    id: str
    request: dict[str, Any]
    launched: float
    appears: float  # before, no list shows it
    boots: float | None  # None: never
    host: int | None = None
    private: bool = True
    name: str = ""
    status: str = "booting"
    fate: tuple[float, str] | None = None  # at that time it becomes preempted, unhealthy or gone
    ended: float | None = None
    address: str = ""


@dataclass
class Faults:
    """What goes wrong, as probabilities of a request or a launch. `script` is tried first: {operation: [fault, …]},
    each used once; an operation is the last word of its path (`launch`, `instances`, …)."""

    rng: random.Random = field(default_factory=lambda: random.Random(0))
    storm: float = 0.0  # 429, and 429 again for a while
    error: float = 0.0  # 500, nothing done
    lost: float = 0.0  # done, and the answer lost
    late: float = 0.0  # a launch without answer whose machine is listed up to 90 s later
    no_capacity: float = 0.0  # though the list of types said there was
    never_active: float = 0.0
    preempted: float = 0.0
    vanished: float = 0.0  # 404 from then on
    unhealthy: float = 0.0
    no_private_ip: float = 0.0
    script: dict[str, list[str]] = field(default_factory=dict)

    def of_request(self, operation: str) -> str | None:
        if scripted := self.script.get(operation):
            return scripted.pop(0)
        for fault in ("storm", "error", "lost"):
            if self.rng.random() < getattr(self, fault):
                return fault
        if operation == "launch":
            for fault in ("late", "no_capacity"):
                if self.rng.random() < getattr(self, fault):
                    return fault
        return None

    def of_machine(self) -> list[str]:
        fates = ("never_active", "preempted", "vanished", "unhealthy", "no_private_ip")
        return [fate for fate in fates if self.rng.random() < getattr(self, fate)]


class Cloud:
    """The account. `hosts`, where given, are asked to start and end what a machine stands for."""

    def __init__(
        self,
        clock: Any = time,
        *,
        faults: Faults | None = None,
        capacity: Mapping[str, int] | None = None,
        types: Mapping[str, tuple[int, int, int, int]] = TYPES,
        quota: int = 100,
        boot_seconds: float = BOOT_SECONDS,
        request_seconds: float = 1.0,
        launch_seconds: float = 12.0,
        check_answers: int = 1,
        start_host: Callable[[], str] | None = None,
        end_host: Callable[[str], None] | None = None,
    ) -> None:
        self.clock, self.faults, self.types, self.quota = clock, faults or Faults(), types, quota
        self.capacity = dict(capacity if capacity is not None else dict.fromkeys(REGIONS, 100))
        self.boot_seconds, self.request_seconds, self.launch_seconds = boot_seconds, request_seconds, launch_seconds
        self.check_answers = check_answers  # every so many
        self.start_host, self.end_host = start_host, end_host
        self.machines: dict[str, Machine] = {}
        self.keys = [{"id": "k1", "name": "laptop", "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA laptop"}]
        self.filesystems: list[dict[str, Any]] = []
        self.rulesets: list[dict[str, Any]] = []
        self.violations: list[str] = []
        self.requests: list[tuple[float, str, str]] = []
        self.launches = 0
        self._last: dict[str, float] = {}
        self._storm_until = -1e9
        self._lock = threading.RLock()

    def send(
        self, method: str, path: str, body: Any = None, key: str = KEY, source: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        """One request, as `LambdaCloud` sends it. Raises Lost where the answer is lost. The account has one pace, and
        429 is the answer to who breaks it; a violation is what one machine (`source`) brings about by itself."""
        with self._lock:
            status, answer = self._answer(method, path, body, key, source)
        headers = {"Retry-After": "2"} if status == 429 and self.faults.rng.random() < 0.5 else {}
        return status, headers, json.dumps(answer).encode()

    def live(self) -> list[Machine]:
        """What is being paid for now."""
        with self._lock:
            self._age()
            return [one for one in self.machines.values() if one.status in ("booting", "active", "unhealthy")]

    def _too_soon(self, now: float, source: str, path: str, launch: bool) -> list[str]:
        distances = {f"{source} request": self.request_seconds, f"{source} launch": self.launch_seconds}
        found = []
        for name, least in list(distances.items())[: 1 + launch]:
            passed = now - self._last.get(name, -1e9)
            if passed < least - 1e-6:
                found.append(f"{path} {passed:.2f} s after the {name.strip()} before")
            self._last[name] = now
        return found

    def _answer(self, method: str, path: str, body: Any, key: str, source: str = "") -> tuple[int, Any]:
        now = self.clock.time()
        short = path.removeprefix("/api/v1")
        operation = "instance" if short.startswith("/instances/") else short.rsplit("/", 1)[-1]
        launch = operation == "launch"
        self.requests.append((now, method, short))
        too_soon = self._too_soon(now, "", short, launch)
        self.violations += self._too_soon(now, source, short, launch) if source else too_soon
        if key != KEY:
            return self._said(
                path, method, 401, _error("global/invalid-api-key", "API key was invalid, expired, or deleted.", "")
            )
        fault = self.faults.of_request(operation)
        if fault == "storm":
            self._storm_until = now + self.faults.rng.uniform(1, 20)
        if now < self._storm_until or too_soon:
            return 429, _error("global/rate-limit-exceeded", "Too many requests.")
        if fault == "error":
            return 500, _error("global/internal-error", "An internal server error occurred.")
        self._age()
        template = "/api/v1/instances/{id}" if operation == "instance" else path
        if method.lower() not in SPEC["paths"].get(template, {}):
            return 404, _error("global/not-found", "The requested resource was not found.")
        if method == "POST":
            validator = _validator(template, "post", "requestBody")
            assert validator is not None
            validator.validate(body)
            allowed = validator.schema["properties"]  # type: ignore[index]
            assert set(body) <= set(allowed), f"{short} has no {set(body) - set(allowed)}"
        status, answer = self._do(method, operation, short, body, fault)
        if fault in ("lost", "late"):
            raise Lost("connection reset by the test")
        return self._said(template, method, status, answer)

    def _said(self, template: str, method: str, status: int, answer: Any) -> tuple[int, Any]:
        if len(self.requests) % self.check_answers == 0:
            validator = _validator(template, method.lower(), "responses", str(status))
            if validator is not None:
                validator.validate(answer)
        return status, answer

    def _do(self, method: str, operation: str, path: str, body: Any, fault: str | None) -> tuple[int, Any]:
        if operation == "instances":
            return 200, {"data": [self._entry(one) for one in self._listed()]}
        if operation == "instance":
            one = next((m for m in self._listed() if m.id == path.rsplit("/", 1)[-1]), None)
            if one is None:
                return 404, _error("global/object-does-not-exist", "Specified instance does not exist.")
            if method == "POST":
                one.name = body.get("name", one.name)
            return 200, {"data": self._entry(one)}
        if operation == "instance-types":
            return 200, {"data": {name: self._type_entry(name) for name in self.types}}
        if operation == "launch":
            return self._launch(body, fault)
        if operation == "terminate":
            return self._terminate(body["instance_ids"])
        if operation == "ssh-keys":
            if method == "POST":
                self.keys.append({"id": uuid.uuid4().hex, "name": body["name"], "public_key": body["public_key"]})
                return 200, {"data": self.keys[-1]}
            return 200, {"data": self.keys}
        if operation in ("file-systems", "filesystems"):
            if method == "POST":
                self.filesystems.append(_filesystem(body["name"], body["region"]))
                return 200, {"data": self.filesystems[-1]}
            return 200, {"data": self.filesystems}
        if method == "POST":  # firewall-rulesets
            entry = {"id": uuid.uuid4().hex, "name": body["name"], "region": _region(body["region"])}
            self.rulesets.append({**entry, "rules": body["rules"], "created": _CREATED, "instance_ids": []})
            return 200, {"data": self.rulesets[-1]}
        return 200, {"data": self.rulesets}

    def _launch(self, body: dict[str, Any], fault: str | None) -> tuple[int, Any]:
        region, kind = body["region_name"], body["instance_type_name"]
        missing = [name for name in body["ssh_key_names"] if name not in [key["name"] for key in self.keys]]
        rules = {entry["id"] for entry in self.rulesets if entry["region"]["name"] == region}
        missing += [entry["id"] for entry in body.get("firewall_rulesets", ()) if entry["id"] not in rules]
        if kind not in self.types or region not in REGIONS or missing or len(body["ssh_key_names"]) != 1:
            return 404, _error("global/object-does-not-exist", f"not found: {missing or kind}", "Look again.")
        for name in body.get("file_system_names", ()):
            if not any(entry["name"] == name and entry["region"]["name"] == region for entry in self.filesystems):
                return 400, _error("instance-operations/launch/file-system-in-wrong-region", "wrong region")
        if len(self.live()) >= self.quota:
            return 400, _error("global/quota-exceeded", "Quota exceeded.", "Contact Support to increase your quota.")
        if fault == "no_capacity" or self.capacity.get(region, 0) <= 0:
            return 400, _error(CAPACITY, "Not enough capacity to fulfill launch request.")
        self.capacity[region] -= 1
        self.launches += 1
        now, fates = self.clock.time(), self.faults.of_machine()
        one = Machine(uuid.UUID(int=self.faults.rng.getrandbits(128)).hex, body, now, now, now + self.boot_seconds)
        one.name, one.private = body.get("name", ""), "no_private_ip" not in fates
        one.appears = now + (self.faults.rng.uniform(5, 90) if fault == "late" else 0.0)
        one.boots = None if "never_active" in fates else one.boots
        for fate in ("preempted", "vanished", "unhealthy"):
            if fate in fates:
                one.fate = (now + self.faults.rng.uniform(5, 400), fate)
        self.machines[one.id] = one
        if self.start_host:
            threading.Thread(target=self._start, args=(one, self.start_host), daemon=True).start()
        return 200, {"data": {"instance_ids": [one.id]}}

    def _start(self, one: Machine, start_host: Callable[[], str]) -> None:
        address = start_host()
        with self._lock:
            one.address = address
        if one.ended is not None and self.end_host:
            self.end_host(address)

    def _terminate(self, ids: list[str]) -> tuple[int, Any]:
        there = {one.id: one for one in self._listed() if one.status != "terminated"}
        if any(one not in there for one in ids):
            return 404, _error("global/object-does-not-exist", "Specified instance does not exist.")
        for one in (there[key] for key in ids):
            if one.status != "terminating":
                one.status, one.ended = "terminating", self.clock.time()
                self.capacity[one.request["region_name"]] += 1
                if self.end_host and one.address:
                    self.end_host(one.address)
        return 200, {"data": {"terminated_instances": [self._entry(there[key]) for key in ids]}}

    def _listed(self) -> list[Machine]:
        now = self.clock.time()
        return [one for one in self.machines.values() if one.appears <= now and one.status != "vanished"]

    def _age(self) -> None:
        now = self.clock.time()
        for one in list(self.machines.values()):
            if one.fate and one.fate[0] <= now and one.status in ("booting", "active", "unhealthy"):
                one.status = one.fate[1]
                if one.status == "vanished":
                    one.ended = now
            waits_for_host = self.start_host is not None and not one.address
            if one.status == "booting" and one.boots is not None and one.boots <= now and not waits_for_host:
                one.status = "active"
            if one.status == "terminating" and one.ended is not None and now - one.ended > 40:
                one.status = "terminated"
            if one.status == "terminated" and one.ended is not None and now - one.ended > 120:
                del self.machines[one.id]

    def _entry(self, one: Machine) -> dict[str, Any]:
        number = list(self.machines).index(one.id) + 1
        there = one.status != "booting"
        entry = {
            "id": one.id,
            "name": one.name,
            "status": one.status,
            "ssh_key_names": one.request["ssh_key_names"],
            "file_system_names": one.request.get("file_system_names", []),
            "region": _region(one.request["region_name"]),
            "instance_type": self._type_entry(one.request["instance_type_name"])["instance_type"],
            "actions": {action: {"available": there} for action in ACTIONS},
            "tags": one.request.get("tags", []),
            # a machine that boots has none, or an empty one
            "ip": (one.address or f"198.51.100.{number}") if there else "",
        }
        if there and one.private:
            entry["private_ip"] = one.address or f"10.0.2.{number}"
        return entry

    def _type_entry(self, name: str) -> dict[str, Any]:
        cpus, memory, gpus, cents = self.types[name]
        specs = {"vcpus": cpus, "memory_gib": memory, "storage_gib": 512, "gpus": gpus}
        shape = {"name": name, "description": name, "gpu_description": name, "price_cents_per_hour": cents}
        free = [_region(region) for region, count in self.capacity.items() if count > 0]
        return {"instance_type": {**shape, "specs": specs}, "regions_with_capacity_available": free}


_CREATED = "2026-11-27T00:00:00+00:00"


def _region(name: str) -> dict[str, str]:
    return {"name": name, "description": name}


def _filesystem(name: str, region: str) -> dict[str, Any]:
    user = {"id": "u1", "email": "user@example.com", "status": "active"}
    where = {"id": uuid.uuid4().hex, "name": name, "mount_point": f"/lambda/nfs/{name}", "region": _region(region)}
    return {**where, "created": _CREATED, "created_by": user, "is_in_use": False}


def _error(code: str, message: str, suggestion: str | None = None) -> dict[str, Any]:
    told = {} if suggestion is None else {"suggestion": suggestion}
    return {"error": {"code": code, "message": message, **told}}


@contextmanager
def serve(cloud: Cloud, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """The cloud behind HTTP; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def _any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            key = self.headers.get("Authorization", "").removeprefix("Bearer ")
            try:
                status, headers, answer = cloud.send(self.command, self.path, body, key, self.client_address[0])
            except Lost:
                self.close_connection = True
                self.connection.close()
                return
            except (AssertionError, jsonschema.ValidationError) as error:
                message = str(error).splitlines()[0]
                status, headers = 400, {}
                answer = json.dumps(_error("global/invalid-parameters", message)).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Type": "application/json"}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_DELETE = _any

    server = ThreadingHTTPServer((host, port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
