"""HellaSwag's three protocols: their texts, their judgement and what a file of items has to hold."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raygpt.errors import UserError
from raygpt.scoring import hellaswag
from raygpt.scoring.questions import Scored

MARKED = {
    "activity_label": "Home and Garden",
    "ctx_a": "[header] How to paint a door [title] Take it off. [step] Lay it down.",
    "ctx_b": "then You",
    "ctx": "[header] How to paint a door [title] Take it off. [step] Lay it down. then You",
    "endings": ["paint it [substeps] twice.", " wait.", "go [title] Sit.", "sing."],
    "label": "2",
}


def written(tmp_path: Path, *rows: dict[str, Any]) -> str:
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_protocols_ask_what_their_sources_ask(tmp_path: Path):
    (item,) = hellaswag.read_items(written(tmp_path, MARKED))
    asked = {name: hellaswag.questions([item], name)[0] for name in hellaswag.PROTOCOLS}
    assert asked["build_nanogpt"].context == MARKED["ctx"]
    assert asked["build_nanogpt"].continuations == (
        " paint it [substeps] twice.",
        "  wait.",
        " go [title] Sit.",
        " sing.",
    )
    assert asked["lm_eval"].context == "Home and Garden: How to paint a door. Take it off. Lay it down. Then you"
    assert asked["lm_eval"].continuations == (" paint it twice.", " wait.", " go. Sit.", " sing.")
    # nothing is stripped: one more blank behind the context, and one of the endings begins with its own
    assert asked["lighteval"].context == asked["lm_eval"].context + " "
    assert asked["lighteval"].continuations == (" paint it twice.", "  wait.", " go. Sit.", " sing.")
    assert {name: question.joining for name, question in asked.items()} == {
        "build_nanogpt": "apart",
        "lm_eval": "whole",
        "lighteval": "whole",
    }
    (wrapped,) = hellaswag.questions([item], "lighteval", chat=lambda text: f"<user>{text}<answer>\n")
    assert wrapped.context == f"<user>{asked['lighteval'].context}<answer>\n"


def test_real_items_give_the_text_that_was_made_for_lm_eval(shared_data: Path):
    path = shared_data / "hellaswag" / "hellaswag_val_5000.jsonl.gz"
    items = hellaswag.read_items(str(path))
    with gzip.open(path, "rt") as lines:
        texts = [json.loads(line)["query_lmeval"] for line in lines]
    assert len(items) == len(texts) == 5000
    differ = [number for number, item in enumerate(items) if hellaswag.context(item, "lm_eval") != texts[number]]
    assert len(differ) <= 1
    assert hellaswag.read_items(str(path), 7) == items[:7]


def test_original_rows_without_halves_serve_the_protocol_that_needs_none(shared_data: Path):
    items = hellaswag.read_items(str(shared_data / "hellaswag" / "hellaswag_val_raw.jsonl.gz"))
    assert len(hellaswag.questions(items, "build_nanogpt")) == 1381
    with pytest.raises(UserError, match="raw.jsonl.gz, line 10 and 388 more has no ctx_a, ctx_b or activity_label"):
        hellaswag.questions(items, "lm_eval")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"endings": ["one.", "two.", "three."]}, "line 2 has 3 endings"),
        ({"endings": None}, "line 2 has no endings"),
        ({"endings": ["one.", "two.", " ", "four."]}, "line 2 has an empty ending"),
        ({"ctx": "  "}, "line 2 has an empty context"),
        ({"ctx": None, "ctx_a": "", "ctx_b": ""}, "line 2 has an empty context"),
        ({"label": ""}, "line 2 has no label"),
        ({"label": 4}, "line 2 has the label '4'"),
    ],
)
def test_bad_items_are_named_with_their_line(tmp_path: Path, change: dict[str, Any], told: str):
    with pytest.raises(UserError, match=rf"eval.hellaswag: .*items.jsonl, {told}: mend or delete"):
        hellaswag.read_items(written(tmp_path, MARKED, MARKED | change, MARKED))


def test_several_bad_items_are_named_together_and_no_items_are_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="line 1 .*; .*line 2 .*; .*line 3 has no label and 2 more like these"):
        hellaswag.read_items(written(tmp_path, *[MARKED | {"label": ""}] * 5))
    with pytest.raises(UserError, match="items.jsonl"):
        hellaswag.read_items(written(tmp_path))


def scores(*pairs: tuple[float, int]) -> tuple[Scored, ...]:
    return tuple(Scored(logprob, tokens, False) for logprob, tokens in pairs)


def test_the_normalisers_are_tokens_and_characters(tmp_path: Path):
    (item,) = hellaswag.read_items(written(tmp_path, MARKED))
    # 17, 5, 8 and 5 characters in lm_eval; 17, 6, 8 and 5 in lighteval, whose second ending keeps its own blank
    given = scores((-17.0, 4), (-5.5, 2), (-8.2, 8), (-6.0, 3))
    judged = {name: hellaswag.judge(item, name, given) for name in hellaswag.PROTOCOLS}
    assert {name: one.prediction for name, one in judged.items()} == dict.fromkeys(hellaswag.PROTOCOLS, 1)
    assert judged["build_nanogpt"].normalised == pytest.approx((-4.25, -2.75, -1.025, -2.0))
    lengths = {name: [len(text) for text in hellaswag.choices(item, name)] for name in hellaswag.PROTOCOLS}
    assert lengths["lm_eval"] == [len("paint it twice."), len("wait."), len("go. Sit."), len("sing.")]
    assert lengths["lighteval"] == [len("paint it twice."), len(" wait."), len("go. Sit."), len("sing.")]
    for name in ("lm_eval", "lighteval"):
        expected = np.array([-17.0, -5.5, -8.2, -6.0]) / np.array(lengths[name])
        assert judged[name].normalised == pytest.approx(expected)
        assert judged[name].prediction_norm == int(np.argmax(expected))
    assert judged["lm_eval"].prediction_norm == 2 and judged["lighteval"].prediction_norm == 1
    assert judged["build_nanogpt"].record() == {
        "id": "0",
        "protocol": "build_nanogpt",
        "label": 2,
        "prediction": 1,
        "prediction_norm": 2,
        "acc": 0,
        "acc_norm": 1,
        "logprobs": [-17.0, -5.5, -8.2, -6.0],
        "tokens": [4, 2, 8, 3],
    }


def test_an_ending_of_marks_alone_loses(tmp_path: Path):
    (item,) = hellaswag.read_items(written(tmp_path, MARKED | {"endings": ["[step]", "a", "b", "c"]}))
    judged = hellaswag.judge(item, "lm_eval", scores((-0.1, 1), (-3.0, 1), (-2.0, 1), (-4.0, 1)))
    assert (judged.prediction, judged.prediction_norm) == (0, 2)


def test_a_summary_has_shares_errors_intervals_and_the_protocol(tmp_path: Path):
    items = hellaswag.read_items(written(tmp_path, *[MARKED] * 10))
    right, wrong = scores((-9, 1), (-9, 1), (-1, 1), (-9, 1)), scores((-1, 1), (-9, 1), (-9, 1), (-9, 1))
    judged = [
        hellaswag.judge(item, "build_nanogpt", right if number < 8 else wrong) for number, item in enumerate(items)
    ]
    summary = hellaswag.summarise(judged, bos="<s>")
    assert summary["items"] == 10 and summary["acc"] == summary["acc_norm"] == 0.8
    assert summary["acc_stderr"] == pytest.approx(np.std([1] * 8 + [0] * 2, ddof=1) / np.sqrt(10))
    assert summary["acc_interval"] == pytest.approx([0.4902, 0.9433], abs=1e-4)  # Wilson's, of 8 of 10
    assert summary["interval"] == "Wilson, 95 %"
    assert (summary["protocol"], summary["normaliser"], summary["shots"], summary["bos"]) == (
        "build_nanogpt",
        "tokens of the ending",
        0,
        "<s>",
    )
    assert hellaswag.summarise(judged[:1])["acc_norm_stderr"] is None
