"""Models side by side as people and scripts read it: lines for a terminal, arms.json, one self-contained page."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import raygpt
from raygpt.evaluate.arms import as_much_as
from raygpt.evaluate.arms_page import ARMS_PAGE
from raygpt.evaluate.bootstrap import Interval
from raygpt.evaluate.compare_arms import ArmsCompared, Measured, Score
from raygpt.evaluate.compare_headlines import perplexity, shown, verdict
from raygpt.evaluate.documents import LONGEST
from raygpt.storage import Location, write_text
from raygpt.track.progress import human_count

PAGE, FIGURES = "arms.html", "arms.json"


def write_arms(compared: ArmsCompared, notes: list[str], target: Location) -> dict[str, Any]:
    """Write arms.json and, last, the page below `target`; returns the figures."""
    figures = as_dict(compared, notes)
    write_text(target / FIGURES, json.dumps(figures, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(target / PAGE, render(compared, figures))
    return figures


def as_dict(compared: ArmsCompared, notes: list[str]) -> dict[str, Any]:
    """All figures by name, plain types only; absent rather than guessed."""
    alike = as_much_as({each.arm.name: each.spent for each in compared.arms})
    return {
        "arms": [_arm(each, alike[each.arm.name]) for each in compared.arms],
        "texts": {
            name: {
                "uri": text.uri,
                "fingerprint": text.fingerprint,
                "documents": len(set(text.units.tolist())),
                "parts": text.by_text,
                "documents_in_all": text.total,
                "bytes": int(text.bytes.sum()),
            }
            for name, text in compared.texts.items()
        },
        "same_tokenizer": compared.same_tokenizer,
        "seq_len": compared.seq_len,
        "resamples": compared.settings.resamples,
        "seed": compared.settings.seed,
        "samples": [
            {
                "prompt": prompt.prompt,
                "goes_on": prompt.rest,
                "written": {each.arm.name: each.samples[number] for each in compared.arms},
            }
            for number, prompt in enumerate(compared.prompts)
        ],
        "notes": notes,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": raygpt.__version__,
    }


def in_short(figures: dict[str, Any]) -> dict[str, Any]:
    """What a script wants in one line: size, tokens, cost and losses of every arm, without intervals of losses."""
    keep = ("parameters", "tokens", "flops", "usd", "as_many_tokens_as", "as_much_compute_as")
    return {
        "compare": {
            arm["name"]: {key: arm[key] for key in keep if key in arm}
            | {
                name: {
                    "perplexity": score["perplexity"]["value"],
                    "bits_per_byte": score["bits_per_byte"]["value"],
                    **({"difference": score["difference"]} if "difference" in score else {}),
                }
                for name, score in arm["texts"].items()
            }
            for arm in figures["arms"]
        }
    }


def lines(figures: dict[str, Any]) -> list[str]:
    """A table for every text, for a terminal."""
    made: list[str] = []
    for name in figures["texts"]:
        rows = [
            [f"held-out {name} text", "parameters", "trained on", "cost", "perplexity", "bits/byte", "less the first"]
        ]
        for arm in figures["arms"]:
            score = arm["texts"][name]
            row = [arm["name"], human_count(arm["parameters"]), _tokens(arm), _money(arm.get("usd"))]
            row += [shown(score["perplexity"]["value"]), f"{score['bits_per_byte']['value']:.4f}"]
            rows.append([*row, _difference(score) if "difference" in score else "-"])
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        made += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return [*made, *_equal(figures)]


def render(compared: ArmsCompared, figures: dict[str, Any]) -> str:
    import jinja2

    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(ARMS_PAGE)
    return template.render(
        names=list(compared.texts),
        rows=[_row(each, arm) for each, arm in zip(compared.arms, figures["arms"])],
        samples=figures["samples"],
        notes=figures["notes"],
        how=_how(compared),
        facts=_facts(figures),
        equal=_equal(figures),
        version=raygpt.__version__,
        written=figures["written"],
    )


def _arm(each: Measured, alike: dict[str, list[str]]) -> dict[str, Any]:
    spent = each.spent
    facts: dict[str, Any] = {
        "name": each.arm.name,
        "origin": each.arm.uri,
        "step": each.step,
        "parameters": each.parameters,
        "context": each.context,
        "tokenizer": each.tokenizer,
        "vocab_size": each.vocab_size,
        "precision": each.precision,
        "tokens": spent.tokens,
        "own_tokens": spent.own_tokens,
        "flops": spent.flops,
        "training_usd": spent.usd,
        "usd": spent.whole_usd,
        "as_many_tokens_as": alike["tokens"] or None,
        "as_much_compute_as": alike["compute"] or None,
    }
    if (made := spent.generation) is not None:
        facts["generation"] = {
            key: value
            for key, value in {
                "uri": made.uri,
                "teacher": made.teacher,
                "teacher_tokens": made.answer_tokens,
                "usd": made.usd,
            }.items()
            if value is not None
        }
    facts["texts"] = {name: _score(score) for name, score in each.scores.items()}
    return {name: value for name, value in facts.items() if value is not None}


def _score(score: Score) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "tokens": score.tokens,
        "loss": score.loss.to_dict(),
        "perplexity": perplexity(score.loss).to_dict(),
        "bits_per_byte": score.bits.to_dict(),
    }
    if score.change is not None:
        facts |= {
            "difference": score.change.to_dict(),
            "significant": score.change.significant,
            "easier": score.easier,
        }
    return facts


def _row(each: Measured, arm: dict[str, Any]) -> dict[str, Any]:
    cells = []
    for score in each.scores.values():
        ppl = perplexity(score.loss)
        cells.append((shown(ppl.value), f"{shown(ppl.low)} to {shown(ppl.high)}", ""))
        cells.append((f"{score.bits.value:.4f}", f"{score.bits.low:.4f} to {score.bits.high:.4f}", ""))
        if score.change is None:
            cells.append(("–", "", ""))
        else:
            low, high = _signed(score.change.low), _signed(score.change.high)
            cells.append((_signed(score.change.value), f"{low} to {high}", verdict(score.change)))
    made = each.spent.generation
    costs = []
    if each.spent.usd is not None:
        costs.append(f"training {_money(each.spent.usd)}")
    if made is not None:
        costs.append(f"text {_money(made.usd)}")
    return {
        "name": each.arm.name,
        "origin": each.arm.uri,
        "parameters": human_count(each.parameters),
        "tokens": _tokens(arm),
        "flops": "" if each.spent.flops is None else f"{each.spent.flops:.2g} FLOPs",
        "usd": _money(each.spent.whole_usd),
        "costs": ", ".join(costs),
        "cells": cells,
    }


def _tokens(arm: dict[str, Any]) -> str:
    return "-" if "tokens" not in arm else f"{human_count(arm['tokens'])} tokens"


def _money(usd: float | None) -> str:
    if usd is None:
        return "-"
    return f"${usd:,.2f}" if usd >= 0.01 or usd == 0 else f"${usd:.4f}"


def _signed(bits: float) -> str:
    return f"{bits:+.4f}".replace("-", "−")


def _difference(score: dict[str, Any]) -> str:
    change = Interval(**score["difference"])
    return f"{change.value:+.4f} ({change.low:+.4f} to {change.high:+.4f})"


def _equal(figures: dict[str, Any]) -> list[str]:
    """Which arms are at equal tokens or compute, each group once."""
    said: list[str] = []
    for key, what in (
        ("as_many_tokens_as", "trained on as many tokens"),
        ("as_much_compute_as", "had as much compute"),
    ):
        seen: set[str] = set()
        for arm in figures["arms"]:
            if key in arm and arm["name"] not in seen:
                group = [arm["name"], *arm[key]]
                seen |= set(group)
                said.append(f"{', '.join(group[:-1])} and {group[-1]} {what} (within 0.5 %).")
    return said


def _how(compared: ArmsCompared) -> dict[str, str]:
    units = "parts of documents" if any(text.by_text for text in compared.texts.values()) else "documents"
    text = (
        f"Every document by itself in rows of {compared.seq_len:,} tokens, behind an end-of-text token (of longer "
        f"ones, parts of up to {LONGEST:,} characters). Intervals: paired bootstrap, {compared.settings.resamples:,} "
        f"draws of {units}, 95 %. Differences are in bits per byte, below 0 where a model is better than the first."
    )
    if not compared.same_tokenizer:
        text += " Tokenizers differ: perplexities are per token of each; bits per byte compare."
    samples = (
        f"Beginnings of held-out {compared.prompts_from} documents, as plain text without a chat template; same seed, "
        f"temperature {compared.settings.temperature:g}, up to {compared.settings.sample_tokens} tokens."
    )
    cost = (
        "Tokens, compute and training cost are of the run and of all runs that it was trained on from, by their "
        "summaries; text is what the teacher's writing cost, by the generation's quality.json. A model that came from "
        "elsewhere has neither."
    )
    return {"text": text, "samples": samples, "cost": cost}


def _facts(figures: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for arm in figures["arms"]:
        step = f", step {arm['step']:,}" if "step" in arm else ""
        text = (
            f"{arm['origin']}{step}: {arm['parameters']:,} parameters, tokenizer {arm['tokenizer']} of "
            f"{arm['vocab_size']:,}, context {arm['context']:,}, {arm['precision']}"
        )
        if (made := arm.get("generation")) is not None:
            text += f"; distilled on text of {made.get('teacher', 'a teacher')} at {made['uri']}"
            if "teacher_tokens" in made:
                text += f", {made['teacher_tokens']:,} tokens of it"
        rows.append((arm["name"], text))
    for name, text in figures["texts"].items():
        mark = f", fingerprint {text['fingerprint']}" if text["fingerprint"] else ""
        rows.append(
            (
                f"{name} text",
                f"{text['uri']}: {text['documents']:,}{' parts' if text['parts'] else ''} of "
                f"{text['documents_in_all']:,} documents, {text['bytes']:,} bytes{mark}",
            )
        )
    return [*rows, ("seed", str(figures["seed"]))]
