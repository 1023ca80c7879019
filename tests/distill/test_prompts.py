"""Files to questions: every format, in one order, crossed with options, and all that is wrong named beforehand."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raygpt.data.corpus import expand_sources
from raygpt.data.rows import place, read_rows
from raygpt.distill.generation import Generation, scan_prompts
from raygpt.distill.ledger import ANSWERED, PARKED, REPEATED, TO_ASK, Ledger
from raygpt.distill.prompts import Prompts, open_prompts, questions
from raygpt.distill.templates import load_template
from raygpt.errors import UserError
from raygpt.storage import locate


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prompts_of(sources: list[str], template: str = "prompt", **more: object) -> Prompts:
    return open_prompts(sources, Prompts((), load_template(template), "g", **more))  # type: ignore[arg-type]


def scanned(prompts: Prompts, folder: Path) -> Generation:
    generation = Generation("g", lambda: questions(prompts), locate(str(folder / "out")), {}, folder / "q", 512)
    scan_prompts(prompts, generation, folder / "ids")
    return generation


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [{"id": str(n), "prompt": f'say "{n}",\nplease'} for n in range(700)]
    jsonl(tmp_path / "a.jsonl", rows)
    lines = ["id,prompt", *(f'{n},"say ""{n}"",\nplease"' for n in range(700))]
    (tmp_path / "b.csv").write_text("\n".join(lines) + "\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet", row_group_size=300)
    found = {}
    for name in ("a.jsonl", "b.csv", "c.parquet"):
        units = expand_sources([str(tmp_path / name)])
        found[name] = [row for unit in units for row in read_rows(unit)]
        assert [row for _, row in found[name]] == rows
    assert [number for number, _ in found["a.jsonl"]] == list(range(1, 701))
    assert [number for number, _ in found["b.csv"]][:3] == [2, 4, 6]  # the line each begins in
    assert [number for number, _ in found["c.parquet"]][300] == 301  # of the second row group
    assert place(expand_sources([str(tmp_path / "b.csv")])[0], 4) == f"{tmp_path}/b.csv, line 4"


def test_the_real_seed_tasks_become_questions(shared_data: Path) -> None:
    file = str(shared_data / "instructions" / "alpaca_seed_tasks.jsonl")
    asked = list(questions(prompts_of([file], "instruction")))
    assert len(asked) == 175 and len({question.key("g") for question in asked}) == 175
    raw = [json.loads(line) for line in Path(file).read_text().splitlines()]
    for question, row in zip(asked, raw):
        given = row["instances"][0]["input"]
        assert question.messages[-1][1] == row["instruction"] + (f"\n\n{given}" if given else "")


def test_rows_are_crossed_with_options_and_samples_in_one_order(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "t.jsonl", [{"topic": "rain"}, {"topic": "rust"}])
    options = {"audience": ["children", "experts"], "style": ["a poem"]}
    asked = list(questions(prompts_of([file], "topics", options=options, samples=2)))
    seen = [(q.fields["topic"], q.fields["audience"], q.sample) for q in asked]
    assert seen == [(t, a, s) for t in ("rain", "rust") for a in ("children", "experts") for s in (0, 1)]
    assert "a poem about rain for children" in asked[0].messages[0][1]
    # the template's own where the settings have none, and options alone without a file
    assert len(list(questions(prompts_of([file], "topics")))) == 2
    alone = prompts_of([], "topics", options={"topic": ["a", "b", "c"], **options})
    assert len(list(questions(alone))) == 6
    with pytest.raises(UserError, match="the template topics needs topic"):
        prompts_of([], "topics")


def test_a_row_s_own_words_stand_before_the_template_s(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "t.jsonl", [{"topic": "bees", "audience": "children", "style": "a poem"}])
    (asked,) = questions(prompts_of([file], "topics"))
    assert "a poem about bees for children" in asked.messages[0][1]
    forced = list(questions(prompts_of([file], "topics", options={"audience": ["experts", "cooks"]})))
    assert ["for experts" in q.messages[0][1] for q in forced] == [True, False]


def test_half_a_character_in_a_prompt_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "cut \\ud83d"}\n')
    with pytest.raises(UserError, match="line 1 .*surrogate"):
        scanned(prompts_of([str(tmp_path / "p.jsonl")]), tmp_path / "w")


def test_bad_rows_are_named_by_file_and_line_and_can_be_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": "fine"}, {"prompt": " "}, {"text": "x"}, {"prompt": "good"}, {"prompt": None}]
    rows += [{"prompt": "word " * 40}]
    file = jsonl(tmp_path / "p.jsonl", rows)
    prompts = prompts_of([file], max_model_len=50, max_new_tokens=20)
    with pytest.raises(UserError) as told:
        scanned(prompts, tmp_path)
    sentence = str(told.value)
    assert f"{file}, line 2 has an empty 'prompt'" in sentence
    assert f"{file}, line 3 has no 'prompt' (it has 'text')" in sentence
    assert "and 1 more like these" in sentence and "nothing was asked" in sentence
    generation = scanned(prompts_of([file], max_model_len=50, max_new_tokens=20, skip_bad_rows=True), tmp_path / "b")
    assert generation.settle(write=False).total == 2 and generation.counts.bad_rows == 4
    long = prompts_of([jsonl(tmp_path / "l.jsonl", rows[5:])], max_model_len=50, max_new_tokens=20)
    with pytest.raises(UserError, match=r"line 1 has a prompt of 40 words, .* beyond the teacher's context of 50"):
        scanned(long, tmp_path / "c")


def test_two_rows_of_one_id_are_refused_and_equal_prompts_asked_once(tmp_path: Path) -> None:
    first = jsonl(tmp_path / "a.jsonl", [{"id": n, "prompt": f"p{n}"} for n in range(5)])
    second = jsonl(tmp_path / "b.jsonl", [{"id": 7, "prompt": "new"}, {"id": 3, "prompt": "other"}])
    with pytest.raises(UserError, match=r"a.jsonl, line 4 and .*b.jsonl, line 2 have one id, 3"):
        scanned(prompts_of([first, second]), tmp_path)
    assert scanned(prompts_of([first, second], id_column=None), tmp_path / "x").settle(write=False).total == 7
    twice = jsonl(tmp_path / "c.jsonl", [{"id": 9, "prompt": "p1"}])
    counts = scanned(prompts_of([first, twice]), tmp_path / "y").settle(write=False)
    assert (counts.total, counts.repeated, counts.to_ask) == (5, 1, 5)


def test_a_limit_counts_rows_over_all_files(tmp_path: Path) -> None:
    files = [jsonl(tmp_path / f"{name}.jsonl", [{"prompt": f"{name}{n}"} for n in range(4)]) for name in "ab"]
    prompts = prompts_of(files, max_rows=6)
    assert [q.prompt for q in questions(prompts)] == ["a0", "a1", "a2", "a3", "b0", "b1"]
    assert scanned(prompts, tmp_path).settle(write=False).total == 6


def test_the_ledger_agrees_with_a_dictionary(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    keys = [hashlib.sha256(str(n).encode()).hexdigest()[:32] for n in random.integers(0, 3000, 5000)]
    known = {key: (PARKED if n % 3 else ANSWERED) for n, key in enumerate(sorted(set(keys))[:900])}
    ledger = Ledger(tmp_path)
    for at in range(0, 5000, 777):
        ledger.add(keys[at : at + 777])
    for state in (PARKED, ANSWERED):
        ledger.know([key for key, kept in known.items() if kept == state], state)
    ledger.know(["f" * 32], ANSWERED)  # of another prompt file
    seen: set[str] = set()
    expected = []
    for key in keys:
        expected.append(REPEATED if key in seen else known.get(key, TO_ASK))
        seen.add(key)
    assert ledger.settle().tolist() == expected
    assert list(ledger.keys()) == sorted(seen)
    assert sum(1 for _ in ledger.repeats()) == Counter(expected)[REPEATED]
    assert all(keys[first] == keys[second] and first < second for first, second in ledger.repeats())


def test_an_answer_counts_before_a_reason(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(["a" * 32])
    ledger.know(["a" * 32], PARKED)
    ledger.know(["a" * 32], ANSWERED)
    assert ledger.settle().tolist() == [ANSWERED]
