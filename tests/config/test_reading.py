"""A setting is what was typed: one text has one meaning on the command line, in a variable, in a file, and in a mapping
of settings, and what is printed of it reads back as the same."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from raygpt.config import Config
from raygpt.config.job import whole_tree
from raygpt.config.section import MayBeEmpty, OfSettings
from raygpt.config.settings import dump, known_keys, load_config
from raygpt.errors import UserError
from raygpt.jobs import find_jobs

TREE = whole_tree(find_jobs().values())
CASES = Path(__file__).parents[3] / "shared" / "cases"


def field(key: str) -> Any:
    section, _, name = key.partition(".")
    return TREE.model_fields[section].annotation.model_fields[name]  # type: ignore[union-attr]


def value_of(key: str, config: Config) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def from_line(key: str, text: str) -> Any:
    return value_of(key, load_config("x", None, {key: text}, {}, check=False, tree=TREE))


def from_variable(key: str, text: str) -> Any:
    name = f"RAYGPT_{key.replace('.', '__').upper()}"
    return value_of(key, load_config("x", None, {}, {name: text}, check=False, tree=TREE))


def from_file(key: str, text: str, folder: Path, form: str = "{section}:\n  {name}: {text}\n") -> Any:
    section, _, name = key.partition(".")
    (folder / "c.yaml").write_text(form.format(section=section, name=name, text=text), encoding="utf-8")
    return value_of(key, load_config("x", str(folder / "c.yaml"), {}, {}, check=False, tree=TREE))


def from_space(key: str, text: str, folder: Path) -> Any:
    """As the option of a sweep, given to the trial's config."""
    (folder / "s.yaml").write_text(f"tune:\n  space:\n    {key}: {{choice: [{text}, {text}]}}\n", encoding="utf-8")
    space = load_config("x", str(folder / "s.yaml"), {}, {}, check=False, tree=TREE).tune.space
    return space[key]["choice"][0]


# what people type, and what it is for a setting of each type; None: refused
TYPED = [
    ("run.seed", "010", 10),
    ("run.seed", "008", 8),
    ("run.seed", "20261126234642", 20261126234642),
    ("run.seed", "1_000", 1000),
    ("run.seed", "-1", None),
    ("run.seed", "1.5", None),
    ("run.seed", "12:30:00", None),
    ("run.seed", "9" * 30, None),
    ("run.seed", "nan", None),
    ("train.max_steps", "0100", 100),
    ("train.max_steps", "1e6", 1_000_000),
    ("train.max_steps", "inf", None),
    ("train.max_steps", ".inf", None),
    ("train.epochs", ".inf", None),
    ("train.epochs", "nan", None),
    ("train.epochs", "3", 3.0),
    ("optim.lr", "1e-5", 1e-5),
    ("optim.lr", "5e8", 5e8),
    ("optim.lr", "1.10", 1.1),
    ("optim.lr", "010", 10.0),
    ("optim.lr", "inf", None),
    ("optim.lr", "no", None),
    ("scale.cpus_per_worker", "1e400", None),
    ("run.name", "0123", "0123"),
    ("run.name", "12:30:00", "12:30:00"),
    ("run.name", "no", "no"),
    ("run.name", "1.10", "1.10"),
    ("run.name", "2024-01-01", "2024-01-01"),
    ("run.name", "5e8", "5e8"),
    ("run.name", "0x10", "0x10"),
    ("data.text_column", "no", "no"),
    ("data.text_column", "010", "010"),
    ("data.text_column", "none", None),
    ("sample.prompt", "1.10", "1.10"),
    ("train.compile", "yes", True),
    ("train.compile", "off", False),
    ("train.compile", "TRUE", True),
    ("track.wandb", "off", "off"),
    ("track.wandb", "no", "off"),
    ("scale.use_gpu", "auto", "auto"),
    ("scale.use_gpu", "no", False),
    ("train.micro_batch_size", "08", 8),
    ("train.micro_batch_size", "auto", "auto"),
    ("optim.betas", "[0.9, 099e-2]", (0.9, 0.99)),
    ("scale.num_workers", "[02, 010]", (2, 10)),
    ("task.labels", "[no, yes]", ["no", "yes"]),
    ("task.labels", "[010, 1.10, 12:30:00, 2024-01-01]", ["010", "1.10", "12:30:00", "2024-01-01"]),
    ("prepare.sources", "no", ["no"]),
    ("prepare.sources", "2024-01-01", ["2024-01-01"]),
    ("prepare.sources", "007", ["007"]),
]


@pytest.mark.parametrize(("key", "text", "meaning"), TYPED)
def test_one_text_has_one_meaning(key: str, text: str, meaning: Any, tmp_path: Path) -> None:
    sources = [
        lambda: from_line(key, text),
        lambda: from_variable(key, text),
        lambda: from_file(key, text, tmp_path),
        lambda: from_file(key, text, tmp_path, "{section}.{name}: {text}\n"),
        lambda: from_file(key, text, tmp_path, "{{{section}: {{{name}: {text}}}}}\n"),
    ]
    for source in sources:
        if meaning is None and key != "data.text_column":
            with pytest.raises(UserError, match=key):
                source()
        else:
            assert source() == meaning and type(source()) is type(meaning)
    if meaning is not None and not isinstance(meaning, list | tuple):
        assert from_space(key, text, tmp_path) == meaning


@pytest.mark.parametrize(
    ("key", "text", "meaning"),
    [
        ("prepare.sources", "notes #1.txt", ["notes #1.txt"]),
        ("prepare.sources", "colon: y.jsonl", ["colon: y.jsonl"]),
        ("prepare.sources", "[draft] a.txt", ["[draft] a.txt"]),
        ("prepare.sources", " {a} ", [" {a} "]),
        ("task.text_columns", "#1 String,#2 String", ["#1 String,#2 String"]),
        ("task.text_columns", "['#1 String', '#2 String']", ["#1 String", "#2 String"]),
        ("run.storage", "s3://b/a # b", "s3://b/a # b"),
        ("sample.prompt", "  two spaces, then: a colon  ", "  two spaces, then: a colon  "),
    ],
)
def test_what_is_typed_is_taken_whole(key: str, text: str, meaning: Any) -> None:
    """A file has to quote such text, as any YAML."""
    assert from_line(key, text) == from_variable(key, text) == meaning


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("010", 10), ("5e8", 5e8), ("1e-5", 1e-5), ("no", "no"), ("12:30:00", "12:30:00"), ("2024-01-01", "2024-01-01"),
        ("true", True), ("~", None), ("0x10", 16), ("1_000", "1_000"), ("'010'", "010"), (".inf", math.inf),
    ],
)  # fmt: skip
def test_mappings_of_free_form_are_read_by_yaml_1_2(text: str, meaning: Any, tmp_path: Path) -> None:
    got = [from_file("train.deepspeed", f"{{a: {text}}}", tmp_path), from_line("train.deepspeed", f"{{a: {text}}}")]
    got += [from_variable("train.deepspeed", f"a: {text}")]
    assert got == [{"a": meaning}] * 3 and all(type(each["a"]) is type(meaning) for each in got)


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("optim:\n  lr: 1\ntrain: {}\noptim:\n  eps: 1\n", "optim", (1, 4)),
        ("optim:\n  lr: 1\n  eps: 1\n  lr: 2\n", "optim.lr", (2, 4)),
        ("optim: {lr: 1}\n\noptim.lr: 2\n", "optim.lr", (1, 3)),
        ("train:\n  deepspeed:\n    a: {b: 1,\n      b: 2}\n", "train.deepspeed.a.b", (3, 4)),
    ],
)
def test_what_is_written_twice_is_refused_with_both_lines(
    text: str, key: str, lines: tuple[int, int], tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=f"has {key} twice, in line {lines[0]} and in line {lines[1]}"):
        load_config("pretrain", str(tmp_path / "c.yaml"), {}, {})


def test_a_published_file_with_a_section_written_twice() -> None:
    if not CASES.exists():
        pytest.skip("../shared/cases is not there")
    with pytest.raises(UserError, match="optim twice"):
        load_config("pretrain", str(CASES / "duplicate_section.yaml"), {}, {}, check=False)
    tree = load_config("pretrain", str(CASES / "deepspeed_5e8.yaml"), {}, {}, check=False).train.deepspeed
    assert next(iter(tree["zero_optimization"].values())) == 500_000_000


@pytest.mark.parametrize("key", [key for key, allowed, *_ in known_keys(TREE) if "text" in allowed.split()])
def test_an_unset_variable_of_a_shell_is_no_value(key: str) -> None:
    """`--prepare.sources=$UNSET` read the current folder."""
    if any(isinstance(mark, MayBeEmpty) for mark in field(key).metadata):
        assert from_line(key, "") == from_variable(key, "") == ""
        return
    for source in (from_line, from_variable):
        with pytest.raises(UserError, match=f"{key} .* is empty: "):
            source(key, "")


def test_anchors_and_merges_are_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("optim: &o {lr: 1e-3, eps: 1e-9}\nsample: {prompt: &p 'no'}\nrun: {name: *p}\n")
    config = load_config("x", str(tmp_path / "c.yaml"), {}, {}, check=False)
    assert (config.optim.lr, config.run.name) == (1e-3, "no")
    (tmp_path / "d.yaml").write_text("train: {deepspeed: {base: &b {x: 1, y: 2}, more: {<<: *b, y: 3}}}\n")
    deepspeed = load_config("x", str(tmp_path / "d.yaml"), {}, {}, check=False).train.deepspeed
    assert deepspeed["more"] == {"x": 1, "y": 3}


def test_yaml_that_never_ends_is_refused(tmp_path: Path) -> None:
    for number, text in enumerate(("a: " + "[" * 5000 + "]" * 5000, "a: &a [*a]\n", "a: {b: &b {c: *b}}\n")):
        (tmp_path / f"{number}.yaml").write_text(text)
        with pytest.raises(UserError, match="nested deeper than"):
            load_config("x", str(tmp_path / f"{number}.yaml"), {}, {})


# --- what is printed reads back -----------------------------------------------------------------------------------

WORDS = st.one_of(
    st.sampled_from(["no", "010", "1e-5", "5e8", "none", "None", "~", "12:30:00", "2024-01-01", "0x1f", "=", "a # b"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=20),
)  # fmt: skip


def values(key: str) -> st.SearchStrategy[Any]:
    """Values of a setting, within its bounds."""
    return of_kind(field(key).annotation, field(key).metadata)


def of_kind(kind: Any, marks: Any = ()) -> st.SearchStrategy[Any]:
    origin, inner = get_origin(kind), get_args(kind)
    bounds = {name: getattr(mark, name) for mark in marks for name in ("ge", "gt", "le", "lt") if hasattr(mark, name)}
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    open_ends = {"exclude_min": "gt" in bounds, "exclude_max": "lt" in bounds}
    if origin is Literal:
        return st.sampled_from(inner)
    if origin is list:
        return st.lists(of_kind(inner[0]), max_size=3)
    if origin is tuple:
        return st.tuples(*(of_kind(each, marks) for each in inner))
    if origin is dict:
        leaf = of_kind(inner[1])
        return st.dictionaries(WORDS.filter(lambda word: word != "<<"), leaf, max_size=3)
    if inner:
        return st.one_of(*(of_kind(each, marks) for each in inner))
    if kind is Any:
        plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), WORDS)
        return st.recursive(plain, lambda leaves: st.lists(leaves, max_size=2), max_leaves=4)
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(low if low is not None else -(2**63), high if high is not None else 2**63 - 1)
    if kind is float:
        return st.floats(low, high, allow_nan=False, allow_infinity=False, **open_ends)
    return st.none() if kind is type(None) else WORDS


KEYS = [key for key, *_ in known_keys(TREE)]


@settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")), deadline=None, derandomize=True)
@given(st.data())
def test_a_value_that_is_printed_reads_back_from_every_source(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(KEYS))
    value = data.draw(values(key))
    section, _, name = key.partition(".")
    try:
        config = load_config("x", None, {}, {}, check=False, tree=TREE)
        part = type(getattr(config, section)).model_validate({name: value})
    except ValueError:  # what the setting's own check refuses
        return
    config = config.model_copy(update={section: part})
    held = value_of(key, config)
    text = dump(config)
    again = value_of(key, loaded(text))
    if any(isinstance(mark, OfSettings) for mark in field(key).metadata):
        return  # its values are of the settings that its keys name
    assert again == held and yaml.safe_load(text)[section][name] == plain(held)
    if isinstance(held, str) and held.lower() in ("none", "null"):
        return  # typed, it unsets
    typed = held if isinstance(held, str) else yaml_line(plain(held))
    assert from_line(key, typed) == held and from_variable(key, typed) == held


def loaded(text: str) -> Config:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        return load_config("x", file.name, {}, {}, check=False, tree=TREE)


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def yaml_line(value: Any) -> str:
    """A value in one line, as a person would type it."""
    from raygpt.config.reading import _Dumper

    line = yaml.dump([value], Dumper=_Dumper, default_flow_style=True, width=10**9, allow_unicode=True).strip()
    return "none" if value is None else line[1:-1]
