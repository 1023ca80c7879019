"""PURE. GPT-2 with a classification head, as transformers' GPT2ForSequenceClassification computes it.

Shapes: B batch, T tokens, C = n_embd, K labels. The head reads the last real token of a row. Padding has a token of
its own, one past the old vocabulary, and rows are moved to the left before the trunk sees them: causal attention never
looks right, so what stands there cannot matter, and a row counts its positions from its own first token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from raygpt.errors import UserError
from raygpt.model.gpt import GPT, INIT_STD


class Classifier(nn.Module):
    """Logits (B, K) of rows of tokens; `trunk` is a GPT whose last token id is PAD, `score` the head."""

    def __init__(self, trunk: GPT, num_labels: int) -> None:
        """`trunk` comes from `with_pad` and loses its output matrix, which classification has no use for."""
        super().__init__()
        self.trunk = trunk
        self.trunk.lm_head = nn.Identity()  # type: ignore[assignment]
        self.num_labels = num_labels
        self.pad_id = trunk.config.vocab_size - 1
        self.score = nn.Linear(trunk.config.n_embd, num_labels, bias=False)
        nn.init.normal_(self.score.weight, 0.0, INIT_STD)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T) int64 -> (B, K). Padding may stand left, right or between; without a mask it is where PAD is.

        Raises ValueError for a row without a real token.
        """
        real = tokens != self.pad_id if attention_mask is None else attention_mask.bool()
        lengths = real.sum(1)
        if bool((lengths == 0).any()):
            raise ValueError("a row holds nothing but padding: leave it out of the batch")
        # a stable sort by "is padding" moves the real tokens of every row to the left, in their order
        order = torch.argsort((~real).to(torch.int8), dim=1, stable=True)
        longest = int(lengths.max())
        tokens = tokens.gather(1, order)[:, :longest]
        hidden = self.trunk.hidden(tokens)
        last = hidden[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        return self.score(last).float()


def with_pad(model: GPT) -> GPT:
    """A GPT of one more token, PAD, whose embedding is zero and stays so; everything else is the model's own.

    The config agrees: vocab_size is one more and PAD is its last id. The given model is left as it is.
    """
    if not isinstance(model, GPT):
        raise UserError("classification needs a model of the gpt2 architecture: name another one with model.init_from.")
    config = replace(model.config, vocab_size=model.config.vocab_size + 1)
    with torch.device("meta"):
        grown = GPT(config)
    grown.to_empty(device="cpu")
    grown.tie()
    old = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in grown.named_parameters():
            if name in ("wte.weight", "lm_head.weight"):
                parameter.zero_()
                parameter[: model.config.vocab_size] = old[name][: model.config.vocab_size]
            else:
                parameter.copy_(old[name])
    return grown


@torch.no_grad()
def reinit_top(model: Classifier, blocks: int) -> None:
    """Fresh weights (torch's global generator) for the topmost `blocks` and the final norm; 0 changes nothing.

    Zhang et al., 2021, "Revisiting Few-sample BERT Fine-tuning". Raises UserError for more blocks than there are.
    """
    config = model.trunk.config
    if blocks > config.n_layer:
        raise UserError(f"task.reinit_layers={blocks} but the model has {config.n_layer} blocks: lower it.")
    if not blocks:
        return
    scale = 1 / (2 * config.n_layer) ** 0.5
    for block in list(model.trunk.h)[config.n_layer - blocks :]:
        for name, module in block.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0.0, INIT_STD * (scale if name.endswith("c_proj") else 1.0))
                if module.bias is not None:
                    module.bias.zero_()
    model.trunk.ln_f.reset_parameters()


def layer_groups(model: Classifier, weight_decay: float, layer_decay: float) -> list[dict]:
    """AdamW groups with a `scale` of the learning rate each: 1 for the head and the final norm, `layer_decay` to the
    power of the distance from the top for the blocks (1 for the topmost) and one more for the embeddings.

    Matrices decay, biases and norms do not. Clark et al., 2020 (ELECTRA), Howard and Ruder, 2018. Equal scales share
    groups; `names` stand beside the parameters for checkpoints.
    """
    layers = model.trunk.config.n_layer
    groups: dict[tuple[float, bool], dict] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if parts[1] == "h":
            distance = layers - int(parts[2])
        else:
            distance = layers + 1 if parts[1] in ("wte", "wpe") else 0
        scale, decays = layer_decay**distance, parameter.dim() >= 2
        group = groups.setdefault(
            (scale, decays),
            {"params": [], "names": [], "scale": scale, "weight_decay": weight_decay if decays else 0.0},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def pad_rows(rows: Sequence[np.ndarray], pad_id: int, left: bool = False) -> Tensor:
    """(B, longest) int64 of rows of ids, padded to the longest of this batch."""
    longest = max(len(row) for row in rows)
    out = np.full((len(rows), longest), pad_id, dtype=np.int64)
    for index, row in enumerate(rows):
        out[index, slice(longest - len(row), None) if left else slice(0, len(row))] = row
    return torch.from_numpy(out)


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """accuracy, f1 and loss of (N, K) logits for (N,) classes.

    f1 is that of class 1 for two classes (as GLUE scores MRPC and QQP), the mean over classes for more; loss is the
    mean cross-entropy in nats.
    """
    logits = logits.astype(np.float64)
    guesses = logits.argmax(1)
    shifted = logits - logits.max(1, keepdims=True)
    loss = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    return {
        "accuracy": float((guesses == labels).mean()),
        "f1": f1_score(guesses, labels, logits.shape[1]),
        "loss": float(loss.mean()),
    }


def f1_score(guesses: np.ndarray, labels: np.ndarray, num_labels: int) -> float:
    """F1 of class 1 for two classes, the unweighted mean over classes for more; 0 where a class is never right."""
    scores = [_f1(guesses == index, labels == index) for index in _scored(num_labels)]
    return float(np.mean(scores))


def _scored(num_labels: int) -> Iterable[int]:
    return (1,) if num_labels == 2 else range(num_labels)


def _f1(guessed: np.ndarray, true: np.ndarray) -> float:
    both = float((guessed & true).sum())
    return 2 * both / (guessed.sum() + true.sum()) if both else 0.0
