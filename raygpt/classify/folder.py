"""Classifiers as Hugging Face folders: transformers' `pipeline("text-classification", model=folder)` loads them.

config.json agrees with the weights in everything that trips other code up: vocab_size counts PAD, pad_token_id is PAD
(not 0, not end of text), id2label names the classes. Under `raygpt` it holds how rows were made.
"""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raygpt.classify.classifier import Classifier
from raygpt.errors import UserError
from raygpt.model.export import CONV1D, missing_biases, their_config, their_value
from raygpt.model.gpt import GPT, GPTConfig

ARCHITECTURE = "GPT2ForSequenceClassification"
EXPORT = "export"  # where a classification run keeps it
PAD_TOKEN = "<|pad|>"


def save_classifier(
    model: Classifier,
    folder: Path,
    *,
    labels: list[str],
    eot_id: int,
    tokenizer_json: bytes | None,
    rows: dict[str, Any],
) -> Path:
    """Write the folder beside its place and rename it; returns it. `rows` is how rows are made (max_tokens, swap_eval).

    Raises UserError where something else than a classifier stands there.
    """
    from safetensors.torch import save_file

    if folder.exists() and not is_classifier(folder) and any(folder.iterdir()):
        raise UserError(f"{folder} holds something that is no exported classifier: choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    aside.mkdir()
    try:
        save_file(_their_weights(model), aside / "model.safetensors", metadata={"format": "pt"})
        config = _their_config(model.trunk.config, labels, eot_id, model.pad_id) | {"raygpt": rows}
        (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if tokenizer_json is not None:
            _write_tokenizer(aside, tokenizer_json, eot_id, model)
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def load_classifier(folder: Path) -> tuple[Classifier, dict[str, Any]]:
    """(model on the CPU in eval mode, config.json's values). Raises UserError where no classifier lies there."""
    from safetensors.torch import load_file

    if not is_classifier(folder):
        raise UserError(f"{folder} holds no classifier: name a folder that fine-tuning on a task has written.")
    values = json.loads((folder / "config.json").read_text())
    config = GPTConfig(
        vocab_size=values["vocab_size"],
        seq_len=values["n_positions"],
        n_layer=values["n_layer"],
        n_head=values["n_head"],
        n_embd=values["n_embd"],
    )
    model = Classifier(GPT(config), len(values["id2label"]))
    weights = load_file(folder / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = weights[name.replace("trunk.", "transformer.", 1)]
            if name.endswith(CONV1D):
                value = value.t()
            if name == "trunk.wte.weight":
                parameter.zero_()
                parameter[: config.vocab_size] = value
            else:
                parameter.copy_(value)
    return model.eval(), values


def is_classifier(folder: Path) -> bool:
    """Whether a classifier's folder lies there."""
    try:
        return ARCHITECTURE in json.loads((folder / "config.json").read_text()).get("architectures", [])
    except (OSError, ValueError):
        return False


def _their_weights(model: Classifier) -> dict[str, Tensor]:
    config = model.trunk.config
    out = {}
    for name, parameter in model.named_parameters():
        value = their_value(name.removeprefix("trunk."), parameter.detach().cpu(), config)
        out[name.replace("trunk.", "transformer.", 1)] = value.contiguous()
    if not config.bias:
        shapes = {name: tuple(parameter.shape) for name, parameter in model.trunk.named_parameters()}
        out |= {name: torch.zeros(size) for name, size in missing_biases(shapes)}
    return out


def _their_config(config: GPTConfig, labels: list[str], eot_id: int, pad_id: int) -> dict[str, Any]:
    return their_config(config, eot_id, "float32") | {
        "architectures": [ARCHITECTURE],
        "pad_token_id": pad_id,
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }


def _write_tokenizer(folder: Path, tokenizer_json: bytes, eot_id: int, model: Classifier) -> None:
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(tokenizer_json.decode("utf-8"))
    end = backend.id_to_token(eot_id)
    options: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "bos_token": end}
    if backend.get_vocab_size() == model.pad_id:
        backend.add_special_tokens([PAD_TOKEN])
        options["pad_token"] = PAD_TOKEN
    options["model_max_length"] = model.trunk.config.seq_len
    (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(options, indent=2) + "\n")
