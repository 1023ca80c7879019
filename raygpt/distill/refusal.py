"""PURE. The refusal filter: answers in which the teacher declines, or speaks of itself as a model. English only.

Two kinds of sentences count. A refusal opens the answer ("I'm sorry, but I can't …", "As an AI language model, I …"):
it is looked for in the first OPENING characters, at the start of a sentence, as stories and letters refuse things too.
What only a model says of itself ("as an AI language model", "I don't have personal opinions", "my training data")
counts anywhere.
"""

from __future__ import annotations

import re

OPENING = 200

_CANNOT = (
    r"(?:can(?:no|')t|can not|am (?:not able|unable) to|am not (?:allowed|permitted|programmed|comfortable)"
    r"|'m (?:not able|unable) to|'m not (?:allowed|permitted|programmed|comfortable)|won't(?: be able to)?|will not"
    r"|do not feel comfortable|don't feel comfortable|must decline|have to decline)"
)
_DO = (
    r"(?:assist|help(?! (?:but|it|feel|think|wonder|notic|lov))|fulfil|comply|provide|generate|create|write|answer"
    r"|engage|participate|complete|support|discuss|offer|produce|give (?!up|in\b|way)|access|browse|do that|do this"
    r"|be of)"
)
_SENTENCE = r"(?:^|(?<=[.!?,;:]\s)|(?<=\n))"
_OPENINGS = [
    rf"{_SENTENCE}(?:but |however,? |unfortunately,? )?i(?: |(?='))(?:really |simply )?{_CANNOT} (?:\w+ )?{_DO}",
    # a letter may begin like this too: what is declined has to be what a model is asked for
    r"^\W*(?:(?:i am|i'm) (?:very |so |really |truly )?(?:sorry|afraid)|sorry|(?:my )?apologies|i apologi[sz]e)\b"
    rf".{{0,60}}(?:{_CANNOT} (?:\w+ )?{_DO}|(?:do not|don't) have (?:access|the ability|enough|any)|as an ai\b"
    r"|not (?:appropriate|possible))",
    r"^\W*as an? (?:text-based )?"
    r"(?:ai|artificial intelligence|large language model|language model|virtual assistant)\b",
]
_ANYWHERE = [
    r"\bas an? (?:ai|artificial intelligence)(?:[ -]powered)? (?:language )?(?:model|assistant|system|chatbot)\b,? i\b",
    r"\bas a (?:large )?language model\b,? i\b",
    r"\bi(?:'m| am) (?:just |only |merely )?(?:an? )?(?:ai|artificial intelligence|large)? ?language model\b",
    r"\bi(?:'m| am) (?:just |only |merely )?an? (?:ai|artificial intelligence)"
    r" (?:assistant|model|chatbot|and (?:do not|don't|cannot|can't))\b",
    r"\bi (?:do not|don't) have (?:any )?(?:personal (?:opinions?|experiences?|beliefs|preferences|feelings)"
    r"|real[- ]time (?:access|information|data)|(?:the )?ability to (?:browse|access))",
    r"\b(?:my|beyond my) (?:training data|knowledge cut-?off)\b",
    r"\bagainst my (?:programming|guidelines)\b",
]
# One of these stands in every match of _ANYWHERE; looking for them alone is five times as fast.
_SIGNS = (
    "language model",
    "ai ",
    "ai-",
    "artificial intelligence",
    "n't have",
    "not have",
    "my training",
    "cutoff",
    "cut-off",
    "against my",
)
_OPENING = re.compile("|".join(_OPENINGS), re.DOTALL)
_OWN = re.compile("|".join(_ANYWHERE))


def refusal(text: str) -> str | None:
    """The words that refuse, None where nothing does."""
    plain = text.strip().replace("’", "'").casefold()
    match = _OPENING.search(plain[:OPENING])
    if match is None and any(sign in plain for sign in _SIGNS):
        match = _OWN.search(plain)
    return None if match is None else match[0][:80]
