"""`raygpt plan`: what a training run needs and costs, without starting it. Needs no Ray, and data only for epochs."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from raygpt.config import Config
from raygpt.config.checks import base_tokenizer, strategy
from raygpt.config.job import Call, Job
from raygpt.errors import UserError

if TYPE_CHECKING:
    from raygpt.capacity.clusters import ClusterFile
    from raygpt.model.architecture import ModelConfig


DECLARATION = Job(
    "plan",
    "what a training run needs, whether it fits, how long it takes and what it costs, without starting it",
    ("plan", "scale", "model", "data", "train", "run"),
    aliases=(("cluster", "plan.cluster"),),
    lists=("cluster",),
    checks=(strategy, base_tokenizer),
    place=60,
)


VOCABULARIES = {"bytes": 257}
GPT2_VOCABULARY = 50257


def run(config: Config, call: Call) -> int:
    from raygpt.capacity.from_config import forecast_run
    from raygpt.capacity.machine import probe
    from raygpt.run.frame import run_location

    if config.plan.cluster:
        return compare_clusters(config)
    here = probe(run_location(config), use_gpu=config.scale.use_gpu is not False)
    forecast = forecast_run(config, planned_model(config), here)
    print(forecast.text(), flush=True)
    # the last line is for scripts
    print(forecast.to_json(), flush=True)
    if forecast.refusal is not None:
        print(f"raygpt: {forecast.refusal}", file=sys.stderr)
        return 2
    return 0


def compare_clusters(config: Config) -> int:
    """The run on every cluster of plan.cluster: a table, and the cheapest."""
    from raygpt.capacity import quote
    from raygpt.capacity.clusters import offers, read_cluster
    from raygpt.capacity.from_config import quote_run
    from raygpt.capacity.speed import measured_results

    model, tokens = planned_model(config), planned_tokens(config)
    results = measured_results(config.plan.measured)
    quotes = []
    for path in config.plan.cluster:
        cluster = read_cluster(path)
        if live := live_prices(cluster):
            cluster = read_cluster(path, live)
        quotes += [quote_run(config, model, offer, tokens=tokens, results=results) for offer in offers(cluster)]
    best = quote.cheapest(quotes)
    shown = best or next((each for each in quotes if each.fits), quotes[0])
    if shown.forecast is not None:
        print(f"{shown.offer.cluster}, {shown.what}:\n{shown.forecast.text()}\n", flush=True)
    length = "of unknown length: set train.max_steps" if tokens is None else f"of {tokens:,} tokens"
    print(f"A run {length}\n\n{quote.text(quotes, config.plan.hours)}", flush=True)
    figures = json.loads(shown.forecast.to_json()) if shown.forecast is not None else {}
    figures |= {
        "fits": shown.fits,
        "refusal": shown.refusal,
        "tokens": tokens,
        "clusters": [each.to_dict() for each in quotes],
        "cheapest": None if best is None else {"cluster": best.offer.cluster, "machine": best.offer.machine.name},
    }
    print(json.dumps(figures), flush=True)
    if not shown.fits:
        print(f"raygpt: {shown.refusal}", file=sys.stderr)
        return 2
    return 0


def live_prices(cluster: ClusterFile) -> dict[str, float]:
    """Lambda's prices of this moment, {machine: US dollars per hour}; {} for other clouds and without a key."""
    if not any(each.machine.cloud == "lambda" for each in cluster.node_types):
        return {}
    from raygpt.cluster.lambda_cloud.api import LambdaCloud

    try:
        return LambdaCloud.of(cluster.provider).prices()
    except UserError as error:
        print(f"Prices of {cluster.path} are those of the table: {error}", flush=True)
        return {}


def planned_tokens(config: Config) -> int | None:
    """Training tokens of the whole run; None where no length is set. Epochs are those of shards that are there."""
    from raygpt import storage
    from raygpt.data.shards import MANIFEST, load_manifest

    train = config.train
    a_step = train.global_batch_tokens
    if train.max_steps is not None:
        return train.max_steps * a_step
    if train.max_tokens is not None:
        return train.max_tokens // a_step * a_step
    if train.epochs is None:
        return None
    if config.data.train:
        folder = storage.locate(config.data.train)
        folder = folder / "train" if storage.exists(folder / "train" / MANIFEST) else folder
        if storage.exists(folder / MANIFEST):
            return round(train.epochs * (load_manifest(folder).tokens // a_step)) * a_step
    raise UserError(
        f"train.epochs={train.epochs:g} are of data.train={config.data.train}, which is no prepared shard folder: "
        "prepare it, or set train.max_tokens or train.max_steps for the plan."
    )


def planned_model(config: Config) -> ModelConfig:
    """The shape that training would work out, without data and, for GPT-2's own sizes, without network."""
    from raygpt.train.model_shape import model_shape

    try:
        return model_shape(config.model, _vocabulary(config.data.tokenizer), offline=True)
    except FileNotFoundError:
        raise UserError(
            f"model.init_from={config.model.init_from} does not exist: name a run, a folder or a Hugging Face id."
        ) from None


def _vocabulary(tokenizer: str) -> int:
    """Size of a tokenizer's vocabulary as far as its name tells it, else GPT-2's."""
    if tokenizer.startswith("train:") and tokenizer[6:].isdigit():
        return int(tokenizer[6:])
    return VOCABULARIES.get(tokenizer, GPT2_VOCABULARY)
