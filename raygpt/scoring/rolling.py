"""PURE. What texts of any length cost a model of a limited context: how a text is cut into windows, and its losses.

Three ways of cutting are in use, and give one model different figures (`WINDOWS`):

| name | a window | predicts | source |
|---|---|---|---|
| disjoint | follows the one before, the last is short | all of its tokens, each token once | training, nanoGPT |
| strided | begins `stride` tokens after the one before | the tokens that none before has predicted | Hugging Face |
| rolling | as disjoint, but the last looks back as far as the context reaches | the same | lm-evaluation-harness |

Hugging Face counts the token to be predicted to the context, so that 1,024 are 1,023 that are looked at, and without
overlap (stride = context) leaves the first token of every window out. lm-evaluation-harness's `context_len` is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from torch import nn

from raygpt.errors import UserError
from raygpt.model.head_loss import IGNORE_INDEX
from raygpt.scoring.losses import batches, token_losses

Cut = Literal["disjoint", "strided", "rolling"]
WINDOWS: tuple[Cut, ...] = get_args(Cut)

OnProgress = Callable[[int, int], None]  # tokens done, of how many


class Window(NamedTuple):
    """Tokens begin..end of a text are read at once, and first..end are predicted."""

    begin: int
    first: int
    end: int


@dataclass(frozen=True)
class Windows:
    """How texts are cut: `context` tokens at most are looked at (for strided, the predicted one among them), and
    `stride` are predicted by every window but the first and last."""

    cut: Cut
    context: int
    stride: int

    @classmethod
    def of(cls, cut: Cut, context: int, stride: int | None = None) -> Windows:
        """`stride` is for strided alone, and there the context (no overlap) unless given. Raises UserError for
        lengths that do not fit together."""
        if context < 2:
            raise UserError(
                f"a context of {context} tokens predicts nothing from what stands before it: give 2 or more."
            )
        if cut != "strided" and stride not in (None, context):
            raise UserError(f"stride is for strided windows, not for {cut} ones: leave it out, or ask for strided.")
        if stride is not None and not 1 <= stride <= context:
            raise UserError(f"a stride of {stride} with a context of {context} leaves tokens out: give 1 to {context}.")
        return cls(cut, context, context if stride is None else stride)

    @property
    def overlap(self) -> int:
        """Tokens of a window that the window before has read as well; 0 predicts every window afresh."""
        return self.context - self.stride

    @property
    def predicts_all(self) -> bool:
        """Whether every token of a text but the very first is predicted; strided windows without overlap leave the
        first of each out."""
        return self.cut != "strided" or self.overlap > 0

    @property
    def row(self) -> int:
        """Tokens of the longest window, the last predicted one among them."""
        return self.context if self.cut == "strided" else self.context + 1

    def over(self, length: int) -> list[Window]:
        """The windows of a text of `length` tokens, what stands before its first one counted."""
        if length < 2:
            return []
        if self.cut == "strided":
            return self._strided(length)
        made = [
            Window(begin, begin + 1, min(begin + self.context + 1, length))
            for begin in range(0, length - 1, self.context)
        ]
        if self.cut == "rolling":
            last = made[-1]
            made[-1] = last._replace(begin=min(last.begin, max(0, last.end - self.context - 1)))
        return made

    def _strided(self, length: int) -> list[Window]:
        made: list[Window] = []
        for begin in range(0, length, self.stride):
            before = made[-1].end if made else 0
            end = min(begin + self.context, length)
            # nothing in a window stands before its first token
            made.append(Window(begin, max(before, begin + 1), end))
            if end == length:
                break
        return [window for window in made if window.first < window.end]


@dataclass(frozen=True)
class TextLosses:
    """`surprisals[i]` is (tokens of text i,) float32: -ln p of each, 0 where it was not `predicted[i]` (bool)."""

    surprisals: list[np.ndarray]
    predicted: list[np.ndarray]

    @property
    def nats(self) -> np.ndarray:
        """(texts,) float64 sums."""
        return np.array([losses.sum(dtype=np.float64) for losses in self.surprisals])

    @property
    def tokens(self) -> np.ndarray:
        """(texts,) int64: how many were predicted."""
        return np.array([np.count_nonzero(each) for each in self.predicted], dtype=np.int64)


class RowLosses(Protocol):
    """What a model costs by rows of tokens: in this process (`ModelRows`), or behind an endpoint."""

    def losses(self, rows: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """(which row, (its length - 1,) float32 nats of its tokens but the first), in any order, every row once."""

    def check(self, windows: Windows, largest: int) -> None:
        """Raises UserError for windows longer than its context or a token id that it does not know."""


class ModelRows:
    """A model of this process, `batch_tokens` padded tokens at a time, rows of about one length together."""

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str = "cpu",
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        *,
        batch_tokens: int = 4096,
    ) -> None:
        self.model, self.device, self.autocast, self.batch_tokens = model, device, autocast, batch_tokens

    def check(self, windows: Windows, largest: int) -> None:
        config = getattr(self.model, "config", None)
        if config is None:
            return
        if windows.row - 1 > config.seq_len:
            raise UserError(
                f"a context of {windows.context:,} tokens is more than the model's {config.seq_len:,}: ask for "
                f"{config.seq_len:,} at most."
            )
        if largest >= config.vocab_size:
            raise UserError(
                f"the text has token {largest} but the model knows only {config.vocab_size:,}: its tokenizer is not "
                "the one it was trained with."
            )

    def losses(self, rows: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        made = batches(range(len(rows)), lambda n: len(rows[n]), self.batch_tokens)
        blocks = (_block([rows[n] for n in batch]) for batch in made)
        with closing(token_losses(self.model, blocks, self.device, self.autocast)) as losses:
            for batch, (_, each) in zip(made, losses):
                for n, line in zip(batch, each.cpu().numpy()):
                    if np.isnan(line).any():
                        raise UserError(
                            "the model gives no number (nan) for a token: its weights are damaged, or its precision is "
                            "too small for it."
                        )
                    yield n, line[: len(rows[n]) - 1]


def text_losses(
    source: RowLosses,
    texts: Sequence[np.ndarray],
    windows: Windows,
    *,
    bos_id: int | None,
    on_progress: OnProgress | None = None,
) -> TextLosses:
    """What the tokens of `texts` ((n,) ids each) cost, each text by itself, cut as `windows` says.

    With `bos_id` that token stands before each text, and the text's first token is predicted from it; without, nothing
    predicts that token. The same whatever the batch. Raises UserError for what `source` cannot read.
    """
    source.check(windows, max((int(ids.max()) for ids in texts if len(ids)), default=0))
    before = [] if bos_id is None else [bos_id]
    whole = [np.concatenate([np.array(before, np.int64), ids.astype(np.int64)]) for ids in texts]
    places = [(n, window) for n, ids in enumerate(whole) for window in windows.over(len(ids))]
    surprisals = [np.zeros(len(ids), np.float32) for ids in whole]
    predicted = [np.zeros(len(ids), bool) for ids in whole]
    total, done = sum(window.end - window.first for _, window in places), 0
    for which, losses in source.losses([whole[n][window.begin : window.end] for n, window in places]):
        n, window = places[which]
        surprisals[n][window.first : window.end] = losses[window.first - window.begin - 1 :]
        predicted[n][window.first : window.end] = True
        done += window.end - window.first
        if on_progress is not None:
            on_progress(done, total)
    skip = len(before)
    return TextLosses([each[skip:] for each in surprisals], [each[skip:] for each in predicted])


def _block(rows: Sequence[np.ndarray]) -> np.ndarray:
    """(rows, longest) int64, IGNORE_INDEX after the end of each."""
    block = np.full((len(rows), max(map(len, rows))), IGNORE_INDEX, dtype=np.int64)
    for line, row in zip(block, rows):
        line[: len(row)] = row
    return block
