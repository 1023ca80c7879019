"""Classification tasks: what is read, how it is split, and every mistake named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from raygpt.classify.tasks import assemble, choose_columns, encode, load_task, read_examples, stratified_split
from raygpt.data.tokenizer import byte_tokenizer
from raygpt.errors import UserError


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_mrpc_has_the_published_sizes_in_every_form(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "mrpc" / "glue"
    task = load_task("mrpc", str(folder))
    assert task.is_pair and task.labels == ["0", "1"]
    assert len(task.train) + len(task.selection) == 3668 and task.val is not None and len(task.val) == 408
    assert task.val.labels.count("1") == 279
    table = load_task("mrpc", str(folder / "train.tsv"))
    assert (table.train, table.val) == pytest.approx((table.train, table.val))
    assert table.train.first == task.train.first and table.train.labels == task.train.labels
    raw = read_examples(str(shared_data / "mrpc" / "raw" / "msr_paraphrase_train.txt"))
    assert len(raw) == 4076 and raw.labels.count("1") == 2474 + 279


def test_the_selection_part_is_stratified_fixed_and_disjoint(shared_data: Path) -> None:
    one, two = (load_task("mrpc", str(shared_data / "mrpc/glue")) for _ in range(2))
    assert one.selection == two.selection and len(one.selection) == 366
    whole = list(zip(one.train.first, one.train.second or []))
    assert not set(whole) & set(zip(one.selection.first, one.selection.second or []))
    assert one.selection.labels.count("1") / 366 == pytest.approx(2474 / 3668, abs=2e-3)
    other = load_task("mrpc", str(shared_data / "mrpc/glue"), split_seed=1)
    assert other.selection != one.selection
    small = load_task("mrpc", str(shared_data / "mrpc/glue"), train_examples=300)
    assert len(small.train) == 300 and small.selection == one.selection


def test_a_split_gives_every_class_to_both_sides() -> None:
    labels = np.array([0] * 50 + [1] * 3 + [2] * 2)
    kept, held = stratified_split(labels, 0.1, 0)
    assert sorted([*kept, *held]) == list(range(55))
    assert set(labels[kept]) == set(labels[held]) == {0, 1, 2}
    with pytest.raises(UserError, match="occurs only once"):
        stratified_split(np.array([0, 0, 1]), 0.1, 0)


def test_single_texts_from_csv_with_quotes_and_named_columns(tmp_path: Path) -> None:
    file = write(tmp_path / "reviews.csv", 'stars,review\n5,"good, ""very"" good"\n1,bad\n5,fine\n1,poor\n')
    task = load_task("reviews", file, text_columns=["review"], label_column="stars", selection_fraction=0.5)
    assert not task.is_pair and task.labels == ["1", "5"] and task.val is None
    assert {*task.train.first, *task.selection.first} == {'good, "very" good', "bad", "fine", "poor"}


def test_labels_may_be_words_numbers_or_truth_values(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": i % 2 == 0} for i in range(6)]
    file = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert load_task("a", file, selection_fraction=0.4).labels == ["0", "1"]
    file = write(tmp_path / "b.csv", "text,label\na,spam\nb,ham\nc,spam\nd,ham\n")
    assert load_task("b", file, labels=["spam", "ham"], selection_fraction=0.5).labels == ["spam", "ham"]


@pytest.mark.parametrize(
    ("name", "content", "options", "says"),
    [
        ("a.csv", "a,b,c\n1,2,3\n", {}, "a.csv has the 3 columns a, b, c, which do not tell .* set task.text_columns"),
        ("a.csv", "sentence1,sentence2,third,label\na,b,c,1\n", {}, "4 columns .* do not tell"),
        ("a.csv", "text,label\na,1\n", {"text_columns": ["a", "b", "c"]}, "has no column a, b, c"),
        ("a.tsv", "text\tlabel\na\t1\nb\t0\tmore\n", {}, "a.tsv, line 3 has 3 fields where .* 2: mend the row"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', {}, "line 2 has the keys text instead of"),
        ("a.csv", 'text,label\na,1\n"b,0\n', {}, "a.csv, line 3 is not valid CSV"),
        ("a.jsonl", '{"text": "a", "label": 1}\nnot json\n', {}, "line 2 is not JSON"),
        ("a.csv", "text,label\na,1\n,0\n", {}, "a.csv, line 3: text is empty"),
        ("a.csv", "text,label\na,1\nb,1\n", {}, "has the one label 1"),
        ("a.csv", "text,label\na,1\nb,0\nc,1\n", {"labels": ["0", "1", "2"]}, "labels names 2, which .* does not have"),
        ("a.csv", "text,label\na,1\nb,0\nc,x\n", {"labels": ["0", "1"]}, "label x, which task.labels does not list"),
        ("a.csv", "text,label\n", {}, "has no examples"),
        ("a.xls", "text,label\n", {}, "no known extension"),
        ("a.csv", "text,label\n" + "".join(f"t,{i}\n" for i in range(60)), {}, "60 different labels in 60 rows"),
    ],
)  # fmt: skip
def test_bad_files_are_named(tmp_path: Path, name: str, content: str, options: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_task("t", write(tmp_path / name, content), **options)


def test_all_problems_of_both_files_come_together(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "text,label\na,1\nb,0\nc,1\nd,0\n")
    write(tmp_path / "validation.csv", "text,label\na,1\nb,7\n")
    with pytest.raises(UserError) as caught:
        load_task("t", str(tmp_path), labels=["0", "1", "9"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 and "names 9" in lines[0] and "validation.csv has the label 7" in lines[1]


def test_three_text_columns_are_refused() -> None:
    with pytest.raises(UserError, match="names 3 columns: a task has one text or a pair"):
        choose_columns(["a", "b", "c", "label"], ["a", "b", "c"], None, "f.csv")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task.train=.*nowhere does not exist"):
        load_task("t", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="holds no train.jsonl, train.ndjson"):
        load_task("t", str(tmp_path))
    with pytest.raises(UserError, match="task.train=glue/mrpc cannot be fetched"):
        load_task("t", "glue/mrpc")


def test_rows_end_in_the_end_of_text_and_swapping_swaps(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    file = write(tmp_path / "a.csv", "sentence1,sentence2,label\nabc,de,1\nfghijklmnop,qr,0\n")
    part = encode(read_examples(file), ["0", "1"], tokenizer)
    assert bytes(assemble(part, 0, 0, 64).astype(np.uint8)) == b"abc\0de\0"
    assert bytes(assemble(part, 0, 0, 64, swap=True).astype(np.uint8)) == b"de\0abc\0"
    # ten tokens: the longer text is cut, and to the same length in either order
    assert bytes(assemble(part, 1, 0, 10).astype(np.uint8)) == b"fghijk\0qr\0"
    assert bytes(assemble(part, 1, 0, 10, swap=True).astype(np.uint8)) == b"qr\0fghijk\0"
    assert part.labels.tolist() == [1, 0]
