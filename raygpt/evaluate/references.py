"""PURE. Published figures of well-known models, each with its protocol, source and date.

They stand below one's own rows of the same protocol, never among those of another: HellaSwag differs by 2 points and
more between protocols, perplexities by a factor of two between normalisers. All are 0-shot, on whole validation or
test sets (HellaSwag: 10,042 items). OpenAI's own harness for GPT-3 divides by tokens as build_nanogpt does; that the
two are equal nobody has shown, and the row says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """One published result. `figures` are named and scaled as raygpt's own; `date` is that of the source."""

    model: str
    task: str
    protocol: str
    figures: dict[str, float]
    source: str
    date: str
    note: str = ""


_NANOGPT = ("karpathy/build-nanogpt, hellaswag.py", "2024-06")
_LLMC = ("karpathy/llm.c, dev/vislog.ipynb", "2024-07")
_GPT3 = ("Brown et al., arXiv 2005.14165, table H.1", "2020-07")
_GPT3_NOTE = "OpenAI's own harness, by token too"
_CARD = ("HuggingFaceTB/SmolLM2-135M-Instruct, model card", "2025-02")

REFERENCES: tuple[Reference, ...] = (
    Reference("GPT-2 124M", "hellaswag", "build_nanogpt", {"acc": 0.2859, "acc_norm": 0.2955}, *_NANOGPT),
    Reference("GPT-2 350M", "hellaswag", "build_nanogpt", {"acc_norm": 0.3752}, *_LLMC),
    Reference("GPT-2 774M", "hellaswag", "build_nanogpt", {"acc_norm": 0.4320}, *_LLMC),
    Reference("GPT-2 1558M", "hellaswag", "build_nanogpt", {"acc": 0.3842, "acc_norm": 0.4893}, *_NANOGPT),
    Reference("GPT-3 Small 125M", "hellaswag", "build_nanogpt", {"acc_norm": 0.337}, *_GPT3, _GPT3_NOTE),
    Reference("GPT-3 Medium 350M", "hellaswag", "build_nanogpt", {"acc_norm": 0.436}, *_GPT3, _GPT3_NOTE),
    Reference("GPT-3 Large 760M", "hellaswag", "build_nanogpt", {"acc_norm": 0.510}, *_GPT3, _GPT3_NOTE),
    Reference("GPT-3 XL 1.3B", "hellaswag", "build_nanogpt", {"acc_norm": 0.547}, *_GPT3, _GPT3_NOTE),
    Reference("GPT-2 124M", "hellaswag", "lm_eval", {"acc": 0.2892, "acc_norm": 0.3114}, *_NANOGPT),
    Reference("GPT-2 1558M", "hellaswag", "lm_eval", {"acc": 0.4004, "acc_norm": 0.5089}, *_NANOGPT),
    Reference(
        "Pythia-160M",
        "hellaswag",
        "lm_eval",
        {"acc": 0.2872, "acc_norm": 0.3082},
        "Hugging Face: tomhata/ul_llm_week1",
        "read 2026-11",
    ),
    Reference("SmolLM2-135M", "hellaswag", "lighteval", {"acc_norm": 0.421}, *_CARD),
    Reference(
        "SmolLM2-135M-Instruct", "hellaswag", "lighteval", {"acc_norm": 0.409}, *_CARD, "with chat template, bf16"
    ),
    Reference(
        "GPT-2 124M",
        "lambada",
        "lm_eval",
        {"acc": 0.3256, "perplexity": 40.06},
        "lm-evaluation-harness v0.4, lambada_openai, an outsider's table",
        "read 2026-11",
    ),
    Reference(
        "GPT-2 124M",
        "wikitext",
        "lm_eval",
        {"bits_per_byte": 0.9769},
        "lm-evaluation-harness v0.4, wikitext, an outsider's table",
        "read 2026-11",
    ),
)


def references(task: str, protocols: Iterable[str]) -> list[Reference]:
    """Those of a task in any of these protocols, in the table's order."""
    wanted = set(protocols)
    return [each for each in REFERENCES if each.task == task and each.protocol in wanted]
