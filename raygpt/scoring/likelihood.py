"""PURE. What a model of this process gives to continuations of contexts: `ModelScorer`.

A question's context and its continuations are one row that branches (`raygpt.model.tree`), so that what they begin with
is computed once; rows of like lengths make a batch; logits exist only where a continuation's token is foretold, some of
them at a time. A question's scores hang on no other question but by rounding: rows do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import tokenizers
import torch
from torch import Tensor

from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError
from raygpt.hardware import to_device
from raygpt.model import registry
from raygpt.model.architecture import LanguageModel
from raygpt.model.tree import Tree, TreePass, grow, layout
from raygpt.scoring.encoding import before_text, beginning, split
from raygpt.scoring.losses import batches, evaluating, uncompiled
from raygpt.scoring.questions import Question, Scored

# On a CPU larger batches make no product faster and add padding: rows alone, 256 and 512 tokens take 5.1, 4.6 and 4.8 s
# for 20 items by a 124M model (2,197, 2,313 and 2,465 tokens with padding).
BATCH_TOKENS = {"cpu": 256, "cuda": 32768}
# Logits that exist at a time, in bytes as fp32; their exponentials are as many again.
LOGIT_BYTES = {"cpu": 2**26, "cuda": 2**30}


@dataclass(frozen=True)
class _Chain:
    """A continuation as tokens: the last `len(aims)` of `inputs` foretell `aims`. Both (n,) int64."""

    question: int
    number: int
    inputs: np.ndarray
    aims: np.ndarray


@dataclass(frozen=True)
class _Row:
    """A row of a batch, with the continuations whose inputs are the tree's sequences."""

    tree: Tree
    chains: tuple[_Chain, ...]


class ModelScorer:
    """A Scorer. `bos` is the token that stands before every context, None where there is none: what the tokenizer puts
    before a text by itself, which is nothing for GPT-2 and SmolLM2. `cut` counts the continuations asked so far whose
    context was cut: of context and continuation together, the last `context` + 1 tokens are looked at, the very last of
    which the model does not read, as in lm-evaluation-harness.
    """

    def __init__(
        self,
        name: str,
        model: LanguageModel,
        tokenizer: Tokenizer,
        device: torch.device | str = "cpu",
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        *,
        batch_tokens: int | None = None,
        markup: bool = False,
    ) -> None:
        """A batch has at most `batch_tokens` tokens, fillers among them, or is one row. With `markup` the names of
        special tokens in a text are these tokens, as a chat template needs it; else they are the letters they are."""
        self.name, self.context, self.cut = name, int(model.config.seq_len), 0
        self._model, self._tokenizer, self._autocast = model, tokenizer, autocast
        self._device = torch.device(device)
        self._architecture = registry.of(model.config)
        self._batch_tokens = batch_tokens or BATCH_TOKENS.get(self._device.type, BATCH_TOKENS["cpu"])
        size = LOGIT_BYTES.get(self._device.type, LOGIT_BYTES["cpu"])
        self._at_once = max(1, size // (4 * int(model.config.vocab_size)))
        self._markup = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str()) if markup else None
        self._begin = beginning(tokenizer)
        self.bos = "".join(str(tokenizer.backend.id_to_token(token)) for token in self._begin) or None

    def ask(self, questions: Sequence[Question]) -> list[tuple[Scored, ...]]:
        """What every continuation scores, in the order asked.

        Raises UserError for a continuation that is longer than the model's context, or of no tokens of its own, and
        for a model that gives no number.
        """
        chains = self._chains(questions)
        found: list[list[Scored | None]] = [[None] * len(question.continuations) for question in questions]
        with evaluating(self._model), torch.no_grad(), uncompiled():
            for batch in self._batches(chains):
                for chain, scored in self._score(batch):
                    if scored.logprob != scored.logprob:
                        raise UserError(
                            f"{self.name} gives no number (nan) for the question {questions[chain.question].id}: its "
                            "weights are damaged, or its precision is too small for it."
                        )
                    found[chain.question][chain.number] = scored
        return [tuple(one for one in scores if one is not None) for scores in found]

    def _chains(self, questions: Sequence[Question]) -> list[list[_Chain]]:
        """The continuations of every question as tokens."""
        texts: list[str] = []
        for question in questions:
            text, blanks = split(question)
            wholes = [text + blanks + one for one in question.continuations]
            texts += [text, *(wholes if question.joining == "whole" else question.continuations)]
        encoded = iter(self._encode(texts))
        result = []
        for number, question in enumerate(questions):
            head = next(encoded)
            chains = []
            for index in range(len(question.continuations)):
                aims = next(encoded)[len(head) if question.joining == "whole" else 0 :]
                before = self._before(head)
                chains.append(self._chain(question, number, index, before, aims))
            result.append(chains)
        return result

    def _before(self, head: np.ndarray) -> np.ndarray:
        begin = self._begin
        if self._markup is not None and tuple(head[: len(begin)]) == begin:
            begin = ()  # the template has put it there
        whole = np.concatenate([np.array(begin, np.int64), head])
        # something has to stand before the first token
        return whole if len(whole) else np.array([before_text(self._tokenizer)], np.int64)

    def _chain(self, question: Question, number: int, index: int, before: np.ndarray, aims: np.ndarray) -> _Chain:
        if not len(aims):
            raise UserError(
                f"question {question.id}: continuation {index} has no tokens of its own behind its context, so that "
                "nothing can be scored: leave it out."
            )
        if len(aims) > self.context:
            raise UserError(
                f"question {question.id}: continuation {index} has {len(aims)} tokens, and the context of {self.name} "
                f"is {self.context}: shorten it, or take a model of a longer context."
            )
        whole = np.concatenate([before, aims])
        self.cut += len(whole) > self.context + 1
        return _Chain(number, index, whole[-self.context - 1 : -1], aims)

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self._markup is None:
            return [ids.astype(np.int64) for ids in self._tokenizer.encode_batch(texts)]
        encodings = self._markup.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int64) for encoding in encodings]

    def _batches(self, chains: Sequence[Sequence[_Chain]]) -> list[list[_Row]]:
        """Rows that branch and rows that do not, apart: the latter need no mask."""
        most = self._architecture.tree_tokens(self._model) if any(len(some) > 1 for some in chains) else 0
        branching, plain = [], []
        for some in chains:
            if not some:
                continue
            tree = grow([chain.inputs for chain in some])
            if tree.branches and len(tree.tokens) <= most:
                branching.append(_Row(tree, tuple(some)))
            elif tree.branches:
                plain += [_Row(grow([chain.inputs]), (chain,)) for chain in some]
            else:
                plain.append(_Row(tree, tuple(some)))
        return [
            batch
            for rows in (branching, plain)
            for batch in batches(rows, lambda row: len(row.tree.tokens), self._batch_tokens)
        ]

    def _score(self, rows: Sequence[_Row]) -> list[tuple[_Chain, Scored]]:
        tokens, positions, mask = layout([row.tree for row in rows])
        width = tokens.shape[1]
        chains = [chain for row in rows for chain in row.chains]
        places = [
            number * width + path[-len(chain.aims) :]
            for number, row in enumerate(rows)
            for path, chain in zip(row.tree.paths, row.chains)
        ]
        where, inverse = np.unique(np.concatenate(places), return_inverse=True)
        tree = None
        if rows[0].tree.branches:
            tree = TreePass(to_device(positions, self._device), torch.from_numpy(mask).to(self._device))
        lines, first = self._lines(tokens, where, tree, inverse, np.concatenate([chain.aims for chain in chains]))
        result, start = [], 0
        for chain in chains:
            stop = start + len(chain.aims)
            one = Scored(float(lines[start:stop].sum()), stop - start, bool(first[start:stop].all()))
            result.append((chain, one))
            start = stop
        return result

    def _lines(
        self, tokens: np.ndarray, where: np.ndarray, tree: TreePass | None, inverse: np.ndarray, aims: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(n,) ln p in float64 of each of `aims`, and whether it was the first choice. `inverse` says behind which of
        the tokens at `where` an aim stands."""
        order = np.argsort(inverse, kind="stable")
        behind, wanted = inverse[order], aims[order]
        logprobs: list[Tensor] = []
        chosen: list[Tensor] = []
        at = 0
        with self._autocast():
            pieces = self._architecture.logits_at(
                self._model,
                to_device(tokens, self._device),
                to_device(where, self._device),
                self._at_once,
                tree,
            )
            for logits in pieces:
                logits = logits.float()
                start, stop = np.searchsorted(behind, (at, at + len(logits)))
                rows = to_device(behind[start:stop] - at, self._device)
                aim = to_device(wanted[start:stop], self._device)
                # log_softmax is one pass over the logits where logsumexp is four: 0.3 of its time on a CPU
                logprobs.append(logits.log_softmax(dim=-1)[rows, aim])
                chosen.append(logits[rows, aim] >= logits.amax(dim=-1)[rows])
                at += len(logits)
        lines, first = np.empty(len(aims)), np.empty(len(aims), bool)
        lines[order] = torch.cat(logprobs).double().cpu().numpy()
        first[order] = torch.cat(chosen).cpu().numpy()
        return lines, first
