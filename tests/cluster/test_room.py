"""Whether workers fit on a cluster, now or grown, and the sentences for those that do not."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raygpt.cluster.room import (
    FIXED,
    Growth,
    Need,
    NodeType,
    grown_room,
    growth_of,
    missing,
    nearest,
    never_fits,
    room,
)
from raygpt.cluster.waiting import Launches, Pending, asks_gpu, autoscaling_config, stalled_line

HEAD = {"node:__internal_head__": 1.0, "CPU": 4.0}
GPU_NODE = {"CPU": 8.0, "GPU": 1.0}
FILE = {
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 4}},
        "gpu": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 2},
        "big": {"resources": {"CPU": 32, "GPU": 4}},  # as many as the cluster may have
        "none": {"resources": {"CPU": 64}, "max_workers": 0},
    },
    "auth": {"ssh_user": "ubuntu"},
}


def test_the_growth_that_a_cluster_file_allows() -> None:
    growth = growth_of(FILE)
    assert growth.grows and growth.gpus and growth.most == 3
    assert [(kind.name, kind.most) for kind in growth.types or ()] == [("gpu", 2), ("big", 3)]
    assert growth_of({}) == Growth(False)
    assert not growth_of({**FILE, "max_workers": 0}).grows


def test_room_is_what_a_search_over_all_placements_finds() -> None:
    draw = random.Random(3)
    for _ in range(200):  # a node has three GPUs at most
        each = {"CPU": draw.choice([0.5, 1.0, 1.5, 3.0]), "GPU": float(draw.choice([1, 2]))}
        nodes = [{"CPU": float(draw.randint(0, 6)), "GPU": float(draw.randint(0, 3))} for _ in range(3)]
        counts = [range(4)] * 3
        most = max(
            sum(each_count)
            for each_count in itertools.product(*counts)
            if all(n * each[k] <= node[k] for n, node in zip(each_count, nodes) for k in each)
        )
        assert room(each, nodes) == most


def test_a_grown_cluster_takes_its_best_types_within_both_limits() -> None:
    growth = growth_of(FILE)
    assert grown_room({"CPU": 2, "GPU": 1}, [HEAD], growth) == 12  # three of big, none of gpu
    assert grown_room({"CPU": 2}, [HEAD], growth) == 2 + 3 * 16
    few = Growth(True, (NodeType("gpu", GPU_NODE, 2), NodeType("big", {"CPU": 32, "GPU": 4}, 1)), 2)
    assert grown_room({"CPU": 1, "GPU": 1}, [HEAD], few) == 5
    assert grown_room({"CPU": 1}, [HEAD], Growth(True, None)) is None  # on Kubernetes nobody says


def test_what_could_never_fit_is_refused_with_what_would() -> None:
    need = Need(4, 3, False)
    assert never_fits(need, need.each(False), [{"CPU": 6}, {"CPU": 6}], FIXED) is None
    # 12 CPUs in all, but 5, 5 and 2 hold one worker, one and none
    assert never_fits(need, need.each(False), [{"CPU": 5}, {"CPU": 5}, {"CPU": 2}], FIXED) == (
        "scale.num_workers=4 x scale.cpus_per_worker=3 asks for 4 workers of 3 CPUs but the cluster has room for 2: it "
        "has 2 of 5 CPUs, 1 of 2 CPUs; lower scale.num_workers to 2, or add nodes."
    )
    large = Need(1, 12)
    assert never_fits(large, large.each(True), [HEAD, GPU_NODE], growth_of({**FILE, "available_node_types": {}})) == (
        "scale.cpus_per_worker=12 is more than any node of the cluster has beside a GPU: it has 1 of 4 CPUs, 1 of 8 "
        "CPUs and 1 GPU; lower scale.cpus_per_worker to 8, or add a larger node."
    )
    sentence = never_fits(Need(1, 40), {"CPU": 40.0}, [HEAD], growth_of(FILE))
    assert sentence is not None and "may start gpu (8 CPUs and 1 GPU, 2 at most), big (32 CPUs" in sentence
    assert "lower scale.cpus_per_worker to 32, or give the cluster a larger node type." in sentence
    assert never_fits(Need(2, 1), {"CPU": 1.0, "GPU": 1.0}, [HEAD], FIXED) == (
        "scale.cpus_per_worker=1 is more than any node of the cluster has beside a GPU: it has 1 of 4 CPUs; set "
        "scale.use_gpu=false, or add a larger node."
    )


def test_a_node_that_is_there_is_not_counted_beside_the_type_that_started_it() -> None:
    growth = Growth(True, (NodeType("small", {"CPU": 2.0}, 2),), 2)
    nodes = [{"node:__internal_head__": 1.0, "CPU": 1.0}, {"CPU": 2.0}]
    assert never_fits(Need(5, 1), {"CPU": 1.0}, nodes, growth) is None  # head, and two of small
    assert "has room for 5" in str(never_fits(Need(6, 1), {"CPU": 1.0}, nodes, growth))


def test_what_an_autoscaler_knows_alone_is_left_to_it() -> None:
    assert never_fits(Need(9, 64), {"CPU": 64.0}, [HEAD], Growth(True, None)) is None


@pytest.mark.parametrize(
    ("wanted", "nodes", "growth", "gpu"),
    [
        ("auto", [HEAD], FIXED, False),
        ("auto", [HEAD, GPU_NODE], FIXED, True),
        ("auto", [HEAD], growth_of(FILE), True),  # no GPU yet, but nodes that would bring some
        (False, [HEAD, GPU_NODE], growth_of(FILE), False),
        (True, [HEAD], FIXED, True),
    ],
)
def test_a_gpu_is_asked_for_where_one_is_or_could_be(wanted: object, nodes: list, growth: Growth, gpu: bool) -> None:
    assert asks_gpu(Need(1, 1, wanted), nodes, growth) is gpu  # type: ignore[arg-type]


def test_what_is_missing_and_what_would_fit() -> None:
    need, each = Need(3, 2), {"CPU": 2.0}
    assert missing(need, each, [{"CPU": 3}, {"CPU": 1}]) == "2 workers of 2 CPUs (4 of 6 CPUs are free)"
    assert nearest(need, each, [{"CPU": 3}, {"CPU": 1}]) == "scale.num_workers=1 would fit now"
    scattered = [{"CPU": 1.0}] * 6
    assert missing(need, each, scattered) == (
        "3 workers of 2 CPUs (enough is free in all but not in one place (at most 1 CPUs on a node))"
    )
    assert nearest(need, each, scattered) == "scale.cpus_per_worker=1 would fit now"
    assert nearest(need, {"CPU": 2.0, "GPU": 1.0}, scattered) == "nothing of this kind fits now"


def test_a_waiting_line_says_more_after_a_minute() -> None:
    pending = Pending(Need(2, 2), {"CPU": 2.0}, grows=True)
    free = [{"CPU": 3.0}]
    assert pending.line(free, Launches({"gpu": 2}), 5) == (
        "Waiting for room: 1 of 2 workers of 2 CPUs fits; the cluster is starting 2 x gpu"
    )
    assert pending.line(free, Launches({}, ("gpu, insufficient capacity",)), 61) == (
        "Waiting for room: 1 of 2 workers of 2 CPUs fits; a start failed: gpu, insufficient capacity; missing: 1 "
        "worker of 2 CPUs (3 of 4 CPUs are free); scale.num_workers=1 would fit now"
    )
    fixed = Pending(Need(2, 2), {"CPU": 2.0}, grows=False)
    assert fixed.line(free, Launches({}), 5).endswith("in use by others and this cluster does not grow")


def test_workers_that_a_running_job_lacks_are_named() -> None:
    group = {
        "placement_group_id": "aa" * 14 + "02000000", "state": "RESCHEDULING", "strategy": "PACK",
        "bundles": {0: {"CPU": 4.0, "GPU": 1.0}, 1: {"CPU": 4.0, "GPU": 1.0}},
    }  # fmt: skip
    free = [{"CPU": 8.0, "GPU": 1.0}]
    assert stalled_line([group], "02000000", free) == (
        "Waiting for room: missing: 1 worker of 4 CPUs and 1 GPU (1 of 2 GPUs are free); "
        "scale.num_workers=1 would fit now"
    )
    assert stalled_line([group], "03000000", free) is None  # another job's
    assert stalled_line([{**group, "state": "CREATED"}], "02000000", free) is None


def test_an_autoscaler_is_asked_for_node_types_and_for_nothing_else(tmp_path: Path) -> None:
    """A process called as Ray calls its autoscaler's, on a port that no cluster has."""
    script, file = tmp_path / "autoscaler" / "monitor.py", tmp_path / "cluster.yaml"
    script.parent.mkdir()
    script.write_text("import time; print(flush=True); time.sleep(60)")
    file.write_text(yaml.safe_dump({**FILE, "provider": {"api_key": "secret"}}, sort_keys=False))
    command = [sys.executable, str(script), "--gcs-address=10.0.0.1:1", f"--autoscaling-config={file}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline()
        found = autoscaling_config("10.0.0.1:1")
        assert found is not None and growth_of(found) == growth_of(FILE) and "secret" not in str(found)
        assert autoscaling_config("10.0.0.1:2") is None
    finally:
        process.kill()
        process.wait()
