"""Classification tasks: labelled texts, or pairs of texts, from CSV, TSV or JSONL files, GLUE folders or the hub.

A task has three parts. `train` is learnt from; `selection`, a stratified share of the training file, is what epochs
and hyperparameters are chosen on; `val` is scored once, when everything is chosen. A text is encoded as `ids <eot>`, a
pair as `first <eot> second <eot>`: the classifier reads the position of the last token.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raygpt import storage
from raygpt.data.corpus import Unit, expand_sources, file_format
from raygpt.data.decoding import without_surrogates
from raygpt.data.rows import place, read_rows
from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError, one_line
from raygpt.storage import Location

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
# Text columns as public sets name them, the pairs first; MRPC's own file, GLUE's tasks, and the usual single ones.
TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("#1 String", "#2 String"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("sentence",),
    ("text",),
)
LABEL_COLUMNS = ("label", "Quality", "labels")
# Columns that neither are text nor label and may stand beside them.
ID_COLUMNS = {"idx", "id", "index", "guid", "source", "#1 ID", "#2 ID", "pairID", "promptID"}
VAL_NAMES = ("validation", "dev", "val")


@dataclass(frozen=True)
class Examples:
    """Texts as they stand in a file. `second` is None for tasks of one text; `labels` are the names of labels."""

    first: list[str]
    second: list[str] | None
    labels: list[str]
    uri: str = ""

    def __len__(self) -> int:
        return len(self.first)

    def take(self, rows: Sequence[int] | np.ndarray) -> Examples:
        """The rows of these indices, in their order."""
        second = None if self.second is None else [self.second[i] for i in rows]
        return Examples([self.first[i] for i in rows], second, [self.labels[i] for i in rows], self.uri)


@dataclass(frozen=True)
class Encoded:
    """Token ids of one part. `first` and `second` hold (n,) int32 arrays without end-of-text; `labels` is int64."""

    first: list[np.ndarray]
    second: list[np.ndarray] | None
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Task:
    """The three parts of a task and its label names; the index of a name is the class. `val` is None without a file."""

    name: str
    labels: list[str]
    train: Examples
    selection: Examples
    val: Examples | None

    @property
    def is_pair(self) -> bool:
        return self.train.second is not None

    def describe(self) -> str:
        """One sentence with the sizes and the share of the largest class."""
        most = Counter(self.train.labels).most_common(1)[0]
        val = f", {len(self.val):,} to validate once" if self.val else ""
        return (
            f"Task {self.name}: {len(self.train):,} {'pairs' if self.is_pair else 'texts'} to train on, "
            f"{len(self.selection):,} of the training file to choose on{val}; {len(self.labels)} labels, "
            f"{most[1] / len(self.train):.1%} are {most[0]}"
        )


def load_task(
    name: str,
    train: str,
    val: str | None = None,
    *,
    text_columns: Sequence[str] = (),
    label_column: str | None = None,
    labels: Sequence[str] = (),
    selection_fraction: float = 0.1,
    split_seed: int = 0,
    train_examples: int | None = None,
) -> Task:
    """Read and split a task. Raises UserError that lists everything wrong with its files."""
    columns = (tuple(text_columns), label_column)
    parts: dict[str, Examples] = {}
    problems: list[str] = []
    if is_hub_task(train):
        parts = _from_hub(train, columns)
    else:
        train_file, val_file = find_files(train, val)
        for part, uri in (("train", train_file), ("val", val_file)):
            if uri is not None:
                try:
                    parts[part] = read_examples(uri, *columns, setting=f"task.{part}")
                except UserError as error:
                    problems += str(error).splitlines()
    if "train" in parts:
        problems += _label_problems(parts, labels)
    if problems:
        raise UserError("\n".join(problems))
    names = list(labels) or _in_order(set(parts["train"].labels))
    chosen = np.array([names.index(label) for label in parts["train"].labels])
    kept, selected = stratified_split(chosen, selection_fraction, split_seed)
    if train_examples is not None and train_examples < len(kept):
        kept = kept[stratified_split(chosen[kept], train_examples / len(kept), split_seed + 1)[1]]
    return Task(name, names, parts["train"].take(kept), parts["train"].take(selected), parts.get("val"))


def find_files(train: str, val: str | None = None) -> tuple[str, str | None]:
    """(training file, validation file or None): files as they are, `train.*` and `validation.*` of a folder.

    Raises UserError where there is no such file.
    """
    where = storage.locate(train)
    if storage.is_file(where):
        folder, file = where.parent, where
    elif not storage.exists(where):
        raise UserError(f"task.train={train} does not exist: name a CSV, TSV or JSONL file, a folder, or glue/mrpc.")
    else:
        folder, found = where, _named(where, ("train",))
        if found is None:
            raise UserError(f"task.train={train} holds no train{', train'.join(FORMATS)}: name the file itself.")
        file = found
    if val is not None:
        if not storage.is_file(storage.locate(val)):
            raise UserError(f"task.val={val} does not exist: name a labelled file, or leave it out.")
        return file.uri, val
    beside = _named(folder, VAL_NAMES) if file.name.startswith("train") else None
    return file.uri, beside.uri if beside else None


def read_examples(
    uri: str, text_columns: Sequence[str] = (), label_column: str | None = None, *, setting: str = "task.train"
) -> Examples:
    """All rows of a file of FORMATS, each but parquet and arrow also packed. A .txt is read as TSV, which follows GLUE:
    no quoting. Raises UserError naming the file and, where it is one, the line."""
    where = storage.locate(uri)
    kind, compression = file_format(where.name)
    if kind is None or where.name.endswith(".md"):
        raise UserError(f"{setting}={where.uri} has no known extension: {', '.join(FORMATS)} are read.")
    if not storage.is_file(where):
        raise UserError(f"{setting}={where.uri} does not exist.")
    as_tsv = [Unit("tsv", where.uri, compression=compression)]
    units = as_tsv if kind == "text" else expand_sources([uri], setting=setting)
    rows = [(place(unit, number), row) for unit in units for number, row in read_rows(unit)]
    if not rows:
        raise UserError(f"{setting}: {uri} has no examples: name another file.")
    columns = list(rows[0][1])
    for at, row in rows:
        if set(row) != set(columns):
            raise UserError(f"{at} has the keys {', '.join(row)} instead of {', '.join(columns)}.")
    texts, label = choose_columns(columns, text_columns, label_column, uri)
    cells = {
        column: [_plain(row[column], column, at, is_label=column == label) for at, row in rows]
        for column in (*texts, label)
    }
    for column, values in cells.items():
        empty = [at for (at, _), value in zip(rows, values) if not value.strip()]
        if empty:
            raise UserError(f"{empty[0]}: {column} is empty{_more(empty)}: fill or delete such lines.")
    return Examples(cells[texts[0]], cells[texts[1]] if len(texts) == 2 else None, cells[label], uri)


def choose_columns(
    columns: Sequence[str], text_columns: Sequence[str], label_column: str | None, uri: str
) -> tuple[tuple[str, ...], str]:
    """(one or two text columns, label column) by name. Raises UserError where the names do not tell."""
    listed = ", ".join(columns)
    missing = [name for name in (*text_columns, *([label_column] if label_column else [])) if name not in columns]
    if missing:
        raise UserError(f"{uri} has no column {', '.join(missing)} (it has {listed}): mend task.text_columns.")
    if len(text_columns) > 2:
        raise UserError(f"task.text_columns names {len(text_columns)} columns: a task has one text or a pair.")
    texts = tuple(text_columns) or next((names for names in TEXT_COLUMNS if set(names) <= set(columns)), ())
    label = label_column or next((name for name in LABEL_COLUMNS if name in columns), None)
    others = set(columns) - set(texts) - {label} - ID_COLUMNS
    if not texts or label is None or (others and not text_columns):
        raise UserError(
            f"{uri} has the {len(columns)} columns {listed}, which do not tell one text or a pair and its label apart: "
            "set task.text_columns and task.label_column."
        )
    return texts, label


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held out) sorted row indices; every class gives its share, at least one row on either side.

    The same labels, fraction and seed give the same split. Raises UserError for a class of a single row.
    """
    random = np.random.default_rng(seed)
    held: list[np.ndarray] = []
    for value in np.unique(labels):
        rows = np.flatnonzero(labels == value)
        if len(rows) < 2:
            raise UserError("a label occurs only once in task.train, so no share of it can be held out: drop it.")
        count = min(len(rows) - 1, max(1, round(fraction * len(rows))))
        held.append(random.permutation(rows)[:count])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), out), out


def encode(examples: Examples, names: Sequence[str], tokenizer: Tokenizer) -> Encoded:
    """Token ids of all texts and the class of every label."""
    first = [ids.astype(np.int32) for ids in tokenizer.encode_batch(examples.first)]
    second = None
    if examples.second is not None:
        second = [ids.astype(np.int32) for ids in tokenizer.encode_batch(examples.second)]
    classes = {name: index for index, name in enumerate(names)}
    return Encoded(first, second, np.array([classes[label] for label in examples.labels], dtype=np.int64))


def assemble(part: Encoded, row: int, eot_id: int, max_tokens: int, swap: bool = False) -> np.ndarray:
    """(n,) int32 ids of one row, n <= max_tokens: `text <eot>`, or `first <eot> second <eot>` (swap: second first).

    Too long a pair loses the end of its longer text first, so the cut does not depend on the order.
    """
    if part.second is None:
        return np.append(part.first[row][: max_tokens - 1], np.int32(eot_id))
    a, b = part.first[row], part.second[row]
    room = max_tokens - 2
    if len(a) + len(b) > room:
        keep_a = min(len(a), max(room - len(b), room // 2))
        a, b = a[:keep_a], b[: room - keep_a]
    if swap:
        a, b = b, a
    end = np.array([eot_id], dtype=np.int32)
    return np.concatenate([a, end, b, end])


def is_hub_task(source: str) -> bool:
    """Whether a source is `glue/<task>` or `hf://org/name[/subset]` rather than a path."""
    if source.startswith("hf://"):
        return True
    return bool(re.fullmatch(r"glue/\w+", source)) and not storage.exists(storage.locate(source))


def _from_hub(source: str, columns: tuple[tuple[str, ...], str | None]) -> dict[str, Examples]:
    import datasets

    parts = source.removeprefix("hf://").split("/")
    name, subset = (
        ("nyu-mll/glue", parts[1]) if parts[0] == "glue" else ("/".join(parts[:2]), parts[2] if parts[2:] else None)
    )
    try:
        splits = datasets.load_dataset(name, subset)
    except Exception as error:  # hub, script and format errors share no base class
        raise UserError(
            f"task.train={source} cannot be fetched ({type(error).__name__}: {one_line(error)}): check the name and "
            "the network, or name local files."
        ) from error
    val = next((split for split in ("validation", "validation_matched", "dev") if split in splits), None)
    found = {"train": _examples_of(splits["train"], source, columns)}
    if val is not None:
        found["val"] = _examples_of(splits[val], source, columns)
    return found


def _examples_of(split: Any, source: str, columns: tuple[tuple[str, ...], str | None]) -> Examples:
    texts, label = choose_columns(split.column_names, *columns, source)
    rows = split.to_dict()

    def cells(column: str) -> list[str]:
        places = enumerate(rows[column], start=1)
        return [_plain(value, column, f"{source}, row {n}", is_label=column == label) for n, value in places]

    return Examples(cells(texts[0]), cells(texts[1]) if len(texts) == 2 else None, cells(label), source)


def _named(folder: Location, names: Sequence[str]) -> Location | None:
    for name in names:
        for extension in FORMATS:
            if storage.is_file(folder / f"{name}{extension}"):
                return folder / f"{name}{extension}"
    return None


def _label_problems(parts: dict[str, Examples], labels: Sequence[str]) -> list[str]:
    found = []
    seen = Counter(parts["train"].labels)
    allowed = set(labels) or set(seen)
    if len(seen) < 2:
        found.append(f"{parts['train'].uri} has the one label {next(iter(seen))}: a task needs two or more.")
    elif not labels and len(seen) > max(20, len(parts["train"]) // 10):
        found.append(
            f"{parts['train'].uri} has {len(seen):,} different labels in {len(parts['train']):,} rows: "
            "set task.label_column."
        )
    if absent := [label for label in labels if label not in seen]:
        found.append(f"task.labels names {', '.join(absent)}, which {parts['train'].uri} does not have ({_few(seen)}).")
    for part, examples in parts.items():
        if strange := sorted(set(examples.labels) - allowed):
            whose = "task.labels does not list" if labels else "the training file does not have"
            found.append(f"task.{part}: {examples.uri} has the label {', '.join(strange[:5])}, which {whose}.")
    return found


def _in_order(names: set[str]) -> list[str]:
    """Numbers by value, words by the alphabet."""
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return sorted(names, key=int)
    return sorted(names)


def _plain(value: Any, column: str, at: str, *, is_label: bool) -> str:
    """Text of a cell; a label may be a number or a truth value as well. UserError for what is neither."""
    if value is None:
        return ""
    if isinstance(value, str):
        return without_surrogates(value, "strict", f"{at}: {column}")
    if is_label and isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value == int(value) else str(value)
    what = "text, a number or a truth value" if is_label else "text"
    raise UserError(f"{at}: {column} is {value!r:.60}, which is not {what}: mend it.")


def _few(names: Counter[str]) -> str:
    return f"it has {', '.join(_in_order(set(names))[:5])}{' …' if len(names) > 5 else ''}"


def _more(places: list[str]) -> str:
    return f" there and in {len(places) - 1:,} others" if len(places) > 1 else ""
