from __future__ import annotations

import pytest

from raygpt.errors import UserError
from raygpt.track.cost import Cost


def test_cost_is_price_times_hours() -> None:
    assert Cost(12.0).usd(900) == pytest.approx(3.0)


def test_without_a_price_there_is_no_cost() -> None:
    cost = Cost()
    assert cost.usd(3600) is None
    assert not cost.is_spent(1e9)
    assert cost.seconds_left(10) is None


def test_the_budget_is_spent_when_the_cost_reaches_it() -> None:
    cost = Cost(10, max_usd=5)
    assert not cost.is_spent(1799)
    assert cost.seconds_left(1700) == pytest.approx(100)
    assert cost.is_spent(1800)


def test_a_budget_without_a_price_is_one_sentence_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"track\.max_cost_usd .* set track\.price_per_hour"):
        Cost(None, max_usd=5)


@pytest.mark.parametrize(("price", "budget"), [(-1.0, None), (float("nan"), None), (1.0, 0.0)])
def test_impossible_prices_and_budgets_are_refused(price: float, budget: float | None) -> None:
    with pytest.raises(UserError, match="track"):
        Cost(price, budget)
