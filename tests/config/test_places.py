"""A path means the place where it was typed, whoever reads it later and from where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raygpt.config import Config
from raygpt.config.fixed import changed_fixed
from raygpt.config.places import READ, WRITTEN, absolute, check_lasting, with_absolute_paths
from raygpt.config.settings import known_keys, load_config
from raygpt.data.sources import is_path, raw_sources
from raygpt.errors import UserError
from raygpt.jobs import find_jobs


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a, b/x.txt", "v[1]/x.txt", "plain/x.txt", "~$draft.csv", "gpt2/config.json", "x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("key", "typed", "meant"),
    [
        ("run.storage", "runs", "{here}/runs"),
        ("run.storage", "./runs", "{here}/runs"),
        ("run.storage", "s3://b/runs", "s3://b/runs"),
        ("run.storage", "/x/runs", "/x/runs"),
        ("prepare.output", "out/hash tokens", "{here}/out/hash tokens"),
        ("data.train", "plain", "plain"),  # could be a hub's name: it is found where it lies below
        ("data.train", "plain/x.txt", "{here}/plain/x.txt"),
        ("data.train", "a, b/x.txt", "{here}/a, b/x.txt"),
        ("data.train", "v[1]/x.txt", "{here}/v[1]/x.txt"),
        ("data.train", "x.txt,plain/x.txt", "{here}/x.txt,{here}/plain/x.txt"),
        ("data.train", "plain/*.txt", "{here}/plain/*.txt"),
        ("data.train", "~$draft.csv", "{here}/~$draft.csv"),
        ("data.train", "../up", "{here}/../up"),
        ("data.train", "HuggingFaceFW/fineweb", "HuggingFaceFW/fineweb"),
        ("data.train", "hf://org/name", "hf://org/name"),
        ("data.tokenizer", "gpt2", "gpt2"),
        ("data.tokenizer", "train:512", "train:512"),
        ("model.init_from", "gpt2", "gpt2"),
        ("model.init_from", "random", "random"),
        ("model.init_from", "./gpt2", "{here}/gpt2"),
        ("task.train", "glue/mrpc", "glue/mrpc"),
    ],
)
def test_what_a_run_keeps_is_absolute(key: str, typed: str, meant: str, here: Path) -> None:
    section, name = key.split(".")
    config = with_absolute_paths(load_config("x", None, {key: typed}, {}, check=False))
    value = getattr(getattr(config, section), name)
    if (key, typed) == ("data.train", "plain"):
        assert value in ("plain", f"{here}/plain") and os.path.exists(value)
    else:
        assert value == meant.format(here=here)


def test_lists_of_paths_are_made_so_item_by_item(here: Path) -> None:
    config = with_absolute_paths(load_config("x", None, {"prepare.sources": "[x.txt, org/name]"}, {}, check=False))
    assert config.prepare.sources == [f"{here}/x.txt", "org/name"]


def test_every_key_is_one_and_a_run_of_before_is_the_same_run(here: Path) -> None:
    keys = {key for key, *_ in known_keys()}
    assert {*READ, *WRITTEN} <= keys
    assert absolute("run.name", "x.txt") == "x.txt"
    before, now = Config().to_dict(), Config().to_dict()
    before["data"]["train"], now["data"]["train"] = "plain/x.txt", f"{here}/plain/x.txt"
    assert changed_fixed(before, now, "sweep") == []
    now["data"]["train"] = f"{here}/x.txt"
    assert [change.key for change in changed_fixed(before, now, "sweep")] == ["data.train"]


def test_what_is_there_is_meant_first(here: Path) -> None:
    for path in ("a, b/x.txt", "v[1]/x.txt", "a, b"):
        assert is_path(path) and raw_sources(path) == [path]
    assert not is_path("c,d") and not is_path("plain/*.txt")
    assert raw_sources("x.txt, plain") == ["x.txt", "plain"]


@pytest.mark.parametrize(
    ("job", "options", "lost"),
    [
        ("pretrain", {}, "run.storage=runs"),
        ("prepare", {"prepare.output": "tokens"}, "prepare.output=tokens"),
        ("export", {"export.output": "hf"}, "export.output=hf"),
        ("distill", {"run.storage": "s3://b/r", "distill.store": "states"}, "distill.store=states"),
        ("pretrain", {"run.storage": "s3://b/r", "prepare.output": "tokens"}, None),  # it writes no such thing
        ("pretrain", {"run.storage": "/shared/runs"}, None),
        ("doctor", {}, None),  # these only look
        ("evaluate", {}, None),
    ],
)
def test_what_would_end_with_a_job_s_upload_is_refused(job: str, options: dict[str, str], lost: str | None) -> None:
    config = load_config("x", None, options, {}, check=False)
    if lost is None:
        check_lasting(config, find_jobs()[job])
    else:
        with pytest.raises(UserError, match=f"{lost} would lie in the job's upload"):
            check_lasting(config, find_jobs()[job])
