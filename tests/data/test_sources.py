"""data.train and data.val: raw text or shards, in every combination."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from raygpt.config import Config
from raygpt.config.settings import config_from_dict
from raygpt.data.request import PrepareOptions
from raygpt.data.sources import needs_preparing, raw_sources
from raygpt.data.tokenizer import load_tokenizer
from raygpt.errors import UserError
from raygpt.jobs.prepare import raw_preparation


def config(tmp_path: Path, train: object, val: object = None, **settings: object) -> Config:
    tree: dict[str, dict[str, object]] = {"run": {"storage": str(tmp_path / "runs")}, "data": {"tokenizer": "bytes"}}
    tree["data"] |= {"train": str(train), "val": None if val is None else str(val)}
    for key, value in settings.items():
        section, name = key.split("__")
        tree.setdefault(section, {})[name] = value
    return config_from_dict(tree)


def wanted(tmp_path: Path, *arguments: object, **settings: object) -> PrepareOptions:
    settled = config(tmp_path, *arguments, **settings)
    assert needs_preparing(settled.data.train, settled.data.val)
    options = raw_preparation(settled)
    assert options is not None
    return options


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "train.csv").write_text("text\none\n")
    (tmp_path / "val.csv").write_text("text\ntwo\n")
    return tmp_path / "train.csv", tmp_path / "val.csv"


def test_what_becomes_of_every_combination(
    texts: tuple[Path, Path], make_shards: Callable[..., str], tmp_path: Path
) -> None:
    train, val = texts
    shards = make_shards(500)
    alone = wanted(tmp_path, train)
    assert (alone.sources, alone.val_sources, alone.sides) == ([str(train)], [], ("train", "val"))
    both = wanted(tmp_path, train, val)
    assert (both.sources, both.val_sources, both.sides) == ([str(train)], [str(val)], ("train", "val"))
    beside = wanted(tmp_path, train, shards)
    assert (beside.sources, beside.val_sources, beside.sides) == ([str(train)], [], ("train",))
    behind = wanted(tmp_path, shards, val, data__tokenizer="gpt2", prepare__max_documents=1)
    assert (behind.sources, behind.val_sources, behind.sides) == ([], [str(val)], ("val",))
    assert behind.tokenizer.sha256 == load_tokenizer("bytes").sha256  # type: ignore[union-attr]
    prepared = config(tmp_path, shards, shards)
    assert not needs_preparing(shards, shards) and raw_preparation(prepared) is None
    own = wanted(tmp_path, train, prepare__val_sources=[str(val)])
    assert (own.val_sources, own.val_setting) == ([str(val)], "prepare.val_sources")


def test_a_folders_name_depends_on_what_the_shards_depend_on_alone(
    texts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = texts

    def name(*arguments: object, **settings: object) -> str:
        return wanted(tmp_path, *arguments, **settings).output

    first = name(train, val)
    monkeypatch.chdir(tmp_path)
    same = [
        name("train.csv", "./val.csv"),
        name(train, val, prepare__output="elsewhere", prepare__sources=["x"], prepare__max_document_mb=7),
        name(train, val, prepare__val_fraction=0.3, data__seq_len=8, run__name="other"),
    ]
    assert set(same) == {first} and first.startswith(str(tmp_path / "runs/prepared/"))
    others = {name(train), name(train, val, data__tokenizer="train:300"), name(train, val, prepare__shard_tokens=2048)}
    others |= {name(train, val, data__text_column="body"), name(train, prepare__val_fraction=0.3)}
    os.utime(val, (1, 1))
    others |= {name(train, val)}
    assert len(others - {first}) == 6


def test_the_column_of_data_goes_before_that_of_prepare(texts: tuple[Path, Path], tmp_path: Path) -> None:
    train, _ = texts
    assert wanted(tmp_path, train).text_column == "text"
    assert wanted(tmp_path, train, prepare__text_column="a").text_column == "a"
    assert wanted(tmp_path, train, prepare__text_column="a", data__text_column="b").text_column == "b"


@pytest.mark.parametrize(
    ("train", "val", "says"),
    [
        ("{tmp}/no.csv", None, "^data.train: .*no.csv does not exist"),
        ("{tmp}/train.csv", "{tmp}/no.csv", "^data.val: .*no.csv does not exist"),
        ("{shards}", "{tmp}/no.csv", "^data.val: .*no.csv does not exist"),
        ("{tmp}/train.csv", "{tmp}/train.csv", "train.csv is in data.train and in data.val"),
        ("{tmp}/*.csv", "{tmp}/val.csv", "val.csv is in data.train and in data.val"),
    ],
)
def test_text_that_cannot_be_used_is_one_sentence(
    train: str, val: str | None, says: str, texts: object, make_shards: Callable[..., str], tmp_path: Path
) -> None:
    shards = make_shards(500)
    uris = [uri and uri.format(tmp=tmp_path, shards=shards) for uri in (train, val)]
    with pytest.raises(UserError, match=says):
        wanted(tmp_path, *uris)


def test_tokenizers_that_do_not_meet_are_refused(
    texts: tuple[Path, Path], make_shards: Callable[..., str], tmp_path: Path, shared_data: Path
) -> None:
    train, val = texts
    shards = make_shards(500)
    for other in ("train:300", str(shared_data / "gpt2_bpe")):
        with pytest.raises(UserError, match=f"data.val={shards} was made with tokenizer bytes of 257.*data.tokenizer="):
            wanted(tmp_path, train, shards, data__tokenizer=other)
    tokenizer = Path(shards) / "tokenizer.json"
    tokenizer.write_text(json.dumps(json.loads((shared_data / "gpt2_bpe/tokenizer.json").read_text())))
    with pytest.raises(UserError, match=r"tokenizer.json is another one: put the tokenizer"):
        wanted(tmp_path, shards, val)
    tokenizer.unlink()
    with pytest.raises(UserError, match=r"data.val is raw text but .*tokenizer.json is missing"):
        wanted(tmp_path, shards, val)


def test_lists_of_sources(tmp_path: Path) -> None:
    (tmp_path / "a, b.txt").write_text("x")
    assert raw_sources("a.csv, s3://bucket/b.csv") == ["a.csv", "s3://bucket/b.csv"]
    assert raw_sources(str(tmp_path / "a, b.txt")) == [str(tmp_path / "a, b.txt")]
