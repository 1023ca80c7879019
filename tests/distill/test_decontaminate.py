"""Texts that must not be learned from: found where they are planted, by the word, and not where they are not."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raygpt.data.tokenizer import byte_tokenizer
from raygpt.distill.decontaminate import Forbidden, Match, read_forbidden, row_texts
from raygpt.distill.words import worded
from raygpt.errors import UserError
from tests.distill.stored import random_texts

FILLER = "Some sentence of another kind comes first here"


def matches(uris: list[str], words: int, texts: list[str]) -> list[Match | None]:
    return read_forbidden(uris, words).matches([worded(text) for text in texts])


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_longest_match_is_reported_by_the_word(tmp_path: Path) -> None:
    words = random_texts(1, 40)[0].split()
    uri = write(tmp_path / "val.jsonl", [{"text": " ".join(words)}, {"text": " ".join(random_texts(1, 40, 1))}])
    for length in (7, 8, 9, 25, 40):
        planted = f"{FILLER}: {', '.join(words[:length]).upper()} -- {FILLER}."
        (found,) = matches([uri], 8, [planted])
        if length < 8:
            assert found is None
        else:
            assert found is not None and found.words == length
            assert found.shown.split() == words[: min(length, 20)]


def test_a_match_does_not_cross_from_one_text_to_the_next(tmp_path: Path) -> None:
    words = random_texts(1, 20)[0].split()
    uri = write(tmp_path / "pairs.jsonl", [{"a": " ".join(words[:10]), "b": " ".join(words[10:])}])
    assert matches([uri], 8, [" ".join(words[3:17])]) == [None]
    assert matches([uri], 7, [" ".join(words[3:17])])[0] is not None


def test_planted_hellaswag_is_found_context_and_every_ending(shared_data: Path) -> None:
    """Row by row: the context with its right ending whole, the wrong endings with the words before them."""
    file = shared_data / "hellaswag/hellaswag_val_5000.jsonl.gz"
    with gzip.open(file, "rt") as lines:
        rows = [json.loads(next(lines)) for _ in range(120)]
    texts, lengths = [], []
    for row in rows:
        right = f"{row['ctx']} {row['endings'][row['label']]}"
        texts.append(f"{FILLER}. {right} {FILLER}")
        lengths.append(len(worded(right).words))
        texts += [f"{row['ctx']} {ending}" for ending in row["endings"]]
        lengths += [8] * 4
    found = matches([str(file)], 8, texts)
    assert all(match is not None and match.words >= least for match, least in zip(found, lengths))


def test_hellaswag_marks_are_no_words() -> None:
    row = {
        "ctx": "[header] How to rest [title] Sleep. [step] Lie down",
        "endings": ["[step] now", "then"],
        "label": "1",
    }
    texts = [worded(text).words for text in row_texts(row, 8)]
    assert texts[0] == ["how", "to", "rest", "sleep", "lie", "down", "then"]
    assert texts[1] == ["how", "to", "rest", "sleep", "lie", "down", "now"]


def test_planted_mrpc_is_found_as_tsv_and_parquet(shared_data: Path, tmp_path: Path) -> None:
    tsv = shared_data / "mrpc/glue/validation.tsv"
    rows = [json.loads(line) for line in (shared_data / "mrpc/glue/validation.jsonl").read_text().splitlines()]
    parquet = tmp_path / "validation.parquet"
    pq.write_table(pa.Table.from_pylist(rows), parquet, row_group_size=100)
    # as a writer would set them: MRPC's own text is cut into tokens
    texts = [row[side].replace(" 's", "'s").replace(" ,", ",") for row in rows for side in ("sentence1", "sentence2")]
    for uri in (str(tsv), str(parquet)):
        found = matches([uri], 8, [f"{FILLER}. {text} {FILLER}" for text in texts])
        assert all(match is not None and match.words >= len(worded(text).words) for match, text in zip(found, texts))
    sources = read_forbidden([str(tsv)], 13).sources
    assert (sources[0].texts, sources[0].short) == (816, 78)


def test_validation_text_and_shards_are_found(tmp_path: Path, make_shards: Callable[..., str]) -> None:
    text, shards = random_texts(2, 60)
    (tmp_path / "val.txt").write_text(text)
    encode = byte_tokenizer().encode
    ids = np.concatenate([encode(random_texts(1, 50, 5)[0]), [256], encode(shards), [256]])
    uris = [str(tmp_path / "val.txt"), make_shards(ids)]
    first, second, none = matches(uris, 8, [f"{FILLER} {text}", f"{shards} {FILLER}", FILLER])
    assert first is not None and (first.source, first.words) == (0, 60)
    assert second is not None and (second.source, second.words) == (1, 60)
    assert none is None


def test_real_text_is_clean(shared_data: Path) -> None:
    """At 13 words not one document; at 8 up to 0.7 % by chance (benchmarks/quality.json)."""
    texts = pq.read_table(shared_data / "pretrain_text/openwebtext_1k.parquet")["text"].to_pylist()[::5]
    uris = [str(shared_data / "hellaswag/hellaswag_val_5000.jsonl.gz"), str(shared_data / "mrpc/glue/validation.tsv")]
    counted = [worded(text) for text in texts]
    forbidden = read_forbidden(uris, 8)
    assert sum(match is not None for match in forbidden.matches(counted)) <= 0.02 * len(texts)
    assert not any(Forbidden(forbidden.stream, forbidden.sources, 13).matches(counted))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("short.jsonl", '{"text": "only five words are here"}\n', "no text of 8 words"),
        ("bad.jsonl", "not json\n", "line 1 is not JSON"),
        ("list.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("what.bin", "x", "no known extension"),
    ],
)
def test_a_file_that_cannot_be_met_is_named(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=sentence) as error:
        read_forbidden([str(tmp_path / name)], 8)
    assert "generate.decontaminate" in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="generate.decontaminate: .*missing.jsonl does not exist"):
        read_forbidden([str(tmp_path / "missing.jsonl")], 8)
