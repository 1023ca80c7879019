"""PURE. The words of a domain: found in held-out text, mined from it, or looked for by name.

Mining asks for three things: the word stands in several documents, it is at home in this domain rather than in general
text (log-odds ratio with an informative Dirichlet prior: Monroe, Colaresi and Quinn, "Fightin' Words", 2008), and the
base model finds it hard. Markup (LaTeX commands, formulas, links, tags) is no word, nor are stop words.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

# Letters first, at least three characters; hyphens and digits inside as in COVID-19, word2vec, co-occurrence.
_WORD = re.compile(r"(?<![\w\\])[^\W\d_]\w*(?:-\w+)*(?!\w)")
_MARKUP = re.compile(r"\$[^$]{0,400}\$|\\[A-Za-z]+|https?://\S+|www\.\S+|\S+@\S+|<[^<>\n]{1,80}>|&[A-Za-z#0-9]{1,8};")
SHORTEST, LONGEST = 3, 40
LETTERS = 0.6
# A word is at home in the domain when its log-odds are this many standard deviations above 0 (95 %, two-sided).
KEY = 1.96
STOP_WORDS = frozenset(
    """a about above across after again against all almost along already also although always am among an and another
    any anything are aren't around as at away back be became because become been before began behind being below best
    better between both but by call called came can can't cannot come could couldn't did didn't different do does
    doesn't doing don't done down during e.g each eight either else enough especially et etc even ever every example
    few fig figure find first five for found four from further furthermore get give given go good got great had hadn't
    has hasn't have haven't having he hence her here hers herself him himself his how however i.e if in indeed instead
    into is isn't it its itself just keep known large largely last least less let like likely made main mainly make
    makes making many may me mean means might more moreover most mostly much must my myself namely near nearly
    need needs neither never nevertheless new next nine no nobody non none nor not nothing now of off often on once one
    ones only onto or other others our ours ourselves out over overall own part particular particularly per perhaps
    possible present put quite rather really recent recently said same say second section see seem seems seen seven
    several shall she should show showed shown shows similar similarly since six small so some something sometimes
    still such take taken tell ten than that that's the their theirs them themselves then there therefore these they
    thing things this those though thought three through throughout thus to together too took toward towards two
    under unless unlike until up upon us use used useful uses using various very via was wasn't way we well went were
    weren't what when where whereas whether which while who whole whom whose why will with within without won't would
    wouldn't yes yet you your yours yourself""".split()  # noqa: SIM905 - a list would be ten times as long
)


@dataclass(frozen=True)
class Occurrence:
    """Characters [start, stop) of text number `text`."""

    text: int
    start: int
    stop: int


@dataclass(frozen=True)
class Term:
    """A term as it is mostly written, and where it stands; `surprisal` is the base model's mean -ln p in mining."""

    text: str
    occurrences: list[Occurrence]
    surprisal: float | None = None


def words(text: str) -> Iterator[tuple[str, int, int]]:
    """(word, start, stop) of the words that may be terms; markup counts as white space."""
    for match in _WORD.finditer(_MARKUP.sub(lambda found: " " * len(found[0]), text)):
        word = match[0]
        long_enough = SHORTEST <= len(word) <= LONGEST
        if long_enough and word.lower() not in STOP_WORDS and sum(map(str.isalpha, word)) >= LETTERS * len(word):
            yield word, match.start(), match.end()


def find_terms(names: Sequence[str], texts: Sequence[str]) -> list[Term]:
    """Whole-word occurrences of every name, whatever the case and the white space in it; some may have none."""
    found = []
    for name in names:
        inner = r"\s+".join(re.escape(part) for part in name.split())
        pattern = re.compile(rf"(?<!\w){inner}(?!\w)", re.IGNORECASE)
        places = [
            Occurrence(n, match.start(), match.end())
            for n, text in enumerate(texts)
            for match in pattern.finditer(text)
        ]
        found.append(Term(name, places))
    return found


def mine_terms(
    texts: Sequence[str],
    units: Sequence[int],
    surprisal: Callable[[Occurrence], float],
    wanted: int,
    *,
    general: Sequence[str] | None = None,
    fewest_documents: int = 3,
) -> list[Term]:
    """Up to `wanted` domain terms of `texts`, those first that cost the base model most over all they occur in.

    `units[i]` is the document that text i belongs to; `surprisal` gives the base model's -ln p of an occurrence in
    nats. With `general` texts a word has to be over-represented against them (`key_words`). To be measured without
    looking better than it is, a term should be probed on other documents than it was mined from.
    """
    places = defaultdict(list)
    written: dict[str, Counter[str]] = defaultdict(Counter)
    for n, text in enumerate(texts):
        for word, start, stop in words(text):
            places[word.lower()].append(Occurrence(n, start, stop))
            written[word.lower()][word] += 1
    if general is not None:
        counts = Counter(word.lower() for text in general for word, _, _ in words(text))
        key = key_words({word: len(found) for word, found in places.items()}, counts)
    scored = []
    for word, found in places.items():
        spread = len({units[place.text] for place in found})
        if spread < fewest_documents or (general is not None and key[word] < KEY):
            continue
        mean = sum(map(surprisal, found)) / len(found)
        # a rare word that is hard and a frequent one that is less so weigh alike where their mean differs as this does
        scored.append((mean * math.log1p(spread), word, mean))
    best = sorted(scored, key=lambda row: (-row[0], row[1]))[:wanted]
    return [Term(written[word].most_common(1)[0][0], places[word], mean) for _, word, mean in best]


def key_words(domain: Mapping[str, int], general: Mapping[str, int], prior: float | None = None) -> dict[str, float]:
    """z-score of every domain word's log-odds ratio against the general text, from counts of words.

    With a prior of `prior` words (none: a twentieth of both texts, 1,000 at most) spread as in both texts together:
    delta = logit(domain) - logit(general) of the smoothed counts, over sqrt(1 / (y_domain + a) + 1 / (y_general + a))
    (Monroe et al. 2008, equations 16, 20 and 22).
    """
    size_domain, size_general = sum(domain.values()), sum(general.values())
    prior = min(1000.0, 0.05 * (size_domain + size_general)) if prior is None else prior
    scores = {}
    for word, times in domain.items():
        elsewhere = general.get(word, 0)
        a = prior * (times + elsewhere) / (size_domain + size_general)
        delta = math.log((times + a) / (size_domain + prior - times - a)) - math.log(
            (elsewhere + a) / (size_general + prior - elsewhere - a)
        )
        scores[word] = delta / math.sqrt(1 / (times + a) + 1 / (elsewhere + a))
    return scores


def snippet(text: str, place: Occurrence, before: int = 80, after: int = 40) -> tuple[str, str, str]:
    """(what stands before, the term, what stands after), cut at words, in one line."""
    head, tail = text[max(0, place.start - before) : place.start], text[place.stop : place.stop + after]
    if place.start > before:
        head = "… " + head[head.find(" ") + 1 :]
    if place.stop + after < len(text):
        tail = tail[: tail.rfind(" ")] + " …" if " " in tail else tail + "…"
    return _one_line(head), text[place.start : place.stop], _one_line(tail)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)
