"""From `ray up` to the first step: what each phase took is kept, and shown as a table that adds up."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest

from raygpt.cluster import phases
from raygpt.cluster.phases import Launch, Phase


def test_marks_share_out_the_time_and_close_ends_it() -> None:
    launch = Launch(time.time() - 10)
    launch.mark("one")
    launch.add("two", 2.5)
    launch.close()
    launch.mark("a restart")
    assert [phase.name for phase in launch.phases] == ["one", "two"]
    assert 10 <= launch.phases[0].seconds < 11 and launch.seconds == launch.phases[0].seconds + 2.5


def test_a_job_s_launch_begins_where_it_was_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    born = psutil.Process().create_time()
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert [phase.name for phase in Launch.of_this_process().phases] == [phases.START]
    for ago, names in ((7.0, [phases.SUBMIT, phases.START]), (-7.0, [phases.START]), (9000.0, [phases.START])):
        metadata = {"metadata": {phases.SUBMITTED: str(born - ago)}}
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(metadata))
        launch = Launch.of_this_process()
        assert [phase.name for phase in launch.phases] == names  # clocks that differ say nothing
    assert launch.seconds == pytest.approx(time.time() - born, abs=1)


def test_the_cluster_s_phases_and_the_job_s_are_one_table(tmp_path: Path) -> None:
    file = tmp_path / "home" / "cluster.json"
    assert phases.read_cluster(file) is None
    phases.write_cluster(Launch(1e9, [Phase(phases.BOOT, 90), Phase(phases.SETUP, 30.26)], "g5"), file)
    cluster = phases.read_cluster(file)
    assert cluster is not None and cluster.cluster_name == "g5" and cluster.seconds == 120.26
    job = Launch(2e9, [Phase(phases.CONNECT, 1.0), Phase(phases.FIRST_STEP, 2.0)])
    lines = phases.table(job, cluster).splitlines()
    assert lines[0] == "Launch of cluster g5 and this job, seconds"
    assert [line.split()[-2] for line in lines[1:-1]] == ["90.0", "30.3", "1.0", "2.0"]
    assert lines[-1].split() == ["total", "123.3"]
    kept = phases.record(job, cluster)
    assert kept["seconds"] == 3.0 and kept["cluster"]["phases"][0] == {"name": "boot", "seconds": 90}
    assert Launch.from_json(json.loads(json.dumps(kept))).phases == job.phases


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"began": 1, "phases": [{"name": "x"}]}', '{"began": "x", "phases": []}']
)
def test_a_broken_file_is_none(text: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.json"
    file.write_text(text)
    assert phases.read_cluster(file) is None
