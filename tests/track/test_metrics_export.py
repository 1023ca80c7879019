"""What Prometheus gets is what the records say, under names that dashboards and alerts can rely on."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from raygpt.track.metrics_export import FROM_RECORDS, NAMES, figures
from raygpt.track.record import METRICS, make_record

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
ALERTS = yaml.safe_load((CLUSTER / "alerts-raygpt.yaml").read_text(encoding="utf-8"))
DASHBOARD = json.loads((CLUSTER / "grafana-raygpt.json").read_text(encoding="utf-8"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
# of Ray's release/train_tests/benchmark/core/metrics.py, as its summary() names them
HARNESS = {
    "world_size", "train/num_steps", "train/step_time_mean_s", "data/step_time_mean_s", "train/global_tokens_per_sec",
    "train/tokens_per_sec_per_device", "train/mfu", "gpu/peak_memory_allocated_gb",
}  # fmt: skip
FUNCTIONS = {"time", "delta", "label_values"}
WORDS = {"or", "unless", "on", "offset", "run", "ray_job"}
TOKEN = re.compile(r'\s+|"[^"]*"|\d+[smhd]|\d+(\.\d+)?|[A-Za-z_][A-Za-z0-9_]*|=~|[<>=!]=|[-+*/<>=,(){}\[\]]')


def expressions() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    variables = [each["definition"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    return [rule["expr"] for rule in RULES] + panels + variables


def check_promql(text: str) -> set[str]:
    """Metrics that an expression names. Raises AssertionError for what PromQL would not read."""
    tokens, at, open_brackets = [], 0, []
    while at < len(text):
        found = TOKEN.match(text, at)
        assert found, f"{text!r} has {text[at:]!r}"
        at = found.end()
        if found[0].strip():
            tokens.append(found[0])
    names = set()
    for index, token in enumerate(tokens):
        if token in "([{":
            open_brackets.append(token)
        elif token in ")]}":
            assert open_brackets and open_brackets.pop() + token in {"()", "[]", "{}"}, text
        elif re.match("[A-Za-z_]", token) and "{" not in open_brackets:
            called = tokens[index + 1 : index + 2] == ["("]
            if token not in WORDS and not (called and token in FUNCTIONS):
                assert not called, f"{token} is no function"
                names.add(token)
        elif re.match(r"\d+[smhd]", token):
            assert open_brackets[-1:] == ["["] or tokens[index - 1] == "offset", text
    binary = set("<>*/=") | {"==", "!=", "<=", ">=", "or", "unless"}
    assert not open_brackets and tokens[-1] not in binary and tokens[0] not in binary, text
    assert not any(one in binary and other in binary for one, other in pairwise(tokens)), text
    return names


def test_a_record_s_figures_come_in_the_units_their_names_say() -> None:
    record = make_record(
        step=7, tokens=3584, train_loss=2.5, tokens_per_second=1000.0, world_size=4, step_seconds=0.5, cost_usd=1.25,
        data_wait_seconds=0.01, mfu=0.4, gpu_memory_bytes=3_500_000_000, checkpoint_stall_seconds=0.2, time=17.0,
    )  # fmt: skip
    assert figures(record) == {
        "train_num_steps": 7, "train_tokens": 3584, "train_loss": 2.5, "train_global_tokens_per_sec": 1000.0,
        "train_tokens_per_sec_per_device": 250.0, "train_step_time_mean_s": 0.5, "data_step_time_mean_s": 0.01,
        "train_mfu": 0.4, "gpu_peak_memory_allocated_gb": pytest.approx(3.5), "train_checkpoint_stall_s": 0.2,
        "world_size": 4, "train_cost_usd": 1.25, "train_last_record_time_s": 17.0,
    }  # fmt: skip
    # what is not known is absent, not 0
    assert set(figures(make_record(step=1, val_loss=3.0))) == {"train_num_steps", "train_val_loss"}


def test_every_figure_comes_from_some_record() -> None:
    assert set(figures(dict.fromkeys(METRICS, 1.0))) == set(FROM_RECORDS)


def test_figures_of_ray_s_own_harness_have_its_names() -> None:
    assert {name for name, each in FROM_RECORDS.items() if each.harness} == {name.replace("/", "_") for name in HARNESS}


def test_every_metric_that_a_dashboard_or_alert_names_is_exported_and_every_expression_can_be_read() -> None:
    found = set().union(*(check_promql(text) for text in expressions()))
    assert found <= NAMES and len(expressions()) > 20


@pytest.mark.parametrize("text", ["delta(ray_train_loss[5m]", "ray_x >", "rate_of(ray_x)", "a == == 1", "x{run='r'}"])
def test_what_is_no_promql_is_found(text: str) -> None:
    with pytest.raises(AssertionError):
        check_promql(text)


def test_alerts_say_what_to_look_at() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"} and rule["labels"]["severity"]
        assert "$labels.run" in rule["annotations"]["summary"]
    watched = " ".join(names)
    assert all(word in watched for word in ("NoStep", "WaitsForData", "LossIsNoNumber", "Restarts", "Budget"))


def test_panels_are_told_apart_and_draw_from_the_source_that_the_user_chose() -> None:
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    corners = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(corners)) == len(corners)


def test_neither_holds_a_secret_or_a_machine_s_address() -> None:
    text = json.dumps([ALERTS, DASHBOARD])
    assert not re.search(r"://|passw|bearer|api_?key|secret|\d+\.\d+\.\d+\.\d+", text, re.I)
