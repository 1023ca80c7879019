"""PURE. The table and the card of a generated data set: what was kept, why, how fast it was made and at what cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Facts:
    """How the answers were made, over all calls of the run: tokens are the teacher's, seconds those of asking, `gpus`
    the teacher's GPUs (None where unknown, as of an endpoint), `cost_usd` None without a price."""

    teacher: str
    template: str
    sampling: dict[str, Any] = field(default_factory=dict)
    generation: str = ""
    prompts: int = 0
    parked: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0
    gpus: float | None = None
    cost_usd: float | None = None
    command: str = ""

    def figures(self) -> dict[str, Any]:
        """The facts with what follows from them; None where a part is not known."""
        rate = self.answer_tokens / self.seconds if self.seconds > 0 else None
        return {
            **asdict(self),
            "tokens_per_second": rate,
            "tokens_per_second_per_gpu": rate / self.gpus if rate and self.gpus else None,
            "usd_per_1m_tokens": self.cost_usd / self.answer_tokens * 1e6
            if self.cost_usd is not None and self.answer_tokens
            else None,
            "days_per_1b_tokens": 1e9 / rate / 86_400 if rate else None,
        }


def table(quality: dict[str, Any]) -> str:
    """Lines for a terminal."""
    width = max(len(step["step"]) for step in quality["steps"])
    lines = [
        f"{'step':<{width}}  {'removed':>10}  {'kept':>10}",
        f"{'answers':<{width}}  {'':>10}  {quality['answers']:>10,}",
    ]
    lines += [f"{step['step']:<{width}}  {step['removed']:>10,}  {step['kept']:>10,}" for step in quality["steps"]]
    return "\n".join(lines)


def card(quality: dict[str, Any]) -> str:
    return f"# Synthetic text of {quality['generation']['teacher']}\n\n```\n{table(quality)}\n```\n"
