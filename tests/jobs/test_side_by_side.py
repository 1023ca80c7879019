"""`raygpt evaluate --compare`: runs of one's own beside a model of another family and tokenizer, one table and page."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from raygpt.cli import main, parse
from raygpt.data.tokenizer import train_tokenizer
from tests.jobs.conftest import VAL, FinishedRun

VAL_TEXTS = [*VAL, "Once upon a time there was a miller who was poor, but he had a beautiful daughter. " * 3] * 7


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hugging Face folder of a Llama of two layers and random weights, with a tokenizer of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = train_tokenizer(iter(VAL_TEXTS), 300)
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=64, bos_token_id=None, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer.to_json())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def reference_bits(llama: Path, texts: list[str], seq_len: int) -> float:
    """Bits per byte by transformers alone, in float64, one row at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(llama).double()
    tokenizer = AutoTokenizer.from_pretrained(llama)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    nats = 0.0
    for text in texts:
        ids = [end, *tokenizer(text, add_special_tokens=False).input_ids]
        for start in range(0, len(ids) - 1, seq_len):
            row = torch.tensor([ids[start : start + seq_len + 1]])
            with torch.no_grad():
                logits = model(row[:, :-1]).logits[0]
            nats -= float(logits.log_softmax(-1).gather(1, row[0, 1:, None]).sum())
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def test_a_run_stands_beside_a_foreign_model(
    finished: FinishedRun, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = tmp_path / "real.jsonl"
    real.write_text("".join(json.dumps({"text": text}) + "\n" for text in VAL_TEXTS))
    words = ["--compare", "tiny", str(llama), f"--run.storage={finished.root}", f"--compare.real={real}"]
    words += [f"--compare.synthetic={finished.root / 'data'}", f"--compare.output={tmp_path / 'page'}"]
    words += ["--compare.resamples=200", "--compare.samples=1", "--compare.sample_tokens=5", "--scale.use_gpu=false"]
    assert main(["evaluate", *words]) == 0
    printed = capsys.readouterr().out
    last = json.loads(printed.splitlines()[-1])
    assert list(last["compare"]) == ["tiny", "tiny-llama"]
    own, foreign = last["compare"].values()
    assert own["tokens"] == 960 and own["usd"] == 1.5 and "tokens" not in foreign
    assert foreign["real"]["bits_per_byte"] == pytest.approx(reference_bits(llama, VAL_TEXTS, 16), rel=1e-5)
    difference = foreign["real"]["difference"]
    assert difference["value"] == pytest.approx(foreign["real"]["bits_per_byte"] - own["real"]["bits_per_byte"])
    assert difference["low"] <= difference["value"] <= difference["high"]
    figures = json.loads((tmp_path / "page" / "arms.json").read_text())
    assert figures["seq_len"] == 16 and not figures["same_tokenizer"]
    assert figures["texts"]["real"]["documents_in_all"] == len(VAL_TEXTS)
    page = (tmp_path / "page" / "arms.html").read_text()
    assert "tiny-llama" in page and "Tokenizers differ" in page and "held-out synthetic text" in page
    sample = figures["samples"][0]
    assert set(sample["written"]) == {"tiny", "tiny-llama"} and all(sample["written"].values())


def test_evaluate_alone_takes_a_foreign_model_too(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "val.txt").write_text(VAL_TEXTS[-1])
    words = [f"--model.init_from={llama}", f"--data.val={tmp_path / 'val.txt'}", "--scale.use_gpu=false"]
    assert main(["evaluate", *words]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["bits_per_byte"] == pytest.approx(reference_bits(llama, [VAL_TEXTS[-1]], 64), rel=1e-5)


def test_words_after_compare_are_models_up_to_the_next_option() -> None:
    aliases = {"compare": "compare.models"}
    found = parse(["--compare", "a", "b,c", "/d e", "--data.val", "x"], (), aliases, ("compare",))
    assert found[1] == {"compare.models": '["a", "b,c", "/d e"]', "data.val": "x"}
    assert parse(["--compare=[a, b]"], (), aliases, ("compare",))[1] == {"compare.models": "[a, b]"}


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--compare", "one"], "names one model: name the one that it is held against first"),
        (["--compare", "one", "two", "--base=x", "--tuned=y"], "is set beside compare.models"),
        (["--compare", "nothing/here/a", "nothing/here/b"], "compare.models: "),
    ],
)
def test_what_cannot_be_compared_is_said(words: list[str], sentence: str, capsys, tmp_path: Path) -> None:
    assert main(["evaluate", *words, f"--run.storage={tmp_path}"]) == 2
    assert sentence in capsys.readouterr().err
