"""`raygpt doctor`: each check's judgement on recorded answers, and the whole job on this machine."""

from __future__ import annotations

import datetime
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from raygpt import storage
from raygpt.cluster.doctor import accounts, allreduce, machine, store
from raygpt.cluster.doctor.finding import Finding, as_json, exit_status, fail, merged, ok, skipped, table, warn
from raygpt.cluster.doctor.gpu import Build, Gpu, build_findings, parse_gpus, runs_on, wheel_for
from raygpt.cluster.doctor.nccl import parse_nccl, transport_finding
from raygpt.cluster.doctor.network import check_address, refused
from raygpt.storage import locate

CU126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")


# --- GPUs


def test_what_nvidia_smi_prints_is_read() -> None:
    text = "Tesla V100-SXM2-16GB, 7.0, 570.195.03, 16384\nNVIDIA H100 80GB HBM3, 9.0, 580.82.07, 81559\n"
    assert parse_gpus(text) == [
        Gpu("Tesla V100-SXM2-16GB", (7, 0), "570.195.03", 16384),
        Gpu("NVIDIA H100 80GB HBM3", (9, 0), "580.82.07", 81559),
    ]


@pytest.mark.parametrize(
    ("capability", "arch_list", "runs"),
    [
        ((7, 0), CU126, True),
        ((7, 0), CU130, False),  # a V100 on today's default wheel
        ((8, 9), CU130, True),  # an L4: code for 8.6 runs on 8.9
        ((7, 2), ("sm_75",), False),  # newer code on an older chip
        ((10, 3), CU126, False),
        ((10, 3), (*CU126, "compute_90"), True),  # the driver compiles it
        ((12, 1), CU130, True),
        ((10, 0), ("sm_90a", "compute_90a"), False),  # 9.0 alone
        ((9, 0), ("sm_90a",), True),
        ((8, 0), (), False),
    ],
)
def test_which_gpus_a_build_has_kernels_for(capability: tuple, arch_list: tuple, runs: bool) -> None:
    assert runs_on(capability, arch_list) is runs


def test_the_wheel_that_fits_a_gpu_and_its_driver_is_named() -> None:
    v100 = Gpu("Tesla V100-SXM2-16GB", (7, 0), "570.195.03", 16384)
    old = build_findings([v100], Build("2.14.0", "13.2", CU130))[-1]
    assert old.status == "fail" and "needs driver 580.65" in old.text
    assert (
        old.fix == "update the driver, or pip install 'torch<=2.14' --index-url https://download.pytorch.org/whl/cu126"
    )
    newer = Gpu(v100.name, (7, 0), "580.82.07", 16384)
    no_kernel = build_findings([newer], Build("2.14.0", "13.2", CU130))[-1]
    assert no_kernel.status == "fail" and "has no kernels for Tesla V100-SXM2-16GB (sm_70;" in no_kernel.text
    assert no_kernel.fix == "pip install 'torch<=2.14' --index-url https://download.pytorch.org/whl/cu126"
    assert [each.status for each in build_findings([v100], Build("2.13.0+cu126", "12.6", CU126))] == ["ok", "ok"]
    cpu = build_findings([newer], Build("2.13.0+cpu", None, ()))[-1]
    assert cpu.status == "fail" and "built without CUDA" in cpu.text and "cu126" in cpu.fix
    assert wheel_for((9, 0), "580.82") == "pip install torch"
    assert wheel_for((9, 0), "550.54").endswith("/cu126") and wheel_for((10, 0), "570.1").endswith("/cu128")


# --- NCCL: lines as NCCL and aws-ofi-nccl print them (NVIDIA/nccl#1597, #229; awsome-distributed-ai#386)

EFA_LOG = """
node-a:6831:6840 [0] NCCL INFO NET/OFI Initializing aws-ofi-nccl 1.14.0
node-a:6831:6840 [0] NCCL INFO NET/OFI Selected Provider is efa (found 16 nics)
node-a:6831:6840 [0] NCCL INFO Using network Libfabric
node-a:6831:6901 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM/read
node-a:6831:6901 [0] NCCL INFO Channel 00/0 : 8[0] -> 0[0] [receive] via NET/Libfabric/0/GDRDMA
node-a:6831:6901 [0] NCCL INFO Channel 01/0 : 0[0] -> 8[0] [send] via NET/Libfabric/1/GDRDMA
"""
SOCKET_LOG = """
node-a:953:3054 [3] NCCL INFO NET/Plugin: No plugin found (libnccl-net.so)
node-a:953:3054 [3] nccl_net_ofi_rdma_init:7978 NCCL WARN NET/OFI OFI fi_getinfo() call failed: No data available
node-a:953:3054 [3] NCCL INFO NET/IB : No device found.
node-a:953:3054 [3] NCCL INFO NET/Socket : Using [0]ens5:10.67.132.202<0>
node-a:953:3054 [3] NCCL INFO Using network Socket
node-a:953:3054 [3] NCCL INFO Channel 15/0 : 3[3] -> 2[2] via P2P/CUMEM
node-a:953:3054 [3] NCCL INFO Channel 00/0 : 15[7] -> 0[0] [receive] via NET/Socket/0
"""
IB_LOG = """
node-a:77:90 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/IB [RO]; OOB eth0:10.0.0.4<0>
node-a:77:90 [0] NCCL INFO Using network IB
node-a:77:90 [0] NCCL INFO Channel 00 : 8[1b0] -> 0[1b0] [receive] via NET/IB/0/GDRDMA/Shared
"""


def test_the_transport_that_nccl_really_uses() -> None:
    efa = parse_nccl(EFA_LOG)
    assert efa.between == {"EFA": 2} and efa.within == {"P2P": 1} and efa.gpu_direct and efa.chosen == "EFA"
    slow = parse_nccl(SOCKET_LOG)
    assert slow.between == {"sockets": 1} and not slow.gpu_direct
    assert slow.warnings == ("NET/OFI OFI fi_getinfo() call failed: No data available",)
    assert parse_nccl(IB_LOG).between == {"InfiniBand": 1}
    tcp = EFA_LOG.replace("Provider is efa (found 16 nics)", "Provider is tcp")
    assert parse_nccl(tcp).between == {"libfabric (tcp)": 2}
    assert parse_nccl("").between == {}
    # both kinds of the plugin's own name, older and newer
    assert parse_nccl(EFA_LOG.replace("NET/Libfabric", "NET/AWS Libfabric")).between == {"EFA": 2}


def test_efa_that_is_there_and_not_used_fails() -> None:
    found = transport_finding(parse_nccl(SOCKET_LOG), "EFA", 2)
    assert found.status == "fail" and "aws-ofi-nccl" in found.fix
    assert found.text == (
        "sockets between machines, although they have EFA; NCCL says: NET/OFI OFI fi_getinfo() call failed: No data "
        "available"
    )
    used = transport_finding(parse_nccl(EFA_LOG), "EFA", 2)
    assert used == ok("nccl transport", "EFA between machines, with GPU memory read by the network")
    assert transport_finding(parse_nccl(SOCKET_LOG), None, 2).status == "ok"  # nothing better is there
    assert transport_finding(parse_nccl(""), "EFA", 2).status == "fail"
    assert transport_finding(parse_nccl(SOCKET_LOG), None, 1).text == "P2P within the machine"
    by_memory = parse_nccl("n:1:2 [0] NCCL INFO Channel 00 : 0[0] -> 1[1] via SHM/direct/direct")
    assert transport_finding(by_memory, None, 1).status == "warn"


def test_fabrics_are_told_from_the_devices_drivers(tmp_path: Path) -> None:
    assert allreduce.fabric_here(str(tmp_path / "none")) is None
    for name, driver in (("rdmap16s27", "efa"), ("mlx5_0", "mlx5_core")):
        device = tmp_path / name / name / "device"
        device.mkdir(parents=True)
        (tmp_path / driver).mkdir()
        (device / "driver").symlink_to(tmp_path / driver)
    assert allreduce.fabric_here(str(tmp_path / "rdmap16s27")) == "EFA"
    assert allreduce.fabric_here(str(tmp_path / "mlx5_0")) == "InfiniBand"


def test_bandwidth_is_that_of_nccl_tests() -> None:
    # doc/PERFORMANCE.md of nccl-tests: busbw = S/t x 2(n-1)/n
    assert allreduce.bus_gbs(1_000_000_000, 0.1, 8) == pytest.approx(17.5)
    seen = [allreduce.Measured(2.0, EFA_LOG), allreduce.Measured(1.0, "")]
    speed, way = allreduce.findings(seen, 2, "EFA", gpu=True)
    assert speed.text == "1.00 GB/s on the bus between 2 GPUs" and way.status == "ok"
    assert allreduce.findings([allreduce.Measured(0.01)] * 2, 2, None, gpu=False)[0].status == "warn"


# --- machine, storage, clock, keys, address


def test_disks_memory_and_shm_have_floors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {})

    def say(total: float, free: float) -> None:
        usage.total, usage.used, usage.free = total, total - free, free  # type: ignore[attr-defined]

    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
    gib = 2**30
    for free, spills, status in ((0.5, False, "fail"), (10, False, "warn"), (40, False, "ok"), (40, True, "fail")):
        say(1000 * gib, free * gib)
        assert machine.disk("run.storage", tmp_path / "not" / "yet", spills).status == status
    say(64 * 2**20, 64 * 2**20)  # Docker's own
    assert machine.shared_memory(str(tmp_path)).fix.startswith("docker run --shm-size=8g")
    for free, status in ((0.5, "fail"), (3, "warn"), (30, "ok")):
        monkeypatch.setattr(machine, "memory_here", lambda free=free: (64 * gib, int(free * gib)))
        assert machine.memory().status == status


def test_an_object_goes_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = locate(tmp_path / "runs")
    found = store.round_trip(where)
    assert found.status == "ok" and "takes, gives and deletes" in found.text
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.setattr(storage, "read_bytes", lambda _: b"other")
    assert store.round_trip(where).status == "fail"
    (tmp_path / "file").write_text("")
    blocked = store.round_trip(locate(tmp_path / "file"))
    assert blocked.status == "fail" and "cannot be written" in blocked.text and "file where a folder" in blocked.text


def test_s3_is_written_read_and_each_fault_is_a_sentence(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = store.round_trip(locate(bucket))
    assert found.status == "ok" and not storage.list_folder(locate(bucket))
    assert store.s3_clock().status == "ok"
    gone = store.round_trip(locate(f"{bucket}-gone/runs"))
    assert gone.status == "fail" and "cannot be written" in gone.text and "does not exist" in gone.text
    assert "create the bucket" in gone.fix
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    storage._s3.cache_clear()
    refused = store.round_trip(locate(bucket))
    storage._s3.cache_clear()
    assert refused.status == "fail" and "refuses these credentials" in refused.text and "wrong" not in str(refused)


@pytest.fixture
def endpoint() -> Callable[[float], str]:
    """`endpoint(seconds)`: URL of a server that refuses everything and whose clock is so far ahead."""
    servers = []

    def start(ahead: float) -> str:
        class Refuses(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(403)
                self.end_headers()

            def date_time_string(self, timestamp: float | None = None) -> str:
                now = datetime.datetime.fromtimestamp(time.time() + ahead, datetime.UTC)
                return now.strftime("%a, %d %b %Y %H:%M:%S GMT")

            def log_message(self, *_: object) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Refuses))
        Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_clock_that_differs_from_s3_is_found(endpoint: Callable[[float], str]) -> None:
    assert store.s3_clock(endpoint(0)).status == "ok"
    behind = store.s3_clock(endpoint(20))
    assert behind.status == "warn" and "behind S3" in behind.text and "chrony" in behind.fix
    ahead = store.s3_clock(endpoint(-1000))
    assert ahead.status == "fail" and "ahead of S3" in ahead.text
    assert store.s3_clock("http://127.0.0.1:1").status == "skipped"


def test_a_key_is_said_to_be_there_and_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE")
    assert accounts.wandb_key("auto").status == "warn"
    assert accounts.wandb_key("online").status == "fail" and "wandb login" in accounts.wandb_key("online").fix
    assert accounts.wandb_key("off").status == "ok"
    monkeypatch.setenv("WANDB_API_KEY", "f00d" * 10)
    assert accounts.wandb_key("online") == ok("wandb", "a key is there")


def test_what_is_wrong_with_an_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert check_address(f"127.0.0.1:{port}").status == "ok"
        assert check_address(f"ray://127.0.0.1:{port}").status == "ok"
    assert "nothing listens" in check_address(f"127.0.0.1:{port}").text
    assert "is a dashboard" in check_address("http://127.0.0.1:8265").text
    assert "names no port" in check_address("head-node").text
    assert "is not known here" in check_address("no-such-host.invalid:6379").text
    assert check_address("auto").status == "ok"


def test_why_ray_refuses_a_driver() -> None:
    token = ConnectionError("Failed to connect")
    token.__cause__ = RuntimeError("RPC error: InvalidAuthToken: Authentication token is missing or incorrect")
    assert refused(token).text == "the cluster refuses this token" and "RAY_AUTH_MODE=token" in refused(token).fix
    versions = RuntimeError("Version mismatch: The cluster was started with: Ray: 2.59.0 Python: 3.11.7")
    assert "Ray: 2.59.0" in refused(versions).text and "same Python and Ray" in refused(versions).fix


# --- the table, the job


def test_the_table_joins_what_nodes_say_alike() -> None:
    seen = [
        Finding("disk", "ok", "much", node="a"), Finding("disk", "ok", "much", node="b"),
        Finding("disk", "fail", "none", "free some", node="c"), skipped("gpu", "none"),
    ]  # fmt: skip
    found = merged(seen)
    assert [(each.status, each.node) for each in found] == [("ok", "a, b"), ("fail", "c"), ("skipped", "")]
    text = table(found)
    assert "much [a, b]" in text and "-> free some" in text
    assert text.splitlines()[-1] == "1 failed, 1 in order, 1 not checked"
    assert max(len(line) for line in table([fail("x", "word " * 90, "fix " * 90)]).splitlines()) <= 120
    assert exit_status(found) == 1 and exit_status([ok("a", ""), warn("b", "", "")]) == 0
    assert json.loads(as_json(found))["ok"] is False and "\n" not in as_json(found)


def test_a_laptop_is_looked_over_without_ray(tmp_path: Path) -> None:
    code = (
        "import sys; from raygpt.cli import main; status = main(['doctor', '--json', '--run.storage=runs']); "
        "import ray; print(status, ray.is_initialized(), 'ray.data' in sys.modules)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert time.monotonic() - began < 60  # 3 s on an idle machine
    *_, line, last = done.stdout.splitlines()
    found = {each["name"]: each for each in json.loads(line)["findings"]}
    assert {"environment", "driver", "disk run.storage", "memory", "/dev/shm", "storage", "wandb"} <= set(found)
    assert last in ("0 False False", "1 False False"), done.stderr[-500:]
