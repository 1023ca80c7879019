"""The card and the table: numbers by hand, metadata that parses, licences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from raygpt.data.tokenizer import byte_tokenizer
from raygpt.distill.card import Facts, card, table
from raygpt.distill.documents import QualityOptions, make_documents
from raygpt.storage import locate
from tests.distill.stored import random_texts, stored

FACTS = Facts(
    "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "tutorial",
    {"temperature": 0.7, "top_p": 0.95, "max_new_tokens": 512},
    "0123456789abcdef",
    prompts=100,
    parked=3,
    prompt_tokens=20_000,
    answer_tokens=1_000_000,
    seconds=500.0,
    gpus=2.0,
    cost_usd=0.5,
    command="raygpt generate --config jobs/configs/generate.yaml",
)


@pytest.fixture(scope="module")
def quality(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("card")
    (folder / "val.txt").write_text(" ".join(random_texts(1)[0].split()[:30]))
    texts = [*random_texts(40), random_texts(2)[1].upper(), "I like | this <b>\n" * 20, "short"]
    options = QualityOptions(
        filters=("length", "repetition", "refusal"), decontaminate=(str(folder / "val.txt"),), val_fraction=0.1
    )
    return make_documents(stored(texts), locate(folder), tokenizer=byte_tokenizer(), options=options, facts=FACTS)


def test_speed_and_cost_follow_from_tokens_seconds_and_gpus() -> None:
    figures = FACTS.figures()
    assert figures["tokens_per_second"] == 2_000
    assert figures["tokens_per_second_per_gpu"] == 1_000
    assert figures["usd_per_1m_tokens"] == 0.5
    assert figures["days_per_1b_tokens"] == pytest.approx(5.787, abs=1e-3)
    assert figures["gpu_days_per_1b_tokens"] == pytest.approx(11.574, abs=1e-3)


def test_what_is_not_known_is_left_out(quality: dict[str, Any]) -> None:
    figures = replace(FACTS, gpus=None, cost_usd=None, seconds=0.0).figures()
    derived = [name for name in figures if name.endswith(("per_gpu", "second", "1m_tokens", "1b_tokens"))]
    assert len(derived) == 5 and all(figures[name] is None for name in derived)
    text = table({**quality, "generation": figures})
    assert "tok/s" not in text and "$" not in text and "nan" not in text
    assert "tok/s" not in card({**quality, "generation": figures})


def test_the_table_accounts_for_every_answer(quality: dict[str, Any]) -> None:
    rows = [line.split() for line in table(quality).splitlines()]
    assert rows[1] == ["answers", "43"]
    left = 43
    for step, line in zip(quality["steps"], rows[2:]):
        left -= step["removed"]
        assert line[: len(step["step"].split()) + 2] == [*step["step"].split(), str(step["removed"]), str(left)]
    assert left == quality["documents"] == 39
    assert table(quality).splitlines()[-1] == (
        "tok/s 2,000.0 | tok/s per GPU 1,000.0 | cost $0.50 | per 1M tokens written $0.50 | days for 1B tokens 5.8 | "
        "GPU-days for 1B tokens 11.6"
    )


def test_the_card_has_the_hub_s_metadata_and_what_was_done(quality: dict[str, Any], tmp_path: Path) -> None:
    text = card(quality)
    _, head, body = text.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["license"] == "apache-2.0" and metadata["size_categories"] == ["n<1K"]
    assert "synthetic" in metadata["tags"] and metadata["task_categories"] == ["text-generation"]
    assert "language" not in metadata  # nobody looked
    for words in (
        "temperature 0.7, top_p 0.95, max_new_tokens 512",
        "100, of which 3 have no answer",
        "20,000 read, 1,000,000 written",
        "| tok/s per GPU | 1,000.0 |",
        "| days for 1B tokens | 5.8 |",
        "raygpt generate --config jobs/configs/generate.yaml",
        "| contamination | 1 | ",
        "n-grams of n = 8 words of the 1 texts of val.txt, a match of 8 or more removes: 1 documents, longest match 30",
        "25 bands of 5",
        "I like \\| this &lt;b>",
    ):
        assert words in body, words
    # a table's rows are as wide as its head
    for line in body.splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") in (3, 4, 5)
    assert "/tmp" not in body.split("## Samples")[0]


@pytest.mark.parametrize(
    ("teacher", "licence", "words"),
    [
        ("meta-llama/Llama-3.1-405B-Instruct-FP8", "llama3.1", "Built with Llama"),
        ("meta-llama/Meta-Llama-3-8B", "llama3", "Llama 3 Community License"),
        ("google/gemma-2-9b", "gemma", "Gemma Terms of Use"),
        ("openai-community/gpt2-xl", "mit", "MIT"),
        ("somebody/model", None, "The terms of `somebody/model` hold"),
    ],
)
def test_the_licence_is_the_teacher_s(quality: dict[str, Any], teacher: str, licence: str | None, words: str) -> None:
    text = card({**quality, "generation": replace(FACTS, teacher=teacher).figures()})
    assert yaml.safe_load(text.split("---\n")[1]).get("license") == licence
    assert words in text.split("## Licence")[1]
