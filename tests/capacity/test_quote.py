"""Hours and dollars of runs: published cost tables from their own inputs, and clusters as their files have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raygpt.capacity.clusters import offers, read_cluster
from raygpt.capacity.from_config import quote_run
from raygpt.capacity.memory import Setup
from raygpt.capacity.quote import cheapest, hours, text, usd
from raygpt.capacity.speed import expected_speed, measured_results
from raygpt.config.settings import load_config
from raygpt.errors import UserError
from raygpt.model.gpt import GPTConfig
from raygpt.model.presets import PRESETS

TABLES = [
    # (source, tokens, seconds per step or tokens per second, $ per hour, hours that it says, $ that it says)
    ("llm.c, GPT-2 1558M on 8 H100", 32e9, 1_048_576 / 2.80, 28.0, 24.0, 672),
    ("llm.c, GPT-2 124M on 8 A100", 18_865 * 524_288, 524_288 / 0.300, 14.0, 94 / 60, 14 * 94 / 60),
    ("a rerun of build-nanogpt on 8 A100-40GB", 10e9, 8 * 137e3, 8 * 1.99, 2.5, 40),
]


@pytest.mark.parametrize(("source", "tokens", "speed", "price", "said_hours", "said_usd"), TABLES)
def test_published_costs_follow_from_their_inputs(
    source: str, tokens: float, speed: float, price: float, said_hours: float, said_usd: float
) -> None:
    took = hours(tokens, speed)
    assert took == pytest.approx(said_hours, rel=0.05) and usd(took, price) == pytest.approx(said_usd, rel=0.05), source


def test_rounded_costs_are_right_as_far_as_they_are_rounded() -> None:
    """llm.c says "~94 min, ~$20 at $14/h", which is $21.93; build-nanogpt "about an hour, about $10"."""
    assert round(usd(hours(18_865 * 524_288, 524_288 / 0.300), 14.0), -1) == 20
    assert usd(1.0, 10.0) == 10


def test_a_table_made_by_hand() -> None:
    assert usd(2.5, 20.5) == 51.25


GPT2 = GPTConfig(**PRESETS["gpt2"])

AWS = """
cluster_name: x
max_workers: 2
provider: {type: aws, region: us-east-1}
available_node_types:
  head:
    labels: {raygpt.io/instance-type: m5.2xlarge}
    node_config: {InstanceType: m5.2xlarge}
  spot:
    max_workers: 2
    node_config: {InstanceType: p4d.24xlarge, InstanceMarketOptions: {MarketType: spot}}
  on_demand:
    max_workers: 2
    labels: {raygpt.io/instance-type: p4d.24xlarge, raygpt.io/market: on-demand}
head_node_type: head
"""
ONE_MACHINE = """
provider: {type: external}
max_workers: 0
available_node_types:
  head:
    labels: {raygpt.io/instance-type: gpu_1x_a10, raygpt.io/market: on-demand}
"""


@pytest.fixture
def aws(tmp_path: Path) -> str:
    (tmp_path / "aws.yaml").write_text(AWS)
    return str(tmp_path / "aws.yaml")


def quotes(path: str, live: dict[str, float] | None = None, **options: str) -> list[Any]:
    named = {key.replace("__", "."): value for key, value in options.items()}
    config = load_config("plan", None, {"train.global_batch_tokens": "524288", "train.max_tokens": "1", **named}, {})
    found = offers(read_cluster(path, live))
    results = measured_results(config.plan.measured)
    return [quote_run(config, GPT2, offer, tokens=10_000_000_000, results=results) for offer in found]


def test_a_cluster_costs_its_head_and_as_many_machines_as_the_workers_need(aws: str) -> None:
    """By hand: 40 % of 312 TFLOP/s are 124.8, over 854.4 MFLOP a token and 8 or 16 GPUs."""
    a_token = GPT2.flops_per_token(1024)
    for workers, nodes in ((8, 1), (16, 2)):
        (quote,) = quotes(aws, scale__num_workers=str(workers))
        assert (quote.nodes, quote.workers, quote.fits, quote.what) == (
            nodes, workers, True, f"{nodes} x p4d.24xlarge + m5.2xlarge"
        )  # fmt: skip
        assert quote.usd_per_hour() == pytest.approx(0.384 + nodes * 21.957642)
        took = 10e9 / (0.4 * 312e12 * workers / a_token) / 3600
        assert quote.hours == pytest.approx(took) and quote.usd() == pytest.approx(took * quote.usd_per_hour())
        assert quote.usd("spot") is None and "40% (stated) of A100's 312 TFLOP/s in bf16" in text([quote])
    (elastic,) = quotes(aws, scale__num_workers="[4, 64]")
    assert (elastic.nodes, elastic.workers, elastic.fits) == (2, 16, True), "as many as there can be"


def test_spot_counts_where_the_file_asks_for_it_and_its_price_is_known(
    aws: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prices.yaml").write_text("p4d.24xlarge: {spot: 9}\ngpu_1x_a10: {spot: 1}\n")
    monkeypatch.setenv("RAYGPT_PRICES", str(tmp_path / "prices.yaml"))
    (quote,) = quotes(aws, scale__num_workers="8")
    assert quote.usd_per_hour("spot") == pytest.approx(9.384) and quote.lowest_usd == quote.usd("spot")
    assert "on spot, $" in text([quote])
    (tmp_path / "one.yaml").write_text(ONE_MACHINE)
    (one,) = quotes(str(tmp_path / "one.yaml"))
    assert one.what == "1 x gpu_1x_a10" and one.usd_per_hour() == 1.29 and one.usd_per_hour("spot") is None
    assert cheapest([quote, one]) is (quote if quote.lowest_usd < one.lowest_usd else one)


def test_prices_read_just_now_come_before_the_table(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(ONE_MACHINE)
    (quote,) = quotes(str(tmp_path / "one.yaml"), {"gpu_1x_a10": 0.75})
    assert quote.usd_per_hour() == 0.75 and quote.to_dict()["price_read"] == "now"


def test_a_persons_own_figures_stand_beside_ours(aws: str) -> None:
    found = quotes(aws, scale__num_workers="8", plan__price_per_hour="20.5")
    assert "By hand: 8 x A100 40GB for 2.50 h at $20.50/h = $51.25" in text(found, 2.5)
    (quote,) = quotes(aws, scale__num_workers="8", plan__tokens_per_second="1111111")
    assert quote.hours == pytest.approx(2.5, rel=1e-5)
    (quote,) = quotes(aws, scale__num_workers="8", plan__mfu="0.6")
    assert quote.speed.tokens_per_second == pytest.approx(1.75e6, rel=0.01), "llm.c's, at the share that it says"


def test_a_measured_result_comes_before_a_share_of_the_peak(aws: str, tmp_path: Path) -> None:
    like = {"gpu": "NVIDIA A100-SXM4-40GB", "parameters": GPT2.num_parameters(), "workers": 1, "seq_len": 1024}
    results = [
        like | {"tokens_per_second": 150_000, "date": "2026-11-01"},
        like | {"tokens_per_second": 1, "parameters": 5},
        like | {"tokens_per_second": 2, "gpu": "NVIDIA H100 80GB HBM3"},
        like | {"tokens_per_second": 3, "strategy": "zero1"},
        like | {"tokens_per_second": "fast"},
    ]
    (tmp_path / "bench.json").write_text(json.dumps({"step": {"runs": results}}))
    (tmp_path / "broken.json").write_text("{")
    (quote,) = quotes(aws, scale__num_workers="8", plan__measured=f"[{tmp_path}, {tmp_path}/nowhere]")
    assert quote.speed.tokens_per_second == 8 * 150_000
    assert quote.speed.source == f"measured, {tmp_path.name}/bench.json of 2026-11-01, scaled from 1 to 8 GPUs"


def test_what_a_setup_costs_in_speed_is_said() -> None:
    plain = Setup("ddp", precision="bf16", micro_batch_size=8, world_size=8)
    offloaded = Setup("zero3", "all", "fp16", 8, activation_checkpointing=True)
    assert expected_speed(GPT2, plain, "A100", ()).tokens_per_second > 1e6  # type: ignore[union-attr]
    speed = expected_speed(GPT2, offloaded, "V100", ())
    assert speed is not None and "/ 4.26 for zero3, offload all, recomputed activations" in speed.source
    assert expected_speed(GPT2, plain, None, ()) is None and expected_speed(GPT2, plain, "Voodoo2", ()) is None


def test_a_run_that_needs_more_than_there_can_be_is_refused_by_its_setting(aws: str) -> None:
    (quote,) = quotes(aws, scale__num_workers="24")
    assert not quote.fits and quote.usd() is None and cheapest([quote]) is None
    assert (
        quote.refusal.startswith("scale.num_workers=24 but ")
        and "at most 2 x p4d.24xlarge with 8 GPUs" in quote.refusal
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"does not exist: name a file such as cluster/aws-g5\.yaml"),
        ("{", r"cannot be read: "),
        ("kind: RayJob", r"has no available_node_types .*: name a file for `ray up` on a cloud, or describe"),
        ("available_node_types: {head: {resources: {CPU: 2}}}", r"node type head does not say what machine it is"),
        ("available_node_types: {head: {node_config: {InstanceType: p9}}}", r"no price is known of machine type p9"),
    ],
)
def test_files_that_are_no_cluster_are_one_sentence(content: str | None, sentence: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_cluster(str(tmp_path / "c.yaml"))
