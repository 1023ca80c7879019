"""What a comparison says, in sentences with figures and intervals."""

from __future__ import annotations

import math

from raygpt.evaluate.bootstrap import Interval
from raygpt.evaluate.compare import Comparison, TextComparison
from raygpt.evaluate.pairs import SHORTEST


def headlines(comparison: Comparison) -> list[dict[str, str]]:
    """What came out, in sentences with figures and intervals; `kind` is good, bad or empty."""
    lines = [_text_headline("On domain text", comparison.domain)]
    if comparison.general is not None:
        line = _text_headline("On general text", comparison.general)
        if comparison.general.bits_change.significant:
            forgot = comparison.general.bits_change.value > 0
            line["text"] += " This is what was forgotten." if forgot else " Nothing was forgotten."
        lines.append(line)
    if comparison.terms is not None and (change := comparison.terms.change) is not None:
        table = comparison.terms
        text = (
            f"Over {plural(table.occurrences, 'occurrence')} of {plural(len(table.results), 'domain term')}, a term "
            f"became {factor(change.value)} times as likely (95 % interval {factor(change.low)} to "
            f"{factor(change.high)}); the median rank of its first token went from {table.base_rank:,.0f} to "
            f"{table.tuned_rank:,.0f}."
        )
        lines.append({"text": text, "kind": verdict(change, better_below=False)})
    if comparison.memorisation is not None:
        lines.append(_copy_headline(comparison, comparison.settings.overlap_tokens))
    return lines


def _text_headline(where: str, text: TextComparison) -> dict[str, str]:
    if text.change is not None and text.base_loss is not None and text.tuned_loss is not None:
        change, before, after, name = (
            text.change,
            perplexity(text.base_loss),
            perplexity(text.tuned_loss),
            "perplexity",
        )
        relative = change.map(lambda nats: 100 * math.expm1(nats))
        figures = f"{shown(before.value)} to {shown(after.value)}"
    else:
        change, name = text.bits_change, "the loss"
        relative = change.map(lambda bits: 100 * bits / text.base_bits.value)
        figures = f"{text.base_bits.value:.3f} to {text.tuned_bits.value:.3f} bits per byte"
    if not change.significant:
        return {
            "text": f"{where} {name} did not change significantly: {figures}, {_percent(relative)}.",
            "kind": "",
        }
    verb = "fell" if change.value < 0 else "rose"
    return {"text": f"{where} {name} {verb} from {figures}: {_percent(relative)}.", "kind": verdict(change)}


def _copy_headline(comparison: Comparison, overlap_tokens: int) -> dict[str, str]:
    found = comparison.memorisation
    assert found is not None
    tuned, base, held_out = (found.longest(kind) for kind in ("tuned", "base", "held_out"))
    copied = tuned >= overlap_tokens and tuned > held_out
    text = (
        f"The longest run of training text in a tuned sample is {length(tuned)}; base samples reach {length(base)}, "
        f"held-out documents themselves {length(held_out)}."
    )
    text += " Samples repeat training text." if copied else " No sign of memorised text."
    return {"text": text, "kind": "bad" if copied else ""}


def length(tokens: int) -> str:
    """Length of the longest overlap; 0 stands for none that was looked for."""
    return plural(tokens, "token") if tokens else f"fewer than {SHORTEST} tokens"


def verdict(change: Interval, better_below: bool = True) -> str:
    """good or bad where the change is significant, else empty."""
    if not change.significant:
        return ""
    return "good" if (change.value < 0) == better_below else "bad"


def plural(number: int, name: str) -> str:
    """1 term, 2 terms."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def perplexity(loss: Interval) -> Interval:
    """exp of a loss in nats, or of a difference of two: the ratio of their perplexities."""
    return loss.map(lambda nats: math.exp(min(nats, 700.0)))


def shown(figure: float) -> str:
    """Four figures at the most."""
    if figure >= 1000:
        return f"{figure:,.0f}"
    return f"{figure:.1f}" if figure >= 100 else f"{figure:.2f}"


def _percent(change: Interval) -> str:
    return f"{signed(change.value)} % (95 % interval {signed(change.low)} to {signed(change.high)} %)"


def signed(percent: float) -> str:
    """+12.3, −4.5 or +140."""
    text = f"{percent:+,.0f}" if abs(percent) >= 100 else f"{percent:+.1f}"
    return text.replace("-", "−")


def factor(nats: float) -> str:
    """exp(nats) in few figures: 0.52, 3.41, 25.3, 412, 7.0·10⁶."""
    if abs(nats) > math.log(1e4):
        power = math.floor(nats / math.log(10))
        return f"{math.exp(nats - power * math.log(10)):.1f}·10{str(power).translate(_SUPERSCRIPTS)}"
    times = math.exp(nats)
    return (
        f"{times:,.0f}"
        if times >= 100
        else f"{times:.1f}"
        if times >= 10
        else f"{times:.2g}"
        if times < 0.1
        else f"{times:.2f}"
    )


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
