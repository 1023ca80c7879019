"""`raygpt cluster up`: check, `ray up`, and what each phase took, printed and kept on the head."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

import raygpt
from raygpt.errors import UserError

# The line of `ray up` with which a phase begins (ray/autoscaler/_private/updater.py; 2-6 are one step on a known host).
BEGINS = (("boot", re.compile(r"\[1/7\]")), ("setup", re.compile(r"\[2(-6)?/7\]")), ("Ray", re.compile(r"\[7/7\]")))
MEANINGS = {
    "API": "until the head's machine is promised",
    "boot": "until it answers over ssh",
    "setup": "files and setup commands",
    "Ray": "until Ray runs on the head",
    "workers": "until every worker asked for has joined",
}
START_TRIES = 3
WORKERS_WAIT = 600  # seconds; clouds take two to five minutes for a GPU machine, and a job waits for more by itself

# Runs on the head: waits for the nodes and keeps the record. argv: the record, nodes to wait for, seconds to wait.
ON_HEAD = """
import json, os, pathlib, sys, time
import ray
record, nodes, limit = json.loads(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
began = time.monotonic()
ray.init(address="auto", log_to_driver=False, logging_level=40)
def alive():
    return sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
while len(alive()) < nodes and time.monotonic() - began < limit:
    time.sleep(0.5)
if nodes > 1:
    record["phases"].append({"name": "workers", "seconds": round(time.monotonic() - began, 1)})
folder = pathlib.Path.home() / ".raygpt"
folder.mkdir(exist_ok=True)
(folder / "cluster.json").write_text(json.dumps(record))
print("RAYGPT " + json.dumps({"alive": alive(), "phases": record["phases"]}))
"""


def up(path: str) -> int:
    """Start the cluster of the file and wait for its workers; the exit status.

    0: head and workers are there. 1: the head is, workers are missing after ten minutes. The phases are printed as a
    table and kept on the head in ~/.raygpt/cluster.json: {cluster_name, began (seconds since 1970), phases: [{name,
    seconds}]}. Raises UserError when `ray up` fails.
    """
    from raygpt.cluster.check import check

    cluster = read_cluster(path)
    _make_token(cluster)
    status = check(path)
    if status:
        return status
    began = time.time()
    phases = _ray_up(path, cluster)
    record = {"cluster_name": cluster["cluster_name"], "began": began, "phases": phases}
    nodes = 1 + workers_asked_for(cluster)
    words = [json.dumps(record), str(nodes), str(WORKERS_WAIT)]
    command = f"python -c {shlex.quote(ON_HEAD)} {shlex.join(words)}"
    done = subprocess.run(
        [ray_program(), "exec", "--no-config-cache", path, command],
        env=environment(cluster), capture_output=True, text=True,
    )  # fmt: skip
    answer = re.search(r"RAYGPT (\{.*\})", done.stdout)
    if answer is None:
        raise UserError(
            f"Ray runs on the head of {path} but does not answer there ({_last_words(done.stdout + done.stderr)}): "
            f"look with `ray attach {path}`, or end it with `raygpt cluster down {path}`."
        )
    found = json.loads(answer[1])
    print(table(found["phases"]))
    alive = len(found["alive"])
    print(f"Cluster {cluster['cluster_name']}: {alive} of {nodes} nodes: {', '.join(found['alive'])}")
    if alive < nodes:
        print(
            f"{nodes - alive} of {nodes} nodes have not joined in {WORKERS_WAIT} s: `ray monitor {path}` says what the "
            f"cluster is waiting for; `raygpt cluster down {path}` ends it.",
            file=sys.stderr,
        )
        return 1
    return 0


def read_cluster(path: str) -> dict[str, Any]:
    """A cluster's file as it is written. UserError where it is none."""
    try:
        cluster = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML ({str(error).splitlines()[0]}): mend it.") from error
    if (
        not isinstance(cluster, dict)
        or not isinstance(cluster.get("provider"), dict)
        or not cluster.get("cluster_name")
    ):
        raise UserError(
            f"{path} is no cluster file: it needs cluster_name and provider, as cluster/on-premise.yaml has."
        )
    return cluster


def workers_asked_for(cluster: dict[str, Any]) -> int:
    """Workers that `ray up` starts without a job asking for them."""
    provider = cluster["provider"]
    if provider.get("type") == "local":
        hosts = len(provider.get("worker_ips") or [])
        return min(hosts, cluster.get("min_workers", hosts))
    head = cluster.get("head_node_type")
    types = cluster.get("available_node_types") or {}
    return sum(int(each.get("min_workers", 0)) for name, each in types.items() if name != head)


def table(phases: list[dict[str, Any]]) -> str:
    """The phases, a line each, and their sum."""
    rows = [*((each["name"], each["seconds"], MEANINGS.get(each["name"], "")) for each in phases)]
    rows.append(("together", sum(each["seconds"] for each in phases), ""))
    return "\n".join(f"  {name:10}{seconds:8.1f} s  {meaning}".rstrip() for name, seconds, meaning in rows)


def ray_program() -> str:
    return str(Path(sys.executable).with_name("ray"))


def environment(cluster: dict[str, Any]) -> dict[str, str]:
    """Of Ray's own commands about this cluster: this raygpt for the provider to be found in, tokens on."""
    here = str(Path(raygpt.__file__).resolve().parent.parent)
    before = os.environ.get("PYTHONPATH")
    result = {
        **os.environ,
        "PYTHONPATH": f"{here}:{before}" if before else here,
        "PYTHONUNBUFFERED": "1",
        "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "token"),
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
    }
    if cluster["provider"].get("type") == "local":
        # v2 has one type of node for head and workers here, counts the head as a worker and leaves the last host out
        result["RAY_UP_enable_autoscaler_v2"] = "0"
    return result


def _make_token(cluster: dict[str, Any]) -> None:
    """The token that a file mounts from here, made if there is none: Ray would end with the file's absence."""
    token = Path("~/.ray/auth_token").expanduser()
    mounted = {Path(str(local)).expanduser() for local in (cluster.get("file_mounts") or {}).values()}
    if mounted & {token, token.parent} and not token.exists():
        subprocess.run([ray_program(), "get-auth-token", "--generate"], check=True, capture_output=True)
        print(f"Made {token}: whoever has it may use clusters started from here.")


def _ray_up(path: str, cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """Run `ray up`, a line printed for each phase that begins; the phases and their seconds."""
    log = Path(f"~/.raygpt/up-{cluster['cluster_name']}.log").expanduser()
    log.parent.mkdir(exist_ok=True)
    command = [ray_program(), "up", "-y", "--no-config-cache", "--log-style=pretty", "--log-color=false", path]
    print(f"ray up {path}; what it says is in {log}", flush=True)
    lines: list[tuple[float, str]] = [(time.monotonic(), "")]
    status, tries = 1, 0
    with open(log, "w") as out:
        # Ray gives its own processes 30 s to start, whatever else a host has to do (ray/_private/node.py)
        while status and tries < START_TRIES and (not tries or any("timed out during startup" in t for _, t in lines)):
            tries += 1
            process = subprocess.Popen(
                command, env=environment(cluster), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors="replace",
            )  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                lines.append((time.monotonic(), line))
                out.write(line)
                out.flush()
                for name, begins in BEGINS:
                    if begins.search(line):
                        print(f"  {time.strftime('%H:%M:%S')} {name}: {MEANINGS[name]}", flush=True)
            status = process.wait()
    lines.append((time.monotonic(), ""))
    phases = phases_of(lines)
    if status:
        raise UserError(
            f"`ray up {path}` ended with exit status {status} in its phase {phases[-1]['name']} "
            f"({_last_words(''.join(line for _, line in lines))}): {log} has all of it; mend that, or end what was "
            f"started with `raygpt cluster down {path}`."
        )
    return phases


def phases_of(lines: list[tuple[float, str]]) -> list[dict[str, Any]]:
    """[{name, seconds}] of `ray up` from its (time in seconds, line); a phase without its line has not been reached."""
    starts = [("API", lines[0][0])]
    for when, line in lines:
        for name, pattern in BEGINS:
            if pattern.search(line) and name not in [each for each, _ in starts]:
                starts.append((name, when))
    ends = [when for _, when in starts[1:]] + [lines[-1][0]]
    return [{"name": name, "seconds": round(end - begin, 1)} for (name, begin), end in zip(starts, ends)]


def _last_words(text: str) -> str:
    """The last line that says something, without colours, at most 400 characters."""
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in text.splitlines()]
    said = [line for line in plain if line]
    return re.sub(r"^([\w.]+(Error|Exception)|Error): ", "", said[-1])[:400] if said else "without a word"
