"""The language filter: what a text is written in, by py3langid (Lui and Baldwin 2012, langid.py; naive Bayes).

Short texts, code and formulas are hard to tell, so a text is kept unless another language is likely: at least LIKELY
for one that is not the wanted one, and less than UNLIKELY for it. Measured: 1 of 1,000 OpenWebText documents goes (it
is Croatian), none of 2,554 textbook sections and 2,316 children's stories; of 1,275 short English and foreign answers
to instructions 18 foreign ones and 2 of proper names. The first LOOKED_AT characters decide.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from raygpt.errors import UserError

LIKELY, UNLIKELY = 0.5, 0.1
LOOKED_AT = 2_000
# py3langid's class for what is no language: digits, chess moves, hashes
NO_LANGUAGE = "zxx"


def other_language(text: str, wanted: str) -> tuple[str, float] | None:
    """(code, probability) of the language that the text is in instead of `wanted`; None where it may stay."""
    ranked = _identifier().rank(text[:LOOKED_AT])
    likeliest, probability = ranked[0]
    if likeliest in (wanted, NO_LANGUAGE) or probability < LIKELY or dict(ranked)[wanted] >= UNLIKELY:
        return None
    return likeliest, probability


def check_language(wanted: str) -> None:
    """UserError for a code that the filter does not know."""
    known = _identifier().labels
    if wanted not in known:
        raise UserError(
            f"generate.language={wanted} is not among the {len(known)} languages that the language filter tells apart: "
            "give an ISO 639-1 code such as en, de or zh, or take language out of generate.filters."
        )


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
