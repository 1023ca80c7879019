"""No resume that would change a run's own order or weights."""

from __future__ import annotations

import json

import pytest

from raygpt.data.order import ORDER_VERSION
from raygpt.errors import UserError
from raygpt.parallel.checkpoint import RunState
from raygpt.storage import locate
from raygpt.train.resume import check_resume

CONFIG = {"run": {"seed": 1}, "data": {"seq_len": None}, "train": {"global_batch_tokens": 768}}
FACTS = {"fingerprint": "a" * 64, "tokenizer_sha256": "t", "model": {"n_layer": 4, "dropout": 0.0}}
SAVED = {**FACTS, "config": CONFIG, "order_version": ORDER_VERSION}


def check(config: dict | None = None, ignore: bool = False, **facts: object) -> None:
    check_resume(locate("/r"), SAVED, config or CONFIG, {**FACTS, **facts}, ignore_fingerprint=ignore)


def test_what_may_change_on_a_resume_does() -> None:
    check()
    check(model={"n_layer": 4, "dropout": 0.1})
    check(fingerprint="b" * 64, ignore=True)


def test_a_run_of_another_data_order_is_refused_with_both_ways_on() -> None:
    written_before = RunState.from_json(json.dumps({"step": 5, "fingerprint": "a"}))  # no version was recorded then
    assert written_before.order_version == 1
    saved = {**SAVED, "order_version": written_before.order_version}
    with pytest.raises(
        UserError, match="begun with version 1 of the data order.*model.init_from=/r.*ignore_fingerprint"
    ):
        check_resume(locate("/r"), saved, CONFIG, FACTS, ignore_fingerprint=False)
    check_resume(locate("/r"), saved, CONFIG, FACTS, ignore_fingerprint=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {**CONFIG, "run": {"seed": 2}}}, "run.seed is 2 but run /r was started with 1"),
        ({"config": {**CONFIG, "train": {"global_batch_tokens": 5}}}, "train.global_batch_tokens is 5 .* with 768"),
        ({"model": {"n_layer": 5, "dropout": 0.0}}, "model.n_layer is 5 but run /r was started with 4"),
        ({"tokenizer_sha256": "u"}, "another tokenizer"),
        (
            {"fingerprint": "b" * 64},
            "fingerprint bbbbbbbbbbbb instead of aaaaaaaaaaaa.*data.ignore_fingerprint=true, after",
        ),
    ],
)
def test_what_would_break_the_run_is_refused_with_the_way_out(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(**change)
