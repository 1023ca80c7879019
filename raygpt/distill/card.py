"""PURE. The table and the card of a generated data set: what was kept, why, how fast it was made and at what cost."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

# Licences by the teacher's name: (pattern, the hub's id, what to know). As their owners state them; the first counts.
LICENCES = (
    (
        r"llama-?(?P<version>3(?:\.[123])?|4)",
        "llama{version}",
        "**Built with Llama.** The texts come from a Llama model: the Llama {version} Community License holds for "
        "them. A model trained on them that is given to others must show “Built with Llama” and have a name that "
        "begins with “Llama”.",
    ),
    (r"gemma", "gemma", "The texts come from a Gemma model: Google's Gemma Terms of Use hold for them."),
    (r"smollm", "apache-2.0", "The teacher's licence, Apache-2.0, sets no terms for what it writes."),
    (r"gpt2|gpt-2", "mit", "The teacher's licence, a modified MIT licence, sets no terms for what it writes."),
)
# What the hub calls the sizes of data sets: fewer documents than so many.
SIZES = {
    1_000: "n<1K",
    10_000: "1K<n<10K",
    100_000: "10K<n<100K",
    1_000_000: "100K<n<1M",
    10_000_000: "1M<n<10M",
    100_000_000: "10M<n<100M",
    1_000_000_000: "100M<n<1B",
}


@dataclass(frozen=True)
class Facts:
    """How the answers were made, over all calls of the run. Tokens are the teacher's, `seconds` those of asking, `gpus`
    the teacher's (None where unknown, as of an endpoint), `cost_usd` is None without a price. `command` is shown."""

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
    command: str = "raygpt generate --config generate.yaml"

    def figures(self) -> dict[str, Any]:
        """The facts with what follows from them: answer tokens a second, also per GPU, USD per million of them, days
        and GPU-days for 1e9. None where a part is not known."""
        rate = self.answer_tokens / self.seconds if self.seconds > 0 and self.answer_tokens else None
        priced = self.cost_usd is not None and self.answer_tokens > 0
        days = 1e9 / rate / 86_400 if rate else None
        return {
            **asdict(self),
            "tokens_per_second": rate,
            "tokens_per_second_per_gpu": rate / self.gpus if rate and self.gpus else None,
            "usd_per_1m_tokens": self.cost_usd / self.answer_tokens * 1e6 if priced else None,  # type: ignore[operator]
            "days_per_1b_tokens": days,
            "gpu_days_per_1b_tokens": days * self.gpus if days and self.gpus else None,
        }


def table(quality: dict[str, Any]) -> str:
    """Lines for a terminal: kept and removed by step, the first sample of each, speed and cost."""
    steps = quality["steps"]
    width = max(len(step["step"]) for step in steps)
    lines = [
        f"{'':<{width}}  {'removed':>11}  {'kept':>11}",
        f"{'answers':<{width}}  {'':>11}  {quality['answers']:>11,}",
    ]
    for step in steps:
        example = f"  {_line(step['samples'][0]['why'])}" if step["samples"] else ""
        lines.append(f"{step['step']:<{width}}  {step['removed']:>11,}  {step['kept']:>11,}{example}")
    lines.append(
        f"{quality['documents']:,} documents, {quality['tokens']:,} tokens of {quality['tokenizer']} "
        f"({quality['train']['documents']:,} to train on, {quality['val']['documents']:,} to validate)"
    )
    speed = " | ".join(f"{name} {value}" for name, value in _speed(quality["generation"]))
    return "\n".join([*lines, speed] if speed else lines)


def card(quality: dict[str, Any]) -> str:
    """Markdown with the hub's metadata on top."""
    options, made = quality["options"], quality["generation"]
    licence, note = _licence(made["teacher"])
    language = options["language"] if "language" in options["filters"] else None
    head = [
        "---",
        f"pretty_name: {json.dumps('Synthetic text of ' + made['teacher'])}",
        *([f"license: {licence}"] if licence else []),
        *([f"language: [{language}]"] if language else []),
        "task_categories: [text-generation]",
        f"size_categories: [{_size(quality['documents'])}]",
        "tags: [synthetic, distillation, raygpt]",
        "---",
    ]
    sampling = ", ".join(f"{name} {value}" for name, value in made["sampling"].items())
    parts = [
        "\n".join(head),
        f"# Synthetic text of {made['teacher']}",
        f"{quality['documents']:,} documents that `{made['teacher']}` wrote, {quality['tokens']:,} tokens of the "
        f"tokenizer {quality['tokenizer']}: {_side(quality, 'train')} in `train/`, {_side(quality, 'val')} in `val/`. "
        "All answers to one prompt are on the same side.",
        _rows(
            "How it was made",
            [
                ("teacher", made["teacher"]),
                ("template", made["template"]),
                ("sampling", sampling),
                ("generation", made["generation"]),
                ("prompts", f"{made['prompts']:,}, of which {made['parked']:,} have no answer"),
                ("teacher's tokens", f"{made['prompt_tokens']:,} read, {made['answer_tokens']:,} written"),
                *_speed(made),
            ],
        ),
        f"```sh\n{made['command']}\nraygpt finetune --data.train=train --data.val=val   # in this folder\n```",
        _steps(quality),
        _how(quality),
        _samples(quality["steps"]),
        f"## Licence\n\n{note}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _side(quality: dict[str, Any], side: str) -> str:
    return f"{quality[side]['documents']:,} documents ({quality[side]['tokens']:,} tokens)"


def _speed(made: dict[str, Any]) -> list[tuple[str, str]]:
    """What is known of speed and cost."""
    forms = (
        ("tok/s", "tokens_per_second", "{:,.1f}"),
        ("tok/s per GPU", "tokens_per_second_per_gpu", "{:,.1f}"),
        ("cost", "cost_usd", "${:,.2f}"),
        ("per 1M tokens written", "usd_per_1m_tokens", "${:,.2f}"),
        ("days for 1B tokens", "days_per_1b_tokens", "{:,.1f}"),
        ("GPU-days for 1B tokens", "gpu_days_per_1b_tokens", "{:,.1f}"),
    )
    return [(name, form.format(made[key])) for name, key, form in forms if made[key] is not None]


def _steps(quality: dict[str, Any]) -> str:
    total = quality["answers"]
    rows = [
        f"| {step['step']} | {step['removed']:,} | {step['kept']:,} | {step['kept'] / total:.1%} |"
        for step in quality["steps"]
    ]
    head = ["## What was kept", "", "| step | removed | kept | of all answers |", "|---|---:|---:|---:|"]
    return "\n".join([*head, f"| answers | | {total:,} | 100.0% |", *rows])


def _how(quality: dict[str, Any]) -> str:
    """The limits of the steps that were taken."""
    options, filters = quality["options"], quality["options"]["filters"]
    words = options["decontaminate_words"]
    lines = []
    if "length" in filters:
        lines.append(
            f"length: {options['min_characters']:,} to {options['max_characters']:,} characters; an answer that the "
            "token limit ended loses its unfinished sentence first"
        )
    if "repetition" in filters:
        lines.append("repetition: the limits of Gopher (Rae et al. 2021, table A1)")
    if "language" in filters:
        lines.append(f"language: {options['language']}, told by py3langid")
    if "refusal" in filters:
        lines.append("refusal: sentences in which a model declines or speaks of itself, English only")
    for source in quality["decontaminated"]:
        lines.append(
            f"contamination: n-grams of n = {words} words of the {source['texts']:,} texts of "
            f"{_name(source['source'])}, a match of {words} or more removes: {source['contaminated']:,} documents, "
            f"longest match {source['longest']} words; {source['too_short']:,} texts are too short to be found"
        )
    if near := quality["near_duplicates"]:
        lines.append(
            f"near duplicates: {near['threshold']:g} or more of the 5-word sequences in common (Jaccard, compared "
            f"exactly; MinHash finds the pairs by {near['bands']} bands of {near['rows']} and misses one at the "
            f"threshold with probability {near['missed']:.0e})"
        )
    if "score" in filters:
        lines.append(f"score: a mark of {options['min_score']:g} or more of 5 by the teacher")
    return "\n".join(f"- {line}" for line in lines)


def _samples(steps: list[dict[str, Any]]) -> str:
    rows = [
        f"| {step['step']} | {_cell(sample['why'])} | {_cell(sample['text'])} |"
        for step in steps
        for sample in step["samples"]
    ]
    return (
        "\n".join(["## Samples of what was removed", "", "| step | why | text |", "|---|---|---|", *rows])
        if rows
        else ""
    )


def _rows(title: str, rows: list[tuple[str, str]]) -> str:
    return "\n".join(
        [f"## {title}", "", "| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows if value)]
    )


def _licence(teacher: str) -> tuple[str, str]:
    """(the hub's id or nothing, a sentence)."""
    for pattern, licence, note in LICENCES:
        if match := re.search(pattern, teacher, re.IGNORECASE):
            return licence.format(**match.groupdict()), note.format(**match.groupdict())
    return "", f"The terms of `{teacher}` hold for what it wrote: look them up before you give the texts away."


def _size(documents: int) -> str:
    return next((name for most, name in SIZES.items() if documents < most), "n>1B")


def _name(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    # a bar would end the cell, a tag would be taken for one
    return _line(text).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
