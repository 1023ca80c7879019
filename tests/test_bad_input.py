"""Users' mistakes on the real command line: one sentence, exit status 2, nothing damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from raygpt.cli import main
from raygpt.data.shards import verify
from raygpt.parallel import checkpoint, saving
from raygpt.parallel.checkpoint import RunState
from raygpt.run.lock import RunLock
from raygpt.storage import locate

TRAINING = {
    "model.preset": "nano",
    "model.seq_len": "16",
    "train.max_steps": "4",
    "train.global_batch_tokens": "64",
    "track.wandb": "off",
    "track.tensorboard": "false",
}


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused(job, {setting: value})` runs the job, asserts that it is refused properly and returns the sentence."""

    def call(job: str, settings: dict[str, object]) -> str:
        capsys.readouterr()
        status = main([job, *(f"--{key}={value}" for key, value in settings.items())])
        printed = capsys.readouterr()
        assert status == 2, printed
        assert printed.err.startswith("raygpt: ") and printed.err.count("\n") == 1, printed.err
        assert "Traceback" not in printed.err + printed.out
        return printed.err

    return call


def training(train: object, storage: object, **more: object) -> dict[str, object]:
    settings = {**TRAINING, "data.train": train, "data.val": train, "run.storage": storage, "run.name": "r"}
    return settings | {key.replace("__", "."): value for key, value in more.items()}


def test_a_mistyped_key_is_named_with_the_right_one(refused: Callable[..., str]) -> None:
    assert "train.max_step (--train.max_step) is no setting: did you mean train.max_steps?" in refused(
        "pretrain", {"train.max_step": 5}
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train__global_batch_tokens": 65}, "is no multiple of data.seq_len=16: 64 would be"),
        ({"scale__num_workers": 5}, "for 5 workers: 80 would be enough"),
        ({"train__global_batch_tokens": 16_000}, "holds 5,000 tokens but one batch needs 16,001"),
        ({"data__seq_len": 32}, "data.seq_len=32 exceeds the model's context of 16"),
        ({"model__n_embd": 30}, "model.n_embd (30) is not a multiple of model.n_head (4)"),
        ({"model__vocab_size": 100}, "knows 100 token ids but data.train was made with tokenizer bytes of 257"),
        ({"run__resume": "must"}, "run.resume=must but"),
        ({"model__init_from": "/no/such/model"}, "/no/such/model"),
        ({"data__val": "/no/such/shards"}, "/no/such/shards"),
    ],
)
def test_training_that_cannot_be_is_refused_before_ray_starts(
    refused: Callable[..., str], make_shards: Callable[..., str], tmp_path: Path, changes: dict, says: str
) -> None:
    assert says in refused("pretrain", training(make_shards(5000), tmp_path / "runs", **changes))
    assert not (tmp_path / "runs" / "r" / "checkpoints").exists()


def test_damaged_shards_are_refused(
    refused: Callable[..., str], make_shards: Callable[..., str], tmp_path: Path
) -> None:
    shards = Path(make_shards(5000))
    first = shards / "shard-00000.bin"
    first.write_bytes(first.read_bytes()[:-2])
    assert "has 1,998 bytes instead of 2,000" in refused("pretrain", training(shards, tmp_path))
    first.unlink()
    assert "is missing although manifest.json lists it" in refused("pretrain", training(shards, tmp_path))


def test_storage_that_cannot_be_used_is_named(
    refused: Callable[..., str],
    make_shards: Callable[..., str],
    s3: object,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shards = make_shards(5000)
    (tmp_path / "file").write_text("")
    assert "run.storage cannot be written to" in refused("pretrain", training(shards, tmp_path / "file"))
    missing = refused("pretrain", training(shards, "s3://no-such-bucket-here/runs"))
    assert "run.storage" in missing and "s3://no-such-bucket-here" in missing
    assert "s3://no-such-bucket-here" in refused("pretrain", training("s3://no-such-bucket-here/data", tmp_path))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    sentence = refused("pretrain", training(shards, f"{bucket}/runs"))
    assert "credentials" in sentence and "wrong" not in sentence


def test_a_run_in_use_is_refused(
    refused: Callable[..., str], make_shards: Callable[..., str], tmp_path: Path, ray_cluster
) -> None:
    lock = RunLock(locate(tmp_path / "r"))
    lock.acquire()
    try:
        assert f"in use by process {os.getpid()}" in refused("pretrain", training(make_shards(5000), tmp_path))
    finally:
        lock.release("stopped")


def test_another_tokenizer_or_other_tokens_on_a_resume_are_refused_and_the_checkpoint_is_left_alone(
    refused: Callable[..., str], make_shards: Callable[..., str], tmp_path: Path
) -> None:
    from raygpt.config import Config
    from raygpt.config.settings import dump, load_config
    from raygpt.data.order import ORDER_VERSION

    shards, others = make_shards(5000), make_shards(6000)
    settings = training(shards, tmp_path)
    config: Config = load_config("pretrain", None, {key: str(value) for key, value in settings.items()}, {})
    from raygpt.train.resolve import resolve

    job = resolve(config)
    state = RunState(
        step=2,
        order_version=ORDER_VERSION,
        fingerprint=job.train.fingerprint,
        tokenizer_sha256=job.train.tokenizer.sha256,
        model=job.model.to_dict(),
    )
    where = job.run / checkpoint.FOLDER / checkpoint.folder_name(2)
    files: dict = {"state.json": state.to_json().encode(), "config.yaml": dump(config).encode()}
    saving.write(where, files)
    assert "data.train holds other tokens" in refused("pretrain", training(others, tmp_path))
    assert "run.seed is 5 but" in refused("pretrain", training(shards, tmp_path, run__seed=5))
    other = json.loads((Path(shards) / "manifest.json").read_text())
    other["tokenizer"]["sha256"] = "0" * 64
    from raygpt.data.shards import Shard, fingerprint

    other["fingerprint"] = fingerprint(other["dtype"], "0" * 64, [Shard(**shard) for shard in other["shards"]])
    (Path(shards) / "manifest.json").write_text(json.dumps(other))
    assert "another tokenizer" in refused("pretrain", training(shards, tmp_path))
    assert checkpoint.verify(where) is None


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("gone.jsonl", None, "gone.jsonl"),
        ("empty.jsonl", b"", "no document with text"),
        ("blank.txt", b" \n \n", "no document with text"),
        ("other.csv", b"title,body\na,b\n", "(it has 'title', 'body'): set data.text_column (or prepare.text_column)"),
        ("header.csv", b"text\n", "header.csv (rows read: 0"),
        ("blank.csv", b"id,text\n1, \n2,\t\n", "blank.csv (rows read: 2, empty ones: 2)"),
        ("ragged.csv", b'text\n"a\nb"\nWell, no\n', "ragged.csv, line 4 has 2 fields where the header has 1"),
        ("quote.csv", b'id,text\n1,"a\n2,b\n', "quote.csv, line 2 is not valid CSV"),
        ("latin.csv", b"text\nol\xe9\n", "latin.csv, line 2, column 3 is not UTF-8 (byte 0xe9)"),
        ("latin.txt", b"so\ncaf\xe9 au lait", "latin.txt, line 2, column 4 is not UTF-8"),
        ("cut.jsonl", b'{"text": "a"}\n{"text": "b', "cut.jsonl"),
    ],
)
def test_text_that_cannot_be_prepared_is_named_and_leaves_no_shards(
    ray_cluster, refused: Callable[..., str], tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    settings = {"prepare.sources": tmp_path / name, "prepare.output": tmp_path / "out", "data.tokenizer": "bytes"}
    assert says in refused("prepare", settings)
    assert not list((tmp_path / "out").rglob("manifest.json"))


def test_a_document_longer_than_memory_should_hold_is_refused(
    ray_cluster, refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text("word " * 2000)
    settings = {"prepare.sources": tmp_path / "long.txt", "prepare.output": tmp_path / "out", "data.tokenizer": "bytes"}
    sentence = refused("prepare", settings | {"prepare.max_document_mb": 0.001})
    assert "long.txt, the document from line 1 on: longer than prepare.max_document_mb=0.001 allows" in sentence
    assert "prepare.split_text=true, or raygpt prepare --from-txt" in sentence


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data__train": "{tmp}/no.csv"}, "data.train: {tmp}/no.csv does not exist"),
        ({"data__val": "{tmp}/no.csv"}, "data.val: {tmp}/no.csv does not exist"),
        ({"data__train": "{tmp}/a.csv", "data__val": "{tmp}/a.csv"}, "a.csv is in data.train and in data.val"),
        ({"data__train": "{tmp}/a.csv", "data__tokenizer": "base"}, "data.tokenizer"),
        ({"data__train": "{tmp}/a.csv", "data__tokenizer": "train:300"}, "was made with tokenizer bytes of 257 but"),
    ],
)
def test_raw_data_that_cannot_be_used_is_refused_before_ray_starts(
    refused: Callable[..., str], make_shards: Callable[..., str], tmp_path: Path, changes: dict[str, str], says: str
) -> None:
    (tmp_path / "a.csv").write_text("text\nsome text\n")
    changes = {key: value.format(tmp=tmp_path) for key, value in changes.items()}
    assert says.format(tmp=tmp_path) in refused("pretrain", training(make_shards(5000), tmp_path / "runs", **changes))


def test_a_document_longer_than_a_shard_goes_on_in_the_next_one(ray_cluster, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("word " * 2000)
    settings = {"prepare.sources": tmp_path / "long.txt", "prepare.output": tmp_path / "out", "data.tokenizer": "bytes"}
    settings |= {"prepare.shard_tokens": 1024, "prepare.val_split": "tail", "prepare.val_fraction": 0.1}
    assert main(["prepare", *(f"--{key}={value}" for key, value in settings.items())]) == 0
    manifest = verify(str(tmp_path / "out" / "train"))
    assert len(manifest.shards) == 9 and manifest.tokens == 9001
