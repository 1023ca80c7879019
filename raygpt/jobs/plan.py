"""`raygpt plan`: what a training run needs and whether it fits, without starting it. Needs no Ray and no data."""

from __future__ import annotations

import sys

from raygpt.capacity.from_config import forecast_run
from raygpt.capacity.machine import probe
from raygpt.cli import Call
from raygpt.config import Config
from raygpt.errors import UserError
from raygpt.model.architecture import ModelConfig
from raygpt.train.model_shape import model_shape
from raygpt.train.resolve import run_location

VOCABULARIES = {"bytes": 257}
GPT2_VOCABULARY = 50257


def run(config: Config, call: Call) -> int:
    here = probe(run_location(config), use_gpu=config.scale.use_gpu is not False)
    forecast = forecast_run(config, planned_model(config), here)
    print(forecast.text(), flush=True)
    # the last line is for scripts
    print(forecast.to_json(), flush=True)
    if forecast.refusal is not None:
        print(f"raygpt: {forecast.refusal}", file=sys.stderr)
        return 2
    return 0


def planned_model(config: Config) -> ModelConfig:
    """The shape that training would work out, without data and, for GPT-2's own sizes, without network."""
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
