"""PURE. Bytes that a forward and a backward pass of gpt.py take besides weights and their gradients.

Shapes: N tokens of a micro-batch, C width, L layers, P padded vocabulary. tests/capacity/test_memory.py holds the
figures against what autograd really keeps.
"""

from __future__ import annotations

from raygpt.model.architecture import Work
from raygpt.model.gpt import EVALUATION_LOGIT_ROWS, LOGIT_ROWS, GPTConfig

# Bytes per logit at the worst moment: log-probabilities, their gradient and that of the logits, in fp32.
LOGITS = 12


def forward_work(model: GPTConfig, work: Work) -> dict[str, int]:
    """What there is when the loss is computed: all that the backward pass will want."""
    tokens = work.tokens
    stream = work.width * tokens * model.n_embd  # the residual stream between two blocks
    embedding = stream if model.dropout else 0  # which of its numbers were dropped
    copies = 2 * _matrices(model) if work.autocast else 0  # autocast's, until the backward pass
    if work.activation_checkpointing:
        # only the stream is kept, and the loss is computed piece by piece; autocast's copies go with their block
        return {
            "activations": (model.n_layer + 2) * stream + embedding,
            # every piece has a gradient of the whole output matrix, added to that of the pieces before
            "logits and loss": LOGITS * min(tokens, LOGIT_ROWS) * model.padded_vocab_size
            + 2 * work.width * model.padded_vocab_size * model.n_embd,
            "half-precision copies": copies // model.n_layer,
        }
    logits = LOGITS * tokens * model.padded_vocab_size
    if work.loss_tokens:
        # a piece beside that before it, and the sum of the output matrix's gradients; or that sum while a piece's is
        # added to it; and gradients of the hidden states, which are there at once
        piece = LOGITS * min(tokens, work.loss_tokens) * model.padded_vocab_size
        matrix = 4 * model.padded_vocab_size * model.n_embd
        logits = max(piece + matrix, piece // 2 + 3 * matrix) + stream
    return {
        "activations": model.n_layer * _block(model, work) + 2 * stream,  # the last norm's input and output
        "logits and loss": logits,
        "half-precision copies": copies,
    }


def backward_work(model: GPTConfig, work: Work) -> dict[str, int]:
    """What is left near the end, when all gradients are there: one block, and what is on its way back in it."""
    tokens = work.tokens
    stream = work.width * tokens * model.n_embd
    returning = (2 if work.half else 4) * 8 * tokens * model.n_embd + stream  # GELU's input and output
    kept = model.n_layer * stream if work.activation_checkpointing else stream
    return {"activations": kept + _block(model, work) + returning}


def _block(model: GPTConfig, work: Work) -> int:
    """Bytes that autograd keeps of one block.

    Per token and unit of width: inputs of both norms (1 + 1), of the two matrices behind them (1 + 1), queries, keys
    and values (3), the attention's output (1), GELU's input and output (4 + 4). Attention itself keeps one number per
    token and head.
    """
    if not work.half:
        each = 16 * 4
    elif work.gpu:
        each = 2 * work.width + 2 * (1 + 1 + 3 + 1 + 4 + 4)
    else:
        # attention is in fp32 on a CPU, and its output in both
        each = 2 * work.width + 2 * (1 + 1 + 4 + 4) + 4 * (3 + 1) + 2
    kept = each * work.tokens * model.n_embd
    if model.dropout and work.gpu:
        kept += 2 * work.tokens * model.n_embd  # which outputs of the two branches were dropped, a byte each
    elif model.dropout:
        # on a CPU as numbers; and attention is written out: probabilities, what was dropped, the rest, in fp32
        kept += (0 if work.half else 2 * 4) * work.tokens * model.n_embd
        kept += 3 * 4 * work.tokens * work.seq_len * model.n_head
    return kept


def evaluation_work(model: GPTConfig, work: Work) -> dict[str, int]:
    """A forward pass without gradients: the widest place of a block, or the logits twice."""
    tokens = work.tokens
    stream = work.width * tokens * model.n_embd
    wide = (2 if work.half else 4) * 8 * tokens * model.n_embd + 2 * stream
    logits = 8 * min(tokens, EVALUATION_LOGIT_ROWS) * model.padded_vocab_size
    return {"activations": stream + max(0, wide - logits), "logits and loss": logits}


def _matrices(model: GPTConfig) -> int:
    """Numbers in the matrices that autocast copies: those of the blocks and the output's."""
    return 12 * model.n_embd**2 * model.n_layer + model.padded_vocab_size * model.n_embd
