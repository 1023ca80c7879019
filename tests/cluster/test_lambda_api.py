"""The client: asks what Lambda's document allows, makes a sentence of what it is told, keeps its key to itself."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path

import pytest

from raygpt.cluster.lambda_cloud import api
from raygpt.cluster.lambda_cloud.api import LambdaCloud, api_key
from raygpt.cluster.lambda_cloud.errors import Action, LambdaError, Unanswered, action
from raygpt.cluster.lambda_cloud.pacing import Pacing
from raygpt.errors import UserError
from tests.cluster.lambda_server import KEY, SPEC, Clock, Cloud, Faults, serve

REQUEST = {"region_name": "us-east-1", "instance_type_name": "gpu_1x_a10", "ssh_key_names": ["laptop"]}


def client(cloud: Cloud, folder: Path, key: str = KEY) -> LambdaCloud:
    clock = cloud.clock
    return LambdaCloud(
        "http://cloud", key, pacing=Pacing(folder / "pace", clock=clock), clock=clock,
        send=lambda method, path, body: cloud.send(method, path, body, key),
    )  # fmt: skip


@pytest.fixture
def cloud() -> Cloud:
    return Cloud(Clock())


def test_every_request_and_answer_over_http_is_what_the_official_document_says(tmp_path: Path) -> None:
    cloud = Cloud(request_seconds=0, launch_seconds=0, boot_seconds=0)
    with serve(cloud) as url:
        there = LambdaCloud(url, KEY, pacing=Pacing(tmp_path / "pace", request_seconds=0, launch_seconds=0))
        assert there.prices()["gpu_8x_a100"] == 15.92
        there.add_ssh_key("second", "ssh-ed25519 AAAA second")
        assert {key["name"] for key in there.ssh_keys()} == {"laptop", "second"}
        there.create_filesystem("data", "us-east-1")
        assert [one["name"] for one in there.filesystems()] == ["data"]
        rule = {"protocol": "tcp", "port_range": [22, 22], "source_network": "0.0.0.0/0", "description": "SSH"}
        rules = there.create_firewall_ruleset("ssh", "us-east-1", [rule])
        assert [one["id"] for one in there.firewall_rulesets()] == [rules]
        tags = [{"key": "ray-node-type", "value": "head"}]
        more = {"tags": tags, "firewall_rulesets": [{"id": rules}], "file_system_names": ["data"]}
        one = there.launch({**REQUEST, **more})
        there.rename(one, "raygpt a10 head up-to-date")
        assert [(m["id"], m["name"], m["tags"]) for m in there.instances()] == [
            (one, "raygpt a10 head up-to-date", tags)
        ]
        there.terminate([one])
        assert there.instances(believing=False)[0]["status"] == "terminating"
        # what the document does not have is refused by the stand-in, so it would show here
        with pytest.raises(LambdaError, match="quantity"):
            there.launch({**REQUEST, "quantity": 2})


def test_every_error_of_the_document_says_what_to_do() -> None:
    codes = {
        schema["properties"]["code"]["const"]
        for name, schema in SPEC["components"]["schemas"].items()
        if name.startswith("ApiError")
    }
    assert len(codes) >= 10
    told = {code: action(400, code) for code in codes}
    assert told.pop("instance-operations/launch/insufficient-capacity") is Action.OTHER_REGION
    assert {code for code, what in told.items() if what is Action.GONE} == {
        "global/object-does-not-exist",
        "global/not-found",
    }
    assert action(500, "global/internal-error") is Action.RETRY
    assert action(400, "provider/internal-unavailable") is Action.RETRY
    assert action(429, "anything") is Action.RETRY and action(418, "anything") is Action.GIVE_UP
    for code, what in told.items():
        if what is Action.GIVE_UP:
            sentence = str(LambdaError("launch a machine", 400, code, "What the API says."))
            assert code in sentence and sentence.count(".") <= sentence.count("lambda.ai") + 4
            assert "try again later" not in sentence


def test_a_wrong_key_is_one_sentence_at_once(cloud: Cloud, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"invalid-api-key.*: make a key at cloud.lambda.ai/api-keys"):
        client(cloud, tmp_path, "wrong").instances()
    assert len(cloud.requests) == 1


def test_a_storm_of_429_is_sat_out_by_everybody(cloud: Cloud, tmp_path: Path) -> None:
    cloud.faults = Faults(script={"instances": ["storm"]})
    assert client(cloud, tmp_path).instances() == []
    assert cloud.violations == [] and 2 <= len(cloud.requests) < 12
    # the others of this machine wait as well
    cloud.faults = Faults(script={"instances": ["storm"]})
    pacing = Pacing(tmp_path / "pace", clock=cloud.clock)
    before = cloud.clock.time()
    pacing.hold(30)
    with pacing.turn():
        pass
    assert cloud.clock.time() - before >= 30


def test_an_api_that_is_down_is_given_up_after_a_while(cloud: Cloud, tmp_path: Path) -> None:
    cloud.faults = Faults(error=1.0)
    before = cloud.clock.time()
    with pytest.raises(Unanswered, match="global/internal-error"):
        client(cloud, tmp_path).instances()
    assert 100 < cloud.clock.time() - before <= api.PATIENCE_SECONDS + 60


@pytest.mark.parametrize("fault", ["lost", "error"])
def test_a_launch_without_an_answer_is_not_repeated_blindly(cloud: Cloud, tmp_path: Path, fault: str) -> None:
    cloud.faults = Faults(script={"launch": [fault]})
    with pytest.raises(Unanswered):
        client(cloud, tmp_path).launch(REQUEST)
    assert sum(path.endswith("launch") for _, _, path in cloud.requests) == 1
    assert cloud.launches == (fault == "lost")


def test_a_machine_that_is_not_there_does_not_keep_others_running(cloud: Cloud, tmp_path: Path) -> None:
    there = client(cloud, tmp_path)
    ids = [there.launch(REQUEST) for _ in range(2)]
    there.terminate([ids[0], "0" * 32, ids[1]])
    assert cloud.live() == []


def test_what_was_ended_is_ending_though_the_list_lags(cloud: Cloud, tmp_path: Path) -> None:
    there = client(cloud, tmp_path)
    one = there.launch(REQUEST)
    there.terminate([one])
    cloud.machines[one].status = "active"  # a list that has not heard
    assert there.instances()[0]["status"] == "terminating"
    cloud.clock.sleep(api.BELIEVED_SECONDS + 1)
    assert there.instances()[0]["status"] == "active"  # it does run: say so


def test_the_key_is_in_no_message_and_goes_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Elsewhere(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization")))
            if self.path.startswith("/api"):
                self.send_response(302)
                self.send_header("Location", "/stolen")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        there = LambdaCloud(f"http://127.0.0.1:{server.server_port}", KEY, pacing=Pacing(tmp_path / "p"))
        with pytest.raises(LambdaError) as caught:
            there.instances()
    finally:
        server.shutdown()
        server.server_close()
    assert asked == [("/api/v1/instances", f"Bearer {KEY}")] and KEY not in str(caught.value)
    echo = b'{"error": {"code": "global/invalid-parameters", "message": "bad key %s"}}' % KEY.encode()
    there = LambdaCloud("x", KEY, pacing=Pacing(tmp_path / "q"), send=lambda *_: (400, {}, echo))
    with pytest.raises(LambdaError) as caught:
        there.ssh_keys()
    assert KEY not in str(caught.value) and KEY not in Pacing.of("x", KEY, tmp_path).file.name


@pytest.mark.parametrize("text", ["", "\n", "two words", "line\nline", "schlüssel"])
def test_a_key_file_without_a_key_is_one_sentence(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAMBDA_API_KEY", raising=False)
    (tmp_path / "key").write_text(text)
    with pytest.raises(UserError, match=r"no Lambda API key .*key_file=.*: make one") as caught:
        api_key({"key_file": str(tmp_path / "key")})
    assert not text.strip() or text not in str(caught.value)
    (tmp_path / "key").write_text(f" {KEY}\n")
    assert api_key({"key_file": str(tmp_path / "key")}) == KEY


def test_processes_and_threads_share_one_pace(tmp_path: Path) -> None:
    program = """
import sys, threading, time
from pathlib import Path
from raygpt.cluster.lambda_cloud.pacing import Pacing
pacing = Pacing(Path(sys.argv[1]), request_seconds=0.04, launch_seconds=0.2)
def run(launch):
    for _ in range(4):
        with pacing.turn(launch=launch):
            print("launch" if launch else "request", time.time(), flush=True)
            time.sleep(0.01)
threads = [threading.Thread(target=run, args=(launch,)) for launch in (True, False, False)]
[t.start() for t in threads]; [t.join() for t in threads]
"""
    command = [sys.executable, "-c", program, str(tmp_path / "pace")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [line.split() for run in runs for line in run.communicate(timeout=60)[0].splitlines()]
    assert len(lines) == 24
    for word, distance, count in (("", 0.04, 24), ("launch", 0.2, 8)):
        times = sorted(float(at) for kind, at in lines if kind.startswith(word))
        assert len(times) == count and min(b - a for a, b in pairwise(times)) >= distance


def test_a_clock_that_was_set_back_and_a_torn_file_stop_nobody(tmp_path: Path) -> None:
    clock = Clock()
    pacing = Pacing(tmp_path / "pace", clock=clock)
    with pacing.turn(launch=True):
        pass
    clock.now -= 86_400
    before = clock.now
    with pacing.turn(launch=True):
        pass
    assert clock.now - before < 1
    (tmp_path / "pace").write_bytes(b"\0" * 7)
    with pacing.turn():
        pass
    assert re.fullmatch(rb"\d+\.\d{6} \d+\.\d{6}\n", (tmp_path / "pace").read_bytes())
    assert oct((tmp_path / "pace").stat().st_mode & 0o777) == "0o600"


def test_a_launch_takes_a_place_among_requests(tmp_path: Path) -> None:
    clock = Clock()
    pacing = Pacing(tmp_path / "pace", clock=clock)
    began, times = clock.now, []
    for launch in (True, False, True, False, False, True):
        with pacing.turn(launch=launch):
            times.append(round(clock.now - began, 2))
            clock.sleep(0.5)  # until the answer
    assert times == [0.0, 1.52, 12.6, 14.12, 15.64, 25.2]
