"""PURE but for `read_items`. HellaSwag (Zellers et al., 2019): which of four endings a context goes on with.

One model gets figures 2 to 13 points apart under the protocols in use, so a figure stands beside its protocol's name:
- build_nanogpt: the context as it is, a space and the ending, tokens of each by themselves; acc_norm takes the ending
  of the smallest mean loss by token, acc that of the smallest sum;
- lm_eval: lm-evaluation-harness's task. "activity: context", bracketed marks of WikiHow taken out, all stripped;
  acc by the sum, acc_norm by the sum over the ending's characters;
- lighteval: SmolLM's evaluations. As lm_eval but nothing is stripped, so that two spaces stand before the ending,
  which belong to it; acc_norm by the ending's characters, the first space not counted. Instruct models are asked
  through their chat template there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from raygpt.errors import UserError
from raygpt.scoring.questions import Joining, Question, Scored

ProtocolName = Literal["build_nanogpt", "lm_eval", "lighteval"]
PROTOCOLS: tuple[ProtocolName, ...] = ("build_nanogpt", "lm_eval", "lighteval")
HUB_ID = "Rowan/hellaswag"
HUB_SPLIT = "validation"  # the test split has no labels
CHANCE = 0.25
ENDINGS = 4
Z95 = 1.959964  # of a normal distribution, between -z and z lie 95 %
INTERVAL = "Wilson, 95 %"


@dataclass(frozen=True)
class Description:
    """What a table says of a protocol. `shots` are solved examples before the question. What beginning-of-text token
    stands there is the model's tokenizer's matter: see `ModelScorer.bos`."""

    name: ProtocolName
    context: str
    normaliser: str  # what the sum of log-probabilities is divided by for acc_norm
    joining: Joining
    source: str
    shots: int = 0


PROTOCOL: Mapping[str, Description] = {
    "build_nanogpt": Description(
        "build_nanogpt", "ctx", "tokens of the ending", "apart", "karpathy/build-nanogpt, hellaswag.py"
    ),
    "lm_eval": Description(
        "lm_eval",
        "activity_label: ctx_a Ctx_b, stripped",
        "characters of the ending",
        "whole",
        "EleutherAI/lm-evaluation-harness 0.4.13, task hellaswag 1.0",
    ),
    "lighteval": Description(
        "lighteval",
        "activity_label: ctx_a Ctx_b, a space behind it",
        "characters of the ending but its first space",
        "whole",
        "huggingface/smollm, text/evaluation/tasks.py, loglikelihood_acc_norm_nospace",
    ),
}


@dataclass(frozen=True)
class Item:
    """A row of the data set. `id` is its number in what was read, from 0 on; `place` is where it stands, for errors.
    `ctx_a`, `ctx_b` and `activity_label` are None where the file does not have them."""

    id: str
    place: str
    ctx: str
    ctx_a: str | None
    ctx_b: str | None
    activity_label: str | None
    endings: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Judged:
    """An item under a protocol. `logprobs` are in nats, one per ending; `normalised` are those that acc_norm compares.
    Of equal ones the first is the prediction."""

    id: str
    protocol: ProtocolName
    label: int
    logprobs: tuple[float, ...]
    normalised: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def prediction(self) -> int:
        return _best(self.logprobs)

    @property
    def prediction_norm(self) -> int:
        return _best(self.normalised)

    @property
    def correct(self) -> bool:
        return self.prediction == self.label

    @property
    def correct_norm(self) -> bool:
        return self.prediction_norm == self.label

    def record(self) -> dict[str, Any]:
        """A line of a per-item file."""
        return {
            "id": self.id,
            "protocol": self.protocol,
            "label": self.label,
            "prediction": self.prediction,
            "prediction_norm": self.prediction_norm,
            "acc": int(self.correct),
            "acc_norm": int(self.correct_norm),
            "logprobs": list(self.logprobs),
            "tokens": list(self.tokens),
        }


def read_items(uri: str, limit: int | None = None, *, setting: str = "eval.hellaswag") -> list[Item]:
    """Items of a file (JSONL, parquet, Arrow, packed too), or of the validation split of a hub's data set. The endings
    are a list, which a CSV file has no column for.

    Raises UserError that names the places of rows without four endings, a context or a label.
    """
    from raygpt.scoring.items import collect  # needs pyarrow

    form = "an item of HellaSwag has ctx, or ctx_a and ctx_b, four endings and the label of the right one"
    return collect(uri, HUB_SPLIT, limit, setting, _item, form=form, published=f"HellaSwag, or {HUB_ID}")


def _item(name: str, place: str, row: Mapping[str, Any]) -> Item:
    """ValueError says what is wrong."""
    endings = row.get("endings")
    if not isinstance(endings, list) or len(endings) != ENDINGS:
        raise ValueError(f"has {len(endings) if isinstance(endings, list) else 'no'} endings")
    if not all(isinstance(ending, str) and ending.strip() for ending in endings):
        raise ValueError("has an empty ending")
    first, second, whole = row.get("ctx_a"), row.get("ctx_b"), row.get("ctx")
    if whole is None:
        whole = " ".join(part for part in (first, second) if part)
    if not isinstance(whole, str) or not whole.strip():
        raise ValueError("has an empty context")
    label = str(row.get("label", "")).strip()
    if label not in ("0", "1", "2", "3"):
        raise ValueError(f"has the label {label!r}" if label and label != "None" else "has no label")
    activity = row.get("activity_label")
    return Item(name, place, whole, first, second, activity, tuple(endings), int(label))


def questions(
    items: Sequence[Item], protocol: ProtocolName, *, chat: Callable[[str], str] | None = None
) -> list[Question]:
    """What is asked under a protocol, in the items' order.

    `chat` makes a context what a chat template writes for it, up to where the answer begins; the scorer has to read
    special tokens in text then (`ModelScorer(markup=True)`). Raises UserError for items without the parts that the
    protocol puts its context together from.
    """
    if protocol != "build_nanogpt":
        without = [item.place for item in items if None in (item.ctx_a, item.ctx_b, item.activity_label)]
        if without:
            more = f" and {len(without) - 1:,} more" if len(without) > 1 else ""
            raise UserError(
                f"{without[0]}{more} has no ctx_a, ctx_b or activity_label, of which protocol {protocol} makes the "
                "context: take a file that has them, or ask for build_nanogpt alone."
            )
    wrap = chat or (lambda context: context)
    joining = PROTOCOL[protocol].joining
    return [
        Question(item.id, wrap(context(item, protocol)), tuple(" " + text for text in choices(item, protocol)), joining)
        for item in items
    ]


def context(item: Item, protocol: ProtocolName) -> str:
    """The text before the endings."""
    if protocol == "build_nanogpt":
        return item.ctx
    both = f"{item.activity_label}: {item.ctx_a} {str(item.ctx_b).capitalize()}"
    return _without_marks(both.strip()) if protocol == "lm_eval" else _without_marks(both + " ")


def choices(item: Item, protocol: ProtocolName) -> tuple[str, ...]:
    """The endings, without the space that stands before them."""
    if protocol == "build_nanogpt":
        return item.endings
    return tuple(_without_marks(text.strip() if protocol == "lm_eval" else text) for text in item.endings)


def _without_marks(text: str) -> str:
    """WikiHow's [header], [title], [step] and [substeps] taken out, as both harnesses do it."""
    return re.sub(r"\[.*?\]", "", text.replace(" [title]", ". ")).replace("  ", " ")


def judge(item: Item, protocol: ProtocolName, scored: Sequence[Scored]) -> Judged:
    """What the scores of an item's endings mean under a protocol."""
    sums = tuple(one.logprob for one in scored)
    tokens = tuple(one.tokens for one in scored)
    sizes = tokens if protocol == "build_nanogpt" else tuple(len(text) for text in choices(item, protocol))
    # An ending of marks alone has no characters left; what is divided by 0 loses, as in the harness.
    normalised = tuple(total / size if size else -math.inf for total, size in zip(sums, sizes))
    return Judged(item.id, protocol, item.label, sums, normalised, tokens)


def summarise(judged: Sequence[Judged], *, bos: str | None = None) -> dict[str, Any]:
    """Accuracy by either measure with its standard error (of the sample, None for one item) and 95 % interval, and
    under what protocol. `bos` is the token that stands before each context, None where none does."""
    protocol = PROTOCOL[judged[0].protocol]
    result: dict[str, Any] = {"items": len(judged)}
    for name, right in (
        ("acc", sum(one.correct for one in judged)),
        ("acc_norm", sum(one.correct_norm for one in judged)),
    ):
        n, share = len(judged), right / len(judged)
        result[name] = share
        result[f"{name}_stderr"] = math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else None
        result[f"{name}_interval"] = list(wilson(right, n))
    return result | {
        "interval": INTERVAL,
        "protocol": protocol.name,
        "normaliser": protocol.normaliser,
        "shots": protocol.shots,
        "bos": bos,
        "source": protocol.source,
    }


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The score interval of a share (Wilson, 1927)."""
    share = successes / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    whole = 1 + z * z / n
    return (middle - half) / whole, (middle + half) / whole


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)
