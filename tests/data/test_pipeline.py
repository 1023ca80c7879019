"""What read tasks are made of and give, without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raygpt.data import pipeline
from raygpt.data.corpus import expand_sources
from raygpt.data.documents import Unit
from raygpt.data.pipeline import ReadPlan, group_units, read_fragments


@pytest.mark.parametrize("held_out", ["share", "file"])
def test_every_row_of_genuine_csvs_is_a_training_or_a_validation_document(shared_data: Path, held_out: str) -> None:
    train = expand_sources([str(shared_data / "scipapers/arxiv_abstracts_21353.csv.gz")])
    val = expand_sources([str(shared_data / "scipapers/acl_sections.csv.gz")]) if held_out == "file" else []
    plan = ReadPlan((*train, *val), 0.05, "documents", val_from=len(train) if val else None)
    found = {}
    for name, units, first in (("train", train, 0), ("val", val, len(train))):
        columns = ("read", "empty", "end", "val")
        part = replace(plan, units=tuple(units))
        tables = list(read_fragments(part, first, 0, None)) if units else []  # type: ignore[arg-type]
        if tables:
            read, empty, end, is_val = (np.concatenate([t[key].to_numpy() for t in tables]) for key in columns)
            found[name] = (read.sum(), (end & ~is_val).sum(), (end & is_val).sum(), empty.sum())
    if val:
        assert found == {"train": (21353, 21353, 0, 0), "val": (6778, 0, 6778, 0)}
    else:
        read, in_train, in_val, empty = found["train"]
        assert read == 21353 == in_train + in_val and empty == 0
        assert 0.04 < in_val / read < 0.06


def test_units_are_grouped_without_gaps() -> None:
    units = [Unit("text", str(n), bytes=size) for n, size in enumerate([1, 2**30, 5, 5, 2**26, 0] * 40)]
    for first in (0, 1, 239, 240):
        groups = group_units(units, first)
        assert [index for group in groups for index in group] == list(range(first, 240))
        assert all(len(group) <= pipeline.READ_TASK_UNITS for group in groups)
