"""`raygpt plan`: what a training run needs and whether it fits, without starting it. Needs no Ray and no data."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from raygpt.config import Config
from raygpt.config.checks import base_tokenizer, strategy
from raygpt.config.job import Call, Job
from raygpt.errors import UserError

if TYPE_CHECKING:
    from raygpt.model.architecture import ModelConfig


DECLARATION = Job(
    "plan",
    "what a training run needs and whether it fits, without starting it",
    ("plan", "scale", "model", "data", "train", "run"),
    checks=(strategy, base_tokenizer),
    place=60,
)


VOCABULARIES = {"bytes": 257}
GPT2_VOCABULARY = 50257


def run(config: Config, call: Call) -> int:
    from raygpt.capacity.from_config import forecast_run
    from raygpt.capacity.machine import probe
    from raygpt.run.frame import run_location

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
