"""`raygpt prepare` and raw data of a training job, through the command line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from raygpt.cli import main
from raygpt.config import Config
from raygpt.config.settings import config_from_dict
from raygpt.data.shards import verify
from raygpt.data.sources import shard_folders
from raygpt.data.tokenizer import load_tokenizer
from raygpt.jobs.prepare import with_prepared_data

pytestmark = pytest.mark.usefixtures("ray_cluster")


def shard_folders_of(config: Config) -> tuple[str, str]:
    return shard_folders(config.data.train, config.data.val)


def documents(folder: Path | str) -> list[str]:
    manifest, tokenizer = verify(str(folder)), load_tokenizer(str(folder))
    ids = np.concatenate([np.fromfile(Path(folder) / shard.name, manifest.numpy_dtype) for shard in manifest.shards])
    ends = np.flatnonzero(ids == tokenizer.eot_id)
    return [tokenizer.decode(part[:-1]) for part in np.split(ids, ends[:-1] + 1)]


def job(output: Path, **settings: object) -> int:
    words = {"prepare.output": output, "data.tokenizer": "bytes"}
    words |= {key.replace("__", "."): value for key, value in settings.items()}
    return main(["prepare", *(f"--{key}={value}" for key, value in words.items())])


def test_a_train_and_a_validation_csv_just_work(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shared_data / "shakespeare"
    assert job(tmp_path, prepare__sources=folder / "train.csv", prepare__val_sources=folder / "validation.csv") == 0
    # this file's lines end in \r\r\n, its text in the .txt beside it does not
    assert documents(tmp_path / "val") == [(folder / "validation.txt").read_text()]
    assert len(documents(tmp_path / "train")) == 41
    assert "  Rows: 41 read = 41 train + 0 empty; 1 read = 1 val + 0 empty\n" in capsys.readouterr().out


def test_from_txt_cuts_a_text_into_documents(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (shared_data / "shakespeare/input.txt").read_text()
    (tmp_path / "big.txt").write_text(text.replace("\n", "\r\n"), newline="")
    words = ["--prepare.val_fraction=0.1", f"--prepare.output={tmp_path / 'out'}", "--data.tokenizer=bytes"]
    assert main(["prepare", f"--from-txt={tmp_path / 'big.txt'}", *words]) == 0
    found = documents(tmp_path / "out/train") + documents(tmp_path / "out/val")
    assert sorted("".join("".join(found).split())) == sorted("".join(text.split()))
    # the end of the file is a document too, however short
    assert sum(not 1990 <= len(document) <= 8000 for document in found) <= 1 and len(found) > 400
    assert f"  Rows: {len(found)} read = " in capsys.readouterr().out


def test_raw_train_and_validation_files_become_shards_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "papers.csv").write_text('id,body\n1,"one\n""two"""\n2, \n3,three\n')
    (tmp_path / "held.jsonl.gz").write_bytes(gzip.compress(b'{"body": "four"}\n{"body": null}\n'))
    config = config_from_dict(
        {
            "run": {"storage": str(tmp_path / "runs")},
            "data": {
                "train": str(tmp_path / "papers.csv"),
                "val": str(tmp_path / "held.jsonl.gz"),
                "tokenizer": "bytes",
                "text_column": "body",
            },
        }
    )
    train, val = shard_folders_of(with_prepared_data(config))
    assert (documents(train), documents(val)) == (['one\n"two"', "three"], ["four"])
    assert "Rows: 3 read = 2 train + 1 empty; 2 read = 1 val + 1 empty" in capsys.readouterr().out
    assert shard_folders_of(with_prepared_data(config)) == (train, val)
    assert "already there" in capsys.readouterr().out
    # the train shards with other validation text: their own tokenizer is used
    (tmp_path / "more.txt").write_text("five")
    data = config.data.model_copy(update={"train": train, "val": str(tmp_path / "more.txt"), "tokenizer": "gpt2"})
    assert documents(shard_folders_of(with_prepared_data(config.model_copy(update={"data": data})))[1]) == ["five"]
    # the validation shards with other text: nothing of it is held out
    data = config.data.model_copy(update={"train": str(tmp_path / "more.txt"), "val": val})
    train, same = shard_folders_of(with_prepared_data(config.model_copy(update={"data": data})))
    assert documents(train) == ["five"] and same == val


def test_the_base_models_tokenizer_prepares(tmp_path: Path, shared_data: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "model/tokenizer.json").write_bytes((shared_data / "gpt2_bpe/tokenizer.json").read_bytes())
    (tmp_path / "a.txt").write_text("Some text of mine. " * 20)
    settings = {"prepare__sources": tmp_path / "a.txt", "prepare__val_split": "tail", "prepare__val_fraction": 0.3}
    assert job(tmp_path / "out", data__tokenizer="base", model__init_from=tmp_path / "model", **settings) == 0
    assert verify(str(tmp_path / "out/train")).tokenizer.sha256 == load_tokenizer(str(shared_data / "gpt2_bpe")).sha256


def test_the_command_it_suggests_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex
    from types import SimpleNamespace

    (tmp_path / "a.txt").write_text("text")
    made = SimpleNamespace(train=f"{tmp_path}/hash #1 tokens/train")
    monkeypatch.setattr("raygpt.jobs.prepare.prepare_shards", lambda options: made)
    monkeypatch.setattr("raygpt.cluster.connect.connect", lambda scale: "")
    words = [f"--prepare.sources={tmp_path / 'a.txt'}", f"--prepare.output={tmp_path}/hash #1 tokens"]
    assert main(["prepare", *words, "--data.tokenizer=bytes"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Train on it: "))
    assert f"--data.train={made.train}" in shlex.split(line.removeprefix("Train on it: "))
