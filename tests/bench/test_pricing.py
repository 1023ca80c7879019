"""What a row costs is the price of the machines, or the share of one, that its workers use."""

from __future__ import annotations

import pytest

from raygpt import prices
from raygpt.bench.pricing import of_all, of_machine, of_nodes
from raygpt.bench.scaling import step_row
from raygpt.errors import UserError
from tests.bench.test_ladder import MEASURED


def test_a_row_is_priced_by_the_machines_that_its_workers_use() -> None:
    eight = of_machine(prices.machine("gpu_8x_h100_sxm5"), 1, 2)  # 31.92 $/h
    assert eight is not None
    assert eight.per_hour(1) == pytest.approx(3.99) and eight.per_hour(16) == pytest.approx(63.84)
    assert eight.describe(1) == "0.125 × gpu_8x_h100_sxm5 at $31.92 an hour" and eight.describe(16).startswith("2 × ")
    row = step_row("torchrun × 16", [{**MEASURED, "world_size": 16}], eight)
    assert row.usd_per_billion_tokens == pytest.approx(63.84 / 3600 / 100 * 1e9)
    assert row.figures["priced"] == eight.describe(16)


def test_cores_share_a_machine_without_gpus() -> None:
    half = of_machine(prices.machine("m5.large"), 0, 1)  # two cores
    whole = of_machine(prices.machine("m5.large"), 0, 4)
    assert half is not None and whole is not None
    assert half.per_hour(1) == pytest.approx(0.048) and whole.per_hour(1) == pytest.approx(0.096)
    with pytest.raises(UserError, match="how many gpus a m5.large has is not known"):
        of_machine(prices.machine("m5.large"), 1, 1)


def test_a_price_of_all_machines_is_shared_by_all_workers() -> None:
    assert of_all(32.0, 8).per_hour(1) == 4.0 and of_all(32.0, 8).per_hour(8) == 32.0
    assert of_all(32.0, 8).describe(2) == "0.25 × the machines of 8 workers at $32 an hour"


def test_a_cluster_is_priced_by_the_nodes_that_have_what_workers_use() -> None:
    found = of_nodes([(0.2, 0.0), (10.0, 8.0), (6.0, 8.0)], 1, "GPUs")  # a head without a GPU costs no worker
    assert found is not None and found.per_hour(2) == pytest.approx(2.0)
    assert found.describe(2) == "0.125 × the cluster's 16 GPUs (2 nodes) at $16 an hour"
    assert of_nodes([(None, 8.0), (6.0, 8.0)], 1, "GPUs") is None and of_nodes([], 1, "GPUs") is None
