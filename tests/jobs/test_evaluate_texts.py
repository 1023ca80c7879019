"""WikiText, LAMBADA, classification and served models by `raygpt evaluate`: what is behind them computes the same."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raygpt.cli import main
from raygpt.data.tokenizer import byte_tokenizer
from raygpt.evaluate.subject import open_subject
from raygpt.scoring import wikitext
from raygpt.scoring.perplexity import measure
from raygpt.scoring.rolling import ModelRows, Windows, text_losses
from tests.conftest import save_byte_model
from tests.evaluate.hellaswag_items import WORDS, write

CONTEXT = 48


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_byte_model(tmp_path_factory.mktemp("m") / "bytes", seq_len=CONTEXT, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> str:
    draw = random.Random(3)
    path = tmp_path_factory.mktemp("w") / "wiki.test.raw"
    page = " \n = {} = \n \n {} . \n \n = = Part = = \n \n {} , 3 @.@ 5 {} . \n"
    made = (page.format(*(" ".join(draw.choices(WORDS, k=40)) for _ in range(4))) for _ in range(5))
    path.write_text("".join(made), encoding="utf-8")
    return str(path)


def evaluate(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], str]:
    assert main(["evaluate", *words]) == 0
    printed = capsys.readouterr().out
    return json.loads(printed.splitlines()[-1]), printed


def test_wikitext_in_parts_is_wikitext_read_at_once(
    model: str, pages: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [f"--model.init_from={model}", f"--eval.wikitext={pages}", f"--eval.output={tmp_path}"]
    found, printed = evaluate(capsys, *asked, "--eval.stride=10", "--eval.batch_tokens=300")
    subject, (text, name) = open_subject(model), wikitext.read(pages)
    cuts = {
        "lm_eval": Windows.of("rolling", CONTEXT),
        "huggingface": Windows.of("strided", CONTEXT, 10),
        "huggingface_no_overlap": Windows.of("strided", CONTEXT),
    }
    for reading, windows in cuts.items():
        protocol = "lm_eval" if reading == "lm_eval" else "huggingface"
        texts = wikitext.texts(text, name, protocol)  # type: ignore[arg-type]
        bos = subject.tokenizer.eot_id if reading == "lm_eval" else None
        rows = ModelRows(subject.model)
        expected, _ = measure(rows, subject.tokenizer, texts, windows, model="m", protocol=protocol, bos_id=bos)
        mine = found["wikitext"][reading]
        assert mine["token_perplexity"] == pytest.approx(expected.token.perplexity, rel=1e-6)
        if reading == "huggingface_no_overlap":
            assert "bits_per_byte" not in mine and expected.bits_per_byte is None
        else:
            assert mine["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-6)
        assert (mine["token"]["units"], mine["overlap"]) == (expected.token.units, expected.overlap)
    assert found["wikitext"]["lm_eval"]["word"]["low"] < found["wikitext"]["lm_eval"]["word_perplexity"]
    assert "context 48, overlap 38" in printed and "context 48, no overlap" in printed


def test_vocabularies_that_differ_leave_figures_per_token_out(
    model: str, pages: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from raygpt.data.tokenizer import train_tokenizer
    from raygpt.model.gpt import GPT, GPTConfig
    from raygpt.model.huggingface import export_huggingface

    tokenizer = train_tokenizer(iter([" ".join(WORDS) * 20]), 270)
    torch.manual_seed(1)
    net = GPT(GPTConfig(tokenizer.vocab_size, CONTEXT, 1, 1, 8))
    other = tmp_path / "words"
    export_huggingface(net, other, tokenizer_json=tokenizer.to_json(), eot_id=tokenizer.eot_id)
    words = ["--tasks=wikitext", f"--eval.wikitext={pages}", f"--run.storage={tmp_path}"]
    found, printed = evaluate(capsys, *words, "--compare", model, str(other))
    assert "Vocabularies differ: figures per token do not compare" in printed and "ppl/token" not in printed
    (pair,) = found["pairs"]
    assert pair["metric"] == "lm_eval bits_per_byte" and pair["items"] == 5 and "p" not in pair
    bits = [found["compare"][name]["wikitext"]["lm_eval"]["bits_per_byte"] for name in ("bytes", "words")]
    assert pair["difference"]["value"] == pytest.approx(bits[1] - bits[0], rel=1e-6)


def test_a_served_model_answers_as_the_model_itself(
    model: str, pages: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from raygpt.serve.load import load_engine
    from tests.serve.served import served

    passages = tmp_path / "lambada.jsonl"
    draw = random.Random(9)
    passages.write_text("".join(json.dumps({"text": " ".join(draw.choices(WORDS, k=5))}) + "\n" for _ in range(12)))
    asked = [f"--eval.hellaswag={write(tmp_path / 'h.jsonl', 12)}", f"--eval.lambada={passages}"]
    asked += [f"--eval.wikitext={pages}", "--eval.limit=3", f"--run.storage={tmp_path}"]
    itself, _ = evaluate(capsys, f"--model.init_from={model}", *asked)
    engine = load_engine("transformers", model, max_sequences=8, threads=1)
    with served(engine) as url:
        # one token of a prompt is foretold and not looked at: windows are shorter by it
        words = [f"--eval.endpoint={url}/v1", f"--data.tokenizer={model}", f"--eval.output={tmp_path / 'served'}"]
        found, printed = evaluate(capsys, *words, *asked)
    engine.close()
    assert f"at {url}/v1" in printed and found["hellaswag"]["items"] == found["lambada"]["items"] == 3
    for name in ("hellaswag", "lambada"):
        rows, theirs = (
            [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
            for folder in (tmp_path / "served", tmp_path / "evaluation-bytes")
        )
        for one, other in zip(rows, theirs, strict=True):
            assert np.allclose(one.pop("logprob", 0), other.pop("logprob", 0), atol=1e-4)
            assert np.allclose(one.pop("logprobs", 0), other.pop("logprobs", 0), atol=1e-4)
            assert one == other
    assert found["wikitext"]["lm_eval"]["context"] == CONTEXT - 1
    subject, (text, title) = open_subject(model), wikitext.read(pages)
    texts = wikitext.texts(text, title, "lm_eval", 3)
    losses = text_losses(
        ModelRows(subject.model),
        subject.tokenizer.encode_batch(list(texts.texts)),
        Windows.of("rolling", CONTEXT - 1),
        bos_id=subject.tokenizer.eot_id,
    )
    assert found["wikitext"]["lm_eval"]["token"]["nats"] == pytest.approx(
        losses.nats.sum() / losses.tokens.sum(), rel=1e-4
    )
    assert itself["lambada"]["lm_eval"]["perplexity"] > 1


def test_a_classifier_on_a_file_of_its_own_with_f1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    save_tiny_classifier(tmp_path / "c", tmp_path / "test.csv")
    words = [f"--model.init_from={tmp_path / 'c'}", f"--task.test={tmp_path / 'test.csv'}"]
    alone, _ = evaluate(capsys, *words, "--task.name=mine")
    found, printed = evaluate(capsys, *words, "--tasks=classification", f"--run.storage={tmp_path}")
    by_item = [json.loads(row) for row in (tmp_path / "evaluation-c" / "classification.jsonl").read_text().splitlines()]
    labels, guesses = ([row[key] for row in by_item] for key in ("label", "prediction"))
    mine = found["classification"]
    assert mine["accuracy"] == alone["accuracy"] == pytest.approx(accuracy_score(labels, guesses))
    assert mine["f1"] == alone["f1"] == pytest.approx(f1_score(labels, guesses))
    assert mine["f1_interval"] == alone["f1_interval"] and mine["loss"] == pytest.approx(alone["loss"])
    assert len(by_item) == mine["items"] == 60 and "f1" in printed


def save_tiny_classifier(folder: Path, test: Path) -> None:
    """A classifier of random weights, and a labelled file of 60 examples."""
    from raygpt.classify.classifier import Classifier, with_pad
    from raygpt.classify.folder import save_classifier
    from raygpt.model.gpt import GPT, GPTConfig

    torch.manual_seed(2)
    classifier = Classifier(with_pad(GPT(GPTConfig(257, 64, 2, 2, 16))), 2)
    rows = {"max_tokens": 64, "swap_eval": False}
    save_classifier(
        classifier, folder, labels=["0", "1"], eot_id=256, tokenizer_json=byte_tokenizer().to_json(), rows=rows
    )
    draw = random.Random(4)
    with open(test, "w", newline="") as file:
        csv.writer(file, delimiter="\t" if test.suffix == ".tsv" else ",").writerows(
            [["text", "label"], *([" ".join(draw.choices(WORDS, k=6)), draw.randrange(2)] for _ in range(60))]
        )
