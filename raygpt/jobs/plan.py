"""`raygpt plan`: what a training run needs and whether it fits, without starting it. Needs no Ray and no data."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from raygpt import storage
from raygpt.config import Config
from raygpt.config.checks import base_tokenizer, strategy
from raygpt.config.job import Call, Job
from raygpt.errors import UserError

if TYPE_CHECKING:
    from raygpt.model.gpt import GPTConfig


DECLARATION = Job(
    "plan",
    "what a training run needs and whether it fits, without starting it",
    ("plan", "scale", "model", "data", "train", "run"),
    checks=(strategy, base_tokenizer),
    place=60,
)


HUB_OWNER = "openai-community/"  # where the four sizes lie now; their old short names still work
VOCABULARIES = {"bytes": 257}
GPT2_VOCABULARY = 50257


def run(config: Config, call: Call) -> int:
    from raygpt.capacity.forecast import plan_for
    from raygpt.capacity.machine import probe
    from raygpt.train.resolve import run_location

    here = probe(run_location(config), use_gpu=config.scale.use_gpu is not False)
    report = plan_for(config, planned_model(config), here)
    print(report.text(), flush=True)
    # the last line is for scripts
    print(report.to_json(), flush=True)
    if report.refusal is not None:
        print(f"raygpt: {report.refusal}", file=sys.stderr)
        return 2
    return 0


def planned_model(config: Config) -> GPTConfig:
    """The model's shape: that of model.init_from, or the preset with its overrides. Needs no data and, for GPT-2's own
    sizes, no network."""
    from raygpt.model.gpt import GPTConfig
    from raygpt.model.presets import PRESETS
    from raygpt.train.resolve import shape_of

    keys = ("n_layer", "n_head", "n_embd", "vocab_size", "seq_len")
    wanted: dict[str, Any] = {key: getattr(config.model, key) for key in keys if getattr(config.model, key) is not None}
    init_from = config.model.init_from
    if init_from == "random":
        shape = {**PRESETS[config.model.preset], "vocab_size": _vocabulary(config.data.tokenizer), **wanted}
        return GPTConfig(**shape, bias=config.model.bias, tie_weights=config.model.tie_weights)
    known = PRESETS.get(init_from.removeprefix(HUB_OWNER))
    if known is not None and "vocab_size" in known and not storage.exists(storage.locate(init_from)):
        return GPTConfig(**{**known, **({"seq_len": wanted["seq_len"]} if "seq_len" in wanted else {})})
    try:
        return GPTConfig.from_dict(shape_of(init_from, wanted.get("seq_len")))
    except FileNotFoundError:
        raise UserError(
            f"model.init_from={init_from} does not exist: name a run, a folder or a Hugging Face id."
        ) from None


def _vocabulary(tokenizer: str) -> int:
    """Size of a tokenizer's vocabulary as far as its name tells it, else GPT-2's."""
    if tokenizer.startswith("train:") and tokenizer[6:].isdigit():
        return int(tokenizer[6:])
    return VOCABULARIES.get(tokenizer, GPT2_VOCABULARY)
