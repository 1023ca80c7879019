"""A cluster that grows: a job asks for the nodes it lacks, says what is pending, trains on them and leaves none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.drills.program import ROOT, Program
from tests.drills.test_ray_jobs import RAY, free_port
from tests.train.running import letters

HEAD = "f" * 51 + "00000"  # the node id that Ray's fake provider knows its head by
SMALL = {"resources": {"CPU": 2, "object_store_memory": 100_000_000}, "node_config": {}, "max_workers": 2}
TINY = (
    "--data.tokenizer=bytes", "--data.backend=mmap", "--data.seq_len=32", "--model.n_layer=1", "--model.n_head=2",
    "--model.n_embd=16", "--train.max_steps=10", "--train.global_batch_tokens=256", "--train.micro_batch_size=4",
    "--eval.every=10", "--eval.batches=1", "--track.tensorboard=false", "--track.wandb=off",
)  # fmt: skip


def cluster_file(port: int) -> dict:
    """Nodes are raylets of this machine that Ray's fake provider starts, under the autoscaler that `ray up` takes."""
    commands = ("", "head_", "worker_")
    return {
        "cluster_name": "growing",
        "max_workers": 2,
        "idle_timeout_minutes": 0.5,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": HEAD,
            "gcs_address": f"127.0.0.1:{port}",
        },
        "auth": {},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "small": SMALL,
        },
        "head_node_type": "ray.head.default",
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands")},
        **{f"{kind}setup_commands": [] for kind in commands},
        **{f"{kind}start_ray_commands": [] for kind in commands[1:]},
    }


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[str]:
    """Address of a head of one CPU whose autoscaler may start two nodes of two."""
    port = free_port()
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster_file(port)))
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    process = subprocess.Popen(
        [RAY, "start", "--head", f"--port={port}", f"--temp-dir=/tmp/rg{os.getpid()}", "--num-cpus=1", "--block"]
        + ["--object-store-memory=100000000", "--include-dashboard=false", f"--autoscaling-config={file}"]
        + [f"--dashboard-port={free_port()}", "--node-ip-address=127.0.0.1"]
        + [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield f"127.0.0.1:{port}"
    finally:
        for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            try:
                each.kill()
            except psutil.NoSuchProcess:
                pass
        process.wait()


@pytest.mark.timeout(900)
def test_a_job_has_the_cluster_grow_and_leaves_no_node_and_no_request(growing: str, tmp_path: Path) -> None:
    shards = letters(tmp_path / "shards")
    env = {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": growing}
    end = time.monotonic() + 300
    while look(growing, env, until_nodes=1, seconds=0) is None:  # the GCS answers before the node has joined
        assert time.monotonic() < end, "the Ray head did not come up"
    run = (*TINY, f"--data.train={shards}", f"--data.val={shards}", f"--run.storage={tmp_path}")
    # one too many, for the cluster fully grown: said at once, though it could grow
    refused = Program("pretrain", *run, "--run.name=many", "--scale.num_workers=6", env=env)
    program = Program("pretrain", *run, "--scale.num_workers=2", "--scale.cpus_per_worker=1.5", env=env)
    program.wait_for(r"Waiting for room: \d of 2 workers of 1.5 CPUs fits?; the cluster is starting \d x small", 300)
    assert refused.finish(300) == 2
    assert "but the cluster has room for 5: it has" in refused.output and "small (2 CPUs, 2 at most)" in refused.output
    assert program.finish(300) == 0, program.output[-4000:]
    assert "Environment: the same on 3 nodes, hash" in program.output
    assert "Ray cluster at" in program.output and "3 nodes, 5 CPUs" in program.output
    assert "2 workers on " in program.output and "Finished 10 steps" in program.output
    assert look(growing, env, until_nodes=1, seconds=120) == {"nodes": 1, "groups": 0}
    # nor does a driver that is killed while it waits
    killed = Program(
        "pretrain", *run, "--run.name=killed", "--scale.num_workers=2", "--scale.cpus_per_worker=2", env=env
    )
    killed.wait_for("Waiting for room", 300)
    killed.signal(signal.SIGKILL)
    killed.finish()
    assert look(growing, env, until_nodes=1, seconds=120) == {"nodes": 1, "groups": 0}


def look(address: str, env: dict[str, str], until_nodes: int, seconds: float) -> dict[str, int] | None:
    """{nodes, placement groups} once the cluster has so few nodes, by its own driver; None where it cannot join."""
    code = f"""
import json, time, ray
from ray.util.placement_group import placement_group_table
ray.init(address={address!r}, log_to_driver=False)
end = time.monotonic() + {seconds}
while True:
    nodes = sum(node["Alive"] for node in ray.nodes())
    groups = sum(group["state"] != "REMOVED" for group in placement_group_table().values())
    if nodes == {until_nodes} or time.monotonic() > end:
        break
    time.sleep(0.5)
print(json.dumps({{"nodes": nodes, "groups": groups}}))
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
