"""PURE. HellaSwag while a model trains, on all ranks: what `raygpt evaluate` asks of its checkpoint, asked now.

Items are cut into batches of like lengths, the same on every rank, and dealt out. Every rank makes the same number of
passes, the last maybe over what another rank has answered: weights of ZeRO-3 take all ranks. The model is called as
for its loss, so that whatever wraps it in training can answer; the rows do not branch as `ModelScorer`'s do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass

import numpy as np
from torch import nn

from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError
from raygpt.model.head_loss import IGNORE_INDEX
from raygpt.parallel.distributed import World
from raygpt.scoring.encoding import before_text, beginning, split
from raygpt.scoring.hellaswag import ENDINGS, Item, ProtocolName, judge, questions
from raygpt.scoring.losses import batches, token_losses
from raygpt.scoring.questions import Scored


@dataclass(frozen=True)
class Endings:
    """An item as rows of tokens, (n,) int64: context and ending, of which the last `sizes` are the ending's."""

    item: Item
    rows: tuple[np.ndarray, ...]
    sizes: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.rows))


class HellaswagAtHand:
    """The items ready to be asked, by one protocol. Called on every rank alike."""

    def __init__(
        self, items: Sequence[Item], protocol: ProtocolName, tokenizer: Tokenizer, context: int, batch_tokens: int
    ) -> None:
        """`context` is the model's; a pass has at most `batch_tokens` tokens, fillers among them, or is one item."""
        self.protocol: ProtocolName = protocol
        made = _endings(items, protocol, tokenizer, context)
        self.batches = batches(made, lambda each: each.length, max(1, batch_tokens // ENDINGS))
        self.tokens = sum(ENDINGS * batch[0].length * len(batch) for batch in self.batches)
        self.count = len(made)

    def ask(
        self, model: nn.Module, world: World, autocast: Callable[[], AbstractContextManager] = nullcontext
    ) -> dict[str, float]:
        """Accuracies over all items, the same on every rank: hellaswag_acc and hellaswag_acc_norm, 0 to 1."""
        mine = self.batches[world.rank :: world.size]
        passes = -(-len(self.batches) // world.size)
        right = np.zeros(2)
        blocks: Iterator[np.ndarray] = (_block(batch) for batch in [*mine, *self.batches[-1:]][:passes])
        with closing(token_losses(model, blocks, world.device, autocast)) as losses:
            for batch, (_, each) in zip(mine, losses):
                lines = iter(each.double().cpu().numpy())
                for asked in batch:
                    scored = [_scored(next(lines), row, size) for row, size in zip(asked.rows, asked.sizes)]
                    judged = judge(asked.item, self.protocol, scored)
                    right += (judged.correct, judged.correct_norm)
            for _ in losses:  # the pass that only keeps others company
                pass
        acc, acc_norm = (total / self.count for total in world.sum(*right.tolist()))
        return {"hellaswag_acc": acc, "hellaswag_acc_norm": acc_norm}


def _endings(items: Sequence[Item], protocol: ProtocolName, tokenizer: Tokenizer, context: int) -> list[Endings]:
    asked = questions(items, protocol)
    heads = [split(question)[0] for question in asked]
    texts = [
        continuation if question.joining == "apart" else question.context + continuation
        for question in asked
        for continuation in question.continuations
    ]
    before, wholes = tokenizer.encode_batch(heads), iter(tokenizer.encode_batch(texts))
    begin = np.array(beginning(tokenizer), np.int64)
    made = []
    for item, question, head in zip(items, asked, before):
        cut = 0 if question.joining == "apart" else len(head)
        aims = [next(wholes)[cut:].astype(np.int64) for _ in question.continuations]
        for number, aim in enumerate(aims):
            if not 0 < len(aim) <= context:
                raise UserError(
                    f"eval.hellaswag: ending {number} of {item.place} has {len(aim)} tokens, and the model's context "
                    f"is {context}: delete the item, or raise model.seq_len."
                )
        start = np.concatenate([begin, head.astype(np.int64)])
        start = start if len(start) else np.array([before_text(tokenizer)], np.int64)
        rows = tuple(np.concatenate([start, aim])[-context - 1 :] for aim in aims)
        made.append(Endings(item, rows, tuple(map(len, aims))))
    return made


def check_endings(items: Sequence[Item], protocol: ProtocolName, tokenizer: Tokenizer, context: int) -> None:
    """Raises UserError for an ending that a model of that context cannot be asked."""
    _endings(items, protocol, tokenizer, context)


def _block(batch: Sequence[Endings]) -> np.ndarray:
    """(rows, longest) int64, IGNORE_INDEX after the end of each."""
    rows = [row for each in batch for row in each.rows]
    block = np.full((len(rows), max(map(len, rows))), IGNORE_INDEX, dtype=np.int64)
    for line, row in zip(block, rows):
        line[: len(row)] = row
    return block


def _scored(losses: np.ndarray, row: np.ndarray, size: int) -> Scored:
    stop = len(row) - 1
    return Scored(-float(losses[stop - size : stop].sum()), size, False)
