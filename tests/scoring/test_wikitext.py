"""WikiText's two protocols and the figures that follow, beside lm-evaluation-harness itself on the same file."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raygpt.cli import main
from raygpt.data.tokenizer import Tokenizer, byte_tokenizer
from raygpt.errors import UserError
from raygpt.evaluate.held_out import rows_of
from raygpt.evaluate.text_tasks import READINGS, WikitextTask
from raygpt.scoring import wikitext as wikitext_module
from raygpt.scoring.encoding import before_text, encode
from raygpt.scoring.perplexity import Perplexity, Texts, figure, measure, table
from raygpt.scoring.questions import Question
from raygpt.scoring.rolling import ModelRows, Windows
from tests.scoring.harness import harness
from tests.scoring.small import CONTEXT, VOCAB, as_language_model, save_foreign, tiny_gpt, tiny_llama, wikitext_part

EOT = 256


@pytest.fixture
def wikitext(shared_data: Path, tmp_path: Path) -> Path:
    return wikitext_part(shared_data, tmp_path)


def lm_eval_figures(model: Any, path: Path) -> tuple[Perplexity, list[dict[str, Any]]]:
    texts = wikitext_module.texts(*wikitext_module.read(str(path)), "lm_eval")
    windows = wikitext_module.windows("lm_eval", CONTEXT)
    return measure(ModelRows(model), byte_tokenizer(), texts, windows, model="tiny", protocol="lm_eval", bos_id=EOT)


def test_word_and_byte_perplexity_are_lm_evaluation_harness_own(wikitext: Path, tmp_path: Path) -> None:
    net = tiny_llama()
    pages = list(wikitext_module.pages(wikitext.read_text(encoding="utf-8")))
    rows = tmp_path / "pages.jsonl"
    rows.write_text("".join(json.dumps({"page": page}) + "\n" for page in pages), encoding="utf-8")
    theirs = harness("wikitext/wikitext", rows, net, byte_tokenizer(), CONTEXT)
    result, records = lm_eval_figures(as_language_model(net), wikitext)
    assert result.word.perplexity == pytest.approx(theirs["word_perplexity,none"], rel=1e-5)
    assert result.byte.perplexity == pytest.approx(theirs["byte_perplexity,none"], rel=1e-5)
    assert result.bits_per_byte == pytest.approx(theirs["bits_per_byte,none"], rel=1e-5)
    assert [record["id"] for record in records] == ["0", "1"] and result.texts == 2
    assert json.loads(json.dumps(result.record()))["word"]["units"] == sum(record["words"] for record in records)


def test_the_command_gives_the_harness_s_figures_for_a_model_with_a_bos_of_its_own(
    wikitext: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend.add_special_tokens(["<s>"])
    tokenizer = Tokenizer(tokenizer.backend, "bytes", EOT)
    net = tiny_llama(VOCAB + 1)
    folder = save_foreign(net, tmp_path / "m", tokenizer, bos="<s>")
    pages = list(wikitext_module.pages(wikitext.read_text(encoding="utf-8")))
    rows = tmp_path / "pages.jsonl"
    rows.write_text("".join(json.dumps({"page": page}) + "\n" for page in pages), encoding="utf-8")
    words = ["--tasks=wikitext", f"--model.init_from={folder}", f"--eval.wikitext={wikitext}"]
    assert main(["evaluate", *words, f"--eval.output={tmp_path / 'out'}", "--data.seq_len=24"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["wikitext"]
    theirs = harness("wikitext/wikitext", rows, net, tokenizer, 24, bos="<s>")
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert found["lm_eval"][name] == pytest.approx(theirs[f"{name},none"], rel=1e-5)
    assert (found["lm_eval"]["bos"], found["lm_eval"]["context"], found["lm_eval"]["model_context"]) == (257, 24, 32)
    # the first token of each of its windows costs nothing: no figure of the whole text
    alone = found["huggingface_no_overlap"]
    assert alone["token_perplexity"] > 1 and not {"word_perplexity", "byte_perplexity", "bits_per_byte"} & set(alone)


def test_a_tokenizer_that_travels_keeps_its_beginning_of_text() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_id = 7
    assert pickle.loads(pickle.dumps(tokenizer)).bos_id == 7


def test_windows_are_no_longer_than_wished_or_than_is_sensible() -> None:
    for seq_len, context, expected in ((None, 131072, 8192), (None, 1024, 1024), (16384, 131072, 16384), (64, 32, 32)):
        task = WikitextTask("x", seq_len=seq_len)
        assert {task.windows(reading, context).context for reading in READINGS} == {expected}
        subject: Any = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(seq_len=context)), trained=None)
        assert rows_of(min(seq_len, context) if seq_len else None, subject) == expected
    assert WikitextTask("x").settings() != WikitextTask("x", seq_len=64).settings()


def test_pages_begin_at_their_titles_and_are_written_as_people_write(wikitext: Path) -> None:
    text, name = wikitext_module.read(str(wikitext))
    assert name == "wiki.test.tokens (tokenised, with <unk>)"
    pages = wikitext_module.texts(text, name, "lm_eval")
    assert [page.strip().partition("\n")[0] for page in pages.texts] == ["= Robert <unk> =", "= Du Fu ="]
    assert pages.detokenised and "guest-starring role" in pages.texts[0] and " , " not in pages.texts[0]
    first = wikitext_module.texts(text, name, "lm_eval", limit=1)
    assert first.texts == pages.texts[:1] and first.name.endswith("first 1 page")


def test_the_example_of_hugging_face_joins_rows_with_their_newlines(tmp_path: Path) -> None:
    text = " \n = A = \n \n One two . \n = B = \n three\n"
    whole = wikitext_module.texts(text, "x", "huggingface")
    # rows of the data set: '', ' = A = \n', '', ' One two . \n', ' = B = \n', ' three\n'
    assert whole.texts == ("\n\n = A = \n\n\n\n\n One two . \n\n\n = B = \n\n\n three\n",)
    assert whole.words == (10,) and whole.bytes == (len(text),)
    assert wikitext_module.windows("huggingface", 1024) == Windows("strided", 1024, 512)
    assert wikitext_module.windows("huggingface", 1024, overlap=False) == Windows("strided", 1024, 1024)


def test_rows_of_the_data_set_are_the_file_that_they_were_cut_from(wikitext: Path, tmp_path: Path) -> None:
    text = wikitext.read_text(encoding="utf-8")
    rows = [line if line.strip() else "" for line in text.splitlines(keepends=True)]  # as the hub's parquet has them
    pq.write_table(pa.table({"text": rows}), tmp_path / "test-00000.parquet")
    assert wikitext_module.read(str(tmp_path / "test-00000.parquet"))[0] == text
    pq.write_table(pa.table({"page": rows}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"eval.wikitext: .*other.parquet, row 1 has no text"):
        wikitext_module.read(str(tmp_path / "other.parquet"))


def test_the_token_before_a_text_is_the_harness_s(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    assert before_text(tokenizer) == EOT
    tokenizer.bos_id = 7  # what a model's files name
    assert before_text(tokenizer) == 7
    assert encode(tokenizer, Question("a", "", ("x",)), "x")[0] == [7]


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; name WikiText's test file"):
        wikitext_module.read(str(tmp_path / "none.txt"))
    (tmp_path / "prose.txt").write_text("Call me Ishmael.\n")
    with pytest.raises(UserError, match="has no pages under headings"):
        wikitext_module.read(str(tmp_path / "prose.txt"))
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        wikitext_module.read(str(tmp_path / "bytes.txt"))


def test_the_interval_holds_the_mean_of_the_texts_population_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        units = generator.integers(50, 150, 60)
        one = figure("token", units * generator.gamma(4, 0.5, 60), units)
        held += one.low < math.exp(2.0) < one.high
    assert 0.92 < held / 1000 < 0.97
    assert figure("token", np.array([3.0]), np.array([2])).low is None


def test_one_table_shows_only_what_compares(wikitext: Path) -> None:
    one, _ = lm_eval_figures(tiny_gpt(), wikitext)
    alike = table([one, replace(one, model="other")])
    assert "token_perplexity" in alike.columns and not alike.notes
    assert [label for label, _ in alike.rows] == ["tiny", "other"]
    foreign = table([one, replace(one, model="other", vocabulary="another")])
    assert foreign.columns == ("word_perplexity", "byte_perplexity", "bits_per_byte")
    assert "different vocabularies" in foreign.notes[0] and set(foreign.rows[0][1]) == set(foreign.columns)
    mixed = table([one, replace(one, data_sha256="0" * 64), replace(one, context=16, stride=16)])
    assert "different data" in mixed.notes[0] and "different ways" in mixed.notes[1]
    assert len({label for label, _ in mixed.rows}) == 3


def test_words_of_the_original_are_counted_and_not_of_what_is_read() -> None:
    texts = Texts("x", ("ab",), (7,), (11,), detokenised=True)
    result, _ = measure(
        ModelRows(tiny_gpt()),
        byte_tokenizer(),
        texts,
        Windows.of("rolling", CONTEXT),
        model="m",
        protocol="p",
        bos_id=EOT,
    )
    assert result.word is not None and result.byte is not None
    assert (result.word.units, result.byte.units, result.token.units) == (7, 11, 2)
    assert result.word.nats * 7 == pytest.approx(result.byte.nats * 11) == pytest.approx(result.token.nats * 2)
