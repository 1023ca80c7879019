"""Where shards are cut, and the segments of the journal, without Ray."""

from __future__ import annotations

import random
from typing import Any

import pytest

from raygpt.data.journal import _merged
from raygpt.data.writing import Cuts


@pytest.mark.parametrize("seed", range(5))
def test_cuts_take_every_token_once_in_order(seed: int) -> None:
    made = random.Random(seed)
    objects = [list(range(n * 1000, n * 1000 + made.choice([0, 1, 5, 40, 300]))) for n in range(60)]
    cuts, shards = Cuts(37), []
    for number, tokens in enumerate(objects):
        shards += cuts.append(number, len(tokens))  # type: ignore[arg-type]
    assert cuts.open_tokens == sum(span.stop - span.start for span in cuts.open) < 37
    parts = [[token for span in spans for token in objects[span.ref][span.start : span.stop]] for spans in shards]  # type: ignore[call-overload]
    rest = [token for span in cuts.open for token in objects[span.ref][span.start : span.stop]]  # type: ignore[call-overload]
    stream = [token for tokens in objects for token in tokens]
    assert [*parts, rest] == [stream[at : at + 37] for at in range(0, len(stream), 37)] or (
        not rest and parts == [stream[at : at + 37] for at in range(0, len(stream), 37)]
    )


def test_merged_segments_say_what_they_say_one_by_one() -> None:
    def segment(number: int, shards: list[str], opened: list[str]) -> dict[str, Any]:
        side = {"shards": shards, "open": opened, "continues": not shards}
        return {"progress": number, "sides": {"train": side}}

    segments = [segment(0, [], ["a"]), segment(1, ["x"], ["b"]), segment(2, [], ["c"]), segment(3, ["y", "z"], [])]
    for count, (shards, opened) in enumerate([([], ["a"]), (["x"], ["b"]), (["x"], ["b", "c"]), (["x", "y", "z"], [])]):
        part = segments[: count + 1]
        side = _merged(part)["sides"]["train"]
        assert (side["shards"], side["open"], _merged(part)["progress"]) == (shards, opened, count)
        for cut in range(1, count + 1):
            assert _merged([_merged(part[:cut]), _merged(part[cut:])]) == _merged(part)
    assert segments[0]["sides"]["train"]["open"] == ["a"]  # the segments themselves are left alone
