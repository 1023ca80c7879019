from __future__ import annotations

from pathlib import Path

import pytest

from raygpt.errors import UserError
from raygpt.track.cost import Bill, Node, check_budget, unpriced, waited_beyond_idle

T0 = 1_700_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = T0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Round prices, so that dollars can be worked out by hand."""
    file = tmp_path / "prices.yaml"
    file.write_text("big: {price: 36, spot: 18}\nsmall: 3.6\nrare: {spot: null, price: 10}\n")
    monkeypatch.setenv("RAYGPT_PRICES", str(file))


def test_a_fixed_price_is_times_the_hours_of_all_attempts() -> None:
    clock = Clock()
    bill = Bill(12.0, since=T0, earlier=[(None, 1800.0)], clock=clock)
    clock.now += 900
    assert bill.usd() == pytest.approx(9.0) and bill.attempt_usd() == pytest.approx(3.0) and bill.usd_per_hour() == 12


def test_without_a_price_there_is_no_cost() -> None:
    assert Bill(None, since=T0, earlier=[(4.0, 10.0)]).usd() is None
    local = Bill("auto", since=T0, nodes=lambda: [Node("a", None)])
    local.look()
    assert local.usd() is None and local.usd_per_hour() is None, "a laptop says nothing of itself"


def test_two_restarts_on_two_types_of_nodes_cost_what_a_hand_works_out() -> None:
    """big costs 1 cent a second on demand and half of it as spot, small a tenth.

    First attempt, 600 s: big on demand throughout (6.00), small from 100 s to 400 s (0.30); killed: 6.30 were kept.
    Second, 1,000 s: big as spot from 50 s on (4.75), though first seen at 60 s; small gone at 200 s, seen at 210 s,
    while Ray's head could not be asked for a while (0.20).
    Third, 300 s: the cluster had been there for an hour, which is no matter of this run: big (3.00), small (0.30).
    """
    clock = Clock()
    cluster: list[Node] | None = []
    bill = Bill("auto", since=T0, nodes=lambda: cluster, clock=clock)

    def at(second: float, *nodes: Node | None) -> None:
        nonlocal cluster
        clock.now = start + second
        cluster = None if nodes == (None,) else [node for node in nodes if node is not None]
        bill.look()

    start = T0
    big, small = Node("big-1", "big", started=T0 - 5000), Node("small-1", "small", started=T0 + 100)
    at(0, big)
    at(110, big, small)
    at(400, big)
    clock.now = start + 600
    assert bill.usd() == pytest.approx(6.30)
    kept = [(bill.attempt_usd(), 600.0)]

    start = T0 + 10_000
    bill = Bill("auto", since=start, earlier=kept, nodes=lambda: cluster, clock=clock)
    small = Node("small-2", "small", started=start - 50)
    spot = Node("big-2", "big", "spot", started=start + 50)
    at(0, small)
    at(60, small, spot)
    at(100, None)
    at(210, Node("small-2", "small", started=start - 50, ended=start + 200), spot)
    at(220, spot)  # Ray has forgotten the dead one
    clock.now = start + 1000
    assert bill.attempt_usd() == pytest.approx(4.95)
    kept.append((bill.attempt_usd(), 1000.0))

    start = T0 + 20_000
    bill = Bill("auto", since=start, earlier=kept, nodes=lambda: cluster, clock=clock)
    at(0, Node("a", "big", started=start - 3600), Node("b", "small", started=start - 3600), Node("c", None))
    clock.now = start + 300
    assert round(bill.usd() or 0, 2) == round(6.30 + 4.95 + 3.30, 2) == 14.55
    assert bill.usd_per_hour() == pytest.approx(39.6)


def test_an_attempt_that_kept_no_dollars_counts_at_the_present_price() -> None:
    bill = Bill("auto", since=T0, earlier=[(None, 100.0), (1.5, 7.0)], nodes=lambda: [Node("a", "big")], clock=Clock())
    bill.look()
    assert bill.usd() == pytest.approx(1.0 + 1.5)


def test_a_spot_machine_without_a_spot_price_counts_no_less_than_it_can_cost() -> None:
    assert Node("a", "rare", "spot").price == 10 and Node("a", "big", "spot").price == 18
    assert Node("a", "nothing known").price is None and Node("a", None).price is None


def test_a_budget_that_cannot_be_counted_is_one_sentence_with_both_ways_out() -> None:
    ways = r"set track\.price_per_hour to .* or label nodes raygpt\.io/instance-type=<type> .* file of RAYGPT_PRICES\.$"
    for nodes, who in (
        ([Node("a", "big"), Node("b", None, address="10.0.0.2")], "node 10.0.0.2 does not say what machine it is"),
        ([Node("a", "huge", address="10.0.0.3")], "no price is known of huge, the machine of node 10.0.0.3"),
        (None, "no cluster is there"),
    ):
        with pytest.raises(UserError, match=rf"^track\.max_cost_usd needs a price to count with, and {who}.*: {ways}"):
            check_budget("auto", 5.0, lambda nodes=nodes: nodes)
    check_budget("auto", 5.0, lambda: [Node("a", "big"), Node("gone", None, ended=T0)])
    check_budget("auto", None, lambda: None)
    check_budget(2.0, 5.0, lambda: None)


def test_nodes_that_do_not_count_beside_others_are_named() -> None:
    text = unpriced([Node("a", "big"), Node("b", None, address="10.0.0.2"), Node("c", None, ended=T0)])
    assert text == ("Cost counts 1 of 2 nodes: no price is known of 10.0.0.2 (no raygpt.io/instance-type).")
    assert unpriced([Node("a", None)]) is None and unpriced([Node("a", "big")]) is None


def test_a_budget_counts_a_quarter_of_an_hour_of_waiting_after_a_failure() -> None:
    """big costs 1 cent a second. A first start for 100 s, killed; a second 10,000 s later for 100 s, killed; this one a
    day later. Whole: all the time between. The budget: 900 s of each wait."""
    day = 86_400.0
    paid = [{"node": "a", "usd_per_hour": 36, "from": T0 + 100, "to": None}]
    idle = waited_beyond_idle([(T0, T0 + 100, []), (T0 + 10_100, T0 + 10_200, paid)])
    assert idle == pytest.approx((10_000 - 900) / 100)
    clock, begin = Clock(), T0 + day
    clock.now = begin + 50
    bill = Bill(
        "auto",
        since=begin,
        earlier=[(1.0, 100.0), (101.0, 100.0)],
        nodes=lambda: [Node("a", "big", started=T0 - 50)],
        waited={"a": T0 + 10_200},
        unbudgeted=idle,
        clock=clock,
    )
    bill.look()
    assert bill.usd() == pytest.approx(1 + 101 + (day - 10_200 + 50) / 100)
    assert bill.budget_usd() == pytest.approx(1 + 1 + 9 + 9 + 0.5)
    assert Bill(None).budget_usd() is None and Bill(36.0, since=begin, clock=clock).budget_usd() == pytest.approx(0.5)
