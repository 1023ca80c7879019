from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.fs as pafs
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raygpt.errors import UserError
from raygpt.storage import Location, locate
from raygpt.track.jsonl import read_metrics
from raygpt.track.record import make_record
from raygpt.track.trackers import Trackers, public_config
from raygpt.track.wandb_run import choose_wandb_mode


def log_steps(trackers: Trackers, first: int, last: int) -> None:
    for step in range(first, last + 1):
        trackers.log(
            make_record(step=step, train_loss=1 / step, lr=1e-3, tokens=8 * step, batch_digest="ab", time=1e9 + step)
        )


def board(folder: Path, tag: str) -> list[tuple[int, float]]:
    """(step, value) of one curve as TensorBoard shows it."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def wandb_records(folder: Path) -> Iterator[Any]:
    """Records of an offline run's file, read by the format's own rules (LevelDB's log in 32 KiB blocks)."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    data, at, payload = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        payload += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record or the last part of one
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(payload)
            payload = b""
            yield record


def wandb_history(folder: Path) -> list[dict[str, Any]]:
    return [
        {
            item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        for record in wandb_records(folder)
        if record.WhichOneof("record_type") == "history"
    ]


def offline_runs(run: Path) -> list[Path]:
    return sorted((path for path in (run / "wandb").glob("offline-run-*")), key=lambda path: path.stat().st_mtime_ns)


def test_one_call_logs_to_jsonl_wandb_and_tensorboard(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = {"optim": {"lr": 1e-3}, "model": {"preset": "nano"}}
    trackers = Trackers(locate(run), "nano-1", config, wandb="offline", wandb_project="words", local_dir=tmp_path / "l")
    log_steps(trackers, 1, 20)
    trackers.flush()
    trackers.close({"best_val_loss": 1.5})

    expected = [(step, 1 / step) for step in range(1, 21)]
    assert [(r["step"], r["train_loss"]) for r in read_metrics(locate(run / "metrics.jsonl"))] == expected
    assert board(run / "tensorboard", "train_loss") == [(k, pytest.approx(v)) for k, v in expected]
    (folder,) = offline_runs(run)
    assert [(r["step"], r["train_loss"]) for r in wandb_history(folder)] == expected
    (started,) = [r.run for r in wandb_records(folder) if r.WhichOneof("record_type") == "run"]
    assert (started.project, started.display_name, started.run_id) == ("words", "nano-1", trackers.wandb_id)
    assert {u.key: json.loads(u.value_json) for u in started.config.update if u.key in config} == config
    summaries = [u for r in wandb_records(folder) for u in r.summary.update]
    assert {u.key: u.value_json for u in summaries}["best_val_loss"] == "1.5"


def test_an_offline_run_says_how_to_send_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trackers = Trackers(locate(run), "r", {}, wandb="offline", tensorboard=False, local_dir=tmp_path / "l")
    trackers.close()
    (folder,) = offline_runs(run)
    assert trackers.notes == [f"W&B: logging offline (track.wandb=offline); send it later with: wandb sync {folder}"]


def test_a_resumed_run_is_one_curve_in_every_tracker(tmp_path: Path) -> None:
    run, wandb_id = tmp_path / "run", None
    for first, last, resume in ((1, 30, 0), (21, 45, 20), (41, 60, 40)):
        trackers = Trackers(
            locate(run), "r", {}, wandb="offline", wandb_id=wandb_id, resume_step=resume, local_dir=tmp_path / "l"
        )
        assert wandb_id in (None, trackers.wandb_id)
        wandb_id = trackers.wandb_id
        log_steps(trackers, first, last)
        trackers.close()
    expected = list(range(1, 61))
    assert [record["step"] for record in read_metrics(locate(run / "metrics.jsonl"))] == expected
    assert [step for step, _ in board(run / "tensorboard", "train_loss")] == expected
    newest = Path(trackers.notes[-1].rsplit(" ", 1)[-1])
    assert newest.name.startswith("offline-run-") and str(wandb_id) in newest.name
    assert [row["step"] for row in wandb_history(newest)] == expected


def test_what_is_kept_elsewhere_is_copied_at_close(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    files = DirFileSystem(str(store), LocalFileSystem(auto_mkdir=True))  # makes folders as it goes, like S3
    where = Location(pafs.PyFileSystem(pafs.FSSpecHandler(files)), "runs/r", "s3://bucket/runs/r")
    for attempt in ("one", "two"):  # the second machine has none of the first one's files
        (tmp_path / attempt / "tensorboard").mkdir(parents=True)
        (tmp_path / attempt / "tensorboard" / "of-another-run").touch()
        trackers = Trackers(
            where, "r", {}, wandb="offline", wandb_id="abc", resume_step=5 * (attempt == "two"),
            local_dir=tmp_path / attempt,
        )  # fmt: skip
        log_steps(trackers, 6 if attempt == "two" else 1, 10)
        trackers.close()
    assert "wandb sync s3://bucket/runs/r/wandb/offline-run-" in trackers.notes[-1]
    assert [step for step, _ in board(store / "runs/r/tensorboard", "train_loss")] == list(range(1, 11))
    assert not list(store.rglob("of-another-run"))
    assert [path.name for path in (tmp_path / "two").rglob("*")] == ["tensorboard", "of-another-run"]
    newest = trackers.notes[-1].rsplit("/", 1)[-1]
    assert [row["step"] for row in wandb_history(store / "runs/r/wandb" / newest)] == list(range(1, 11))


def test_trouble_with_wandb_is_told_once_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    class Broken:
        id = "abc"
        dir = str(tmp_path / "offline-run-1-abc" / "files")
        summary: ClassVar[dict[str, Any]] = {}

        def define_metric(self, *_: Any, **__: Any) -> None: ...

        def log(self, *_: Any) -> None:
            raise ConnectionError("service process died")

    monkeypatch.setattr(wandb, "init", lambda **_: Broken())
    trackers = Trackers(locate(tmp_path / "run"), "r", {}, wandb="offline", tensorboard=False, local_dir=tmp_path / "l")
    log_steps(trackers, 1, 5)
    trackers.close({"steps": 5})
    assert [note for note in trackers.notes if "service process died" in note] == [
        "W&B: service process died; training goes on without it, metrics.jsonl has every record."
    ]
    assert len(read_metrics(locate(tmp_path / "run" / "metrics.jsonl"))) == 5


def test_a_server_that_does_not_answer_means_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    real, asked = wandb.init, []

    def init(**options: Any) -> Any:
        asked.append((options["mode"], options["resume"]))
        if options["mode"] == "online":
            raise wandb.errors.CommError("timed out")
        return real(**options)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = tmp_path / "run"
    trackers = Trackers(locate(run), "r", {}, wandb="auto", tensorboard=False, local_dir=tmp_path / "l")
    log_steps(trackers, 1, 3)
    trackers.close()
    assert asked == [("online", "allow"), ("offline", None)]
    assert "did not answer (timed out), logging offline; send it later with: wandb sync" in trackers.notes[0]
    assert [row["step"] for row in wandb_history(offline_runs(run)[0])] == [1, 2, 3]


def test_wandb_off_writes_nothing(tmp_path: Path) -> None:
    trackers = Trackers(locate(tmp_path / "run"), "r", {}, wandb="off", tensorboard=False, local_dir=tmp_path / "l")
    log_steps(trackers, 1, 2)
    trackers.close()
    trackers.close()
    assert (trackers.wandb_id, trackers.notes) == (None, [])
    assert os.listdir(tmp_path / "run") == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("setting", "environ", "mode", "note"),
    [
        ("auto", {}, "offline", "W&B: no key found, logging offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online", "W&B"),
        (
            "auto",
            {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"},
            "offline",
            "W&B: logging offline (WANDB_MODE=offline)",
        ),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled", "W&B: off (WANDB_MODE=disabled)"),
        ("online", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "online", "W&B"),
        ("offline", {"WANDB_API_KEY": "k"}, "offline", "W&B: logging offline (track.wandb=offline)"),
        ("off", {"WANDB_API_KEY": "k"}, "disabled", "W&B: off (track.wandb=off)"),
    ],
)
def test_the_mode_follows_setting_key_and_environment(
    tmp_path: Path, setting: str, environ: Mapping[str, str], mode: str, note: str
) -> None:
    assert choose_wandb_mode(setting, {"HOME": str(tmp_path), **environ}) == (mode, note)


def test_a_key_in_netrc_counts_for_its_own_server_only(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password abc\n")
    environ = {"HOME": str(tmp_path)}
    assert choose_wandb_mode("auto", environ)[0] == "online"
    assert choose_wandb_mode("auto", {**environ, "WANDB_BASE_URL": "https://wandb.example.org"})[0] == "offline"


def test_online_without_a_key_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"track\.wandb=online needs a W&B key .* set WANDB_API_KEY"):
        choose_wandb_mode("online", {"HOME": str(tmp_path)})


def test_secrets_do_not_reach_a_tracker() -> None:
    config = {
        "run": {"storage": "s3://user:hunter22@host/b", "name": "n", "token": "abc"},
        "data": {"tokenizer": "gpt2", "sources": ["a", "https://x/?sig=verysecretvalue"]},
        "train": {"max_tokens": 5, "global_batch_tokens": 6},
        "teacher": {"api_key": "sk-1", "auth": None},
    }
    assert public_config(config, {"AWS_SECRET_ACCESS_KEY": "verysecretvalue", "SHORT_KEY": "gpt2"}) == {
        "run": {"storage": "s3://***@host/b", "name": "n", "token": "***"},
        "data": {"tokenizer": "gpt2", "sources": ["a", "https://x/?sig=***"]},
        "train": {"max_tokens": 5, "global_batch_tokens": 6},
        "teacher": {"api_key": "***", "auth": None},
    }
