"""`raygpt evaluate`: figures against a loop in float64, whatever form the validation data has."""

from __future__ import annotations

import csv
import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from raygpt.cli import main
from tests.jobs.conftest import VAL, FinishedRun, write_shards


def by_hand(run: FinishedRun, tokens: list[int]) -> float:
    """Sum of -ln p over tokens[1:] in nats: rows of 16 that follow each other, one token at a time in float64."""
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, 16):
            row = tokens[start : start + 17]
            logits = run.model(torch.tensor([row[:-1]])).double()[0]
            total -= sum(float(line.log_softmax(-1)[target]) for line, target in zip(logits, row[1:], strict=True))
    return total


def evaluate(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict, str]:
    assert main(["evaluate", *words]) == 0
    printed = capsys.readouterr().out
    return json.loads(printed.splitlines()[-1]), printed


def test_a_run_is_evaluated_on_its_own_validation_shards(
    finished: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    found, printed = evaluate(capsys, *finished.options)
    tokens = [token for text in VAL for token in [*text.encode(), 256]]
    nats = by_hand(finished, tokens)
    assert found["tokens"] == len(tokens) - 1 == finished.val.tokens - 1
    assert found["loss"] == pytest.approx(nats / found["tokens"], rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / found["tokens"]), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / sum(len(t.encode()) for t in VAL), rel=1e-5)
    assert found["step"] == 30 and found["fingerprint"] == finished.val.fingerprint
    assert f"Loss {found['loss']:.4f} nats per token, perplexity {found['perplexity']:.2f}" in printed
    assert "step_00000030 (step 30)" in printed and "fp32" in printed


@pytest.fixture
def forms(tmp_path: Path) -> dict[str, str]:
    """The validation documents as every kind of file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = "".join(json.dumps({"text": text}) + "\n" for text in VAL)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    with open(tmp_path / "c.csv", "w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in VAL)])
    pq.write_table(pa.table({"text": VAL}), tmp_path / "d.parquet")
    (tmp_path / "e.txt").write_text("<|endoftext|>".join(VAL))
    (tmp_path / "folder").mkdir()
    for number, text in enumerate(VAL):
        (tmp_path / "folder" / f"{number}.txt").write_text(text)
    names = ("a.jsonl", "b.jsonl.gz", "c.csv", "d.parquet", "e.txt", "folder")
    return {name: str(tmp_path / name) for name in names}


def test_raw_text_counts_every_byte_and_its_form_does_not_matter(
    finished: FinishedRun, forms: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = [token for text in VAL for token in [256, *text.encode()]]
    nats = by_hand(finished, tokens)
    size = sum(len(text.encode()) for text in VAL)
    for name, path in forms.items():
        found, _ = evaluate(capsys, *finished.options, f"--data.val={path}")
        assert found["tokens"] == len(tokens) - 1, name
        assert found["loss"] == pytest.approx(nats / found["tokens"], rel=1e-5), name
        assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5), name
        assert "fingerprint" not in found


def test_part_of_the_data_has_no_bits_per_byte(finished: FinishedRun, capsys: pytest.CaptureFixture[str]) -> None:
    # the run's global batch is 32 tokens, two rows
    found, printed = evaluate(capsys, *finished.options, "--eval.batches=1")
    assert found["rows"] == 2 and found["tokens"] == 32
    assert "bits_per_byte" not in found and "bits per byte" not in printed


def test_a_checkpoint_and_an_export_of_it_score_the_same(
    finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = finished.folder / "checkpoints" / "step_00000030"
    folder, val = tmp_path / "hf", f"--data.val={finished.root / 'data'}"
    assert main(["export", f"--model.init_from={checkpoint}", f"--export.output={folder}"]) == 0
    capsys.readouterr()
    first, _ = evaluate(capsys, f"--model.init_from={checkpoint}", val)
    second, _ = evaluate(capsys, f"--model.init_from={folder}", val)
    assert first["loss"] == second["loss"] and first["bits_per_byte"] == second["bits_per_byte"]
    assert first["data"] == second["data"] == str(finished.root / "data" / "val")
    assert "step" not in second


def test_shards_of_another_tokenizer_are_refused(
    finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from raygpt.data.tokenizer import train_tokenizer

    other = train_tokenizer(iter(["some words to learn from, " * 20]), 270)
    write_shards(tmp_path / "other", VAL, other)
    assert main(["evaluate", *finished.options, f"--data.val={tmp_path / 'other'}"]) == 2
    error = capsys.readouterr().err
    assert "was made with tokenizer bpe-270" in error and "the model's own is bytes of 257" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data.val=/no/such/file.txt"], "data.val=/no/such/file.txt does not exist"),
        (["--data.seq_len=17"], "data.seq_len=17 exceeds the model's context of 16"),
        (["--run.name=other"], "has no checkpoint: name a run with run.storage and run.name, or a model with"),
        (["--scale.use_gpu=true"], "scale.use_gpu=true but PyTorch finds no GPU here"),
    ],
)
def test_mistakes_are_one_sentence(
    finished: FinishedRun, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    if "use_gpu" in says and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["evaluate", *finished.options, *words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_an_empty_file_and_a_model_without_data_are_refused(
    finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    assert main(["evaluate", *finished.options, f"--data.val={tmp_path / 'empty.txt'}"]) == 2
    assert "holds no text" in capsys.readouterr().err
    assert main(["export", *finished.options, f"--export.output={tmp_path / 'hf'}"]) == 0
    assert main(["evaluate", f"--model.init_from={tmp_path / 'hf'}"]) == 2
    assert "data.val is not set" in capsys.readouterr().err


def test_progress_reaches_the_end(finished: FinishedRun) -> None:
    from raygpt.config.settings import load_config
    from raygpt.evaluate.held_out import evaluate_held_out, open_held_out
    from raygpt.jobs.evaluate import chosen_subject

    config = load_config("evaluate", None, {"run.storage": str(finished.root), "run.name": "tiny"}, {})
    subject = chosen_subject(config)
    held_out = open_held_out(str(finished.root / "data" / "val"), subject.tokenizer)
    seen: list[tuple[int, int]] = []
    evaluate_held_out(subject, held_out, 16, batch_rows=2, on_progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 2 and all(np.diff([done for done, _ in seen]) > 0)
    assert seen[-1] == (finished.val.tokens, finished.val.tokens)


def test_other_shards_where_a_run_s_own_lay_are_not_taken_for_them(tmp_path: Path) -> None:
    """A path of a run's config may lead elsewhere by now; its training data say whether it does."""
    import shutil
    from types import SimpleNamespace

    from raygpt.config import Config
    from raygpt.data.shards import load_manifest
    from raygpt.errors import UserError
    from raygpt.evaluate.subject import Trained
    from raygpt.jobs.evaluate import validation_uri
    from tests.train.running import letters

    for side in ("train", "val"):
        letters(tmp_path / "own" / side)
    letters(tmp_path / "others" / "train", 3000)
    letters(tmp_path / "others" / "val")
    state = SimpleNamespace(fingerprint=load_manifest(str(tmp_path / "own/train")).fingerprint)

    def of(folder: str, val: str | None = None) -> str:
        subject = SimpleNamespace(trained=Trained(f"{tmp_path}/{folder}/train", val), state=state, mixed=False)
        return validation_uri(Config(), subject)  # type: ignore[arg-type]

    assert of("own") == f"{tmp_path}/own/val"
    with pytest.raises(UserError, match="holds other tokens now than those it was trained on: name data.val"):
        of("others")
    shutil.rmtree(tmp_path / "own" / "train")
    assert of("own", f"{tmp_path}/own/val") == f"{tmp_path}/own/val"
