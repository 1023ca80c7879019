"""Samples of two models side by side, and how much of them stands word for word in the training shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from raygpt import storage
from raygpt.data.reader import TokenReader
from raygpt.data.shards import MANIFEST
from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError
from raygpt.evaluate.documents import shard_tokenizer
from raygpt.evaluate.overlap import longest_overlaps
from raygpt.evaluate.subject import Subject
from raygpt.model.text import continue_text

PROMPT_TOKENS = 24
# The shortest overlap that is counted; shorter ones any two texts of a language have.
SHORTEST = 8


@dataclass(frozen=True)
class Prompt:
    """The beginning of held-out text number `text`, and how the text itself goes on."""

    text: int
    prompt: str
    rest: str


@dataclass(frozen=True)
class Copied:
    """Of one text: its tokens, the longest run of them that the training shards have too (`text`), and how many of its
    tokens lie in runs of compare.overlap_tokens or more."""

    tokens: int
    longest: int
    text: str
    covered: int


@dataclass(frozen=True)
class Memorisation:
    """What the samples of each kind (base, tuned, held_out) share with the training shards at `uri`."""

    uri: str
    training_tokens: int
    copied: dict[str, list[Copied]]
    note: str = ""

    def longest(self, kind: str) -> int:
        return max((found.longest for found in self.copied[kind]), default=0)

    def covered(self, kind: str) -> float:
        """Share of all tokens of that kind in long overlaps."""
        tokens = sum(found.tokens for found in self.copied[kind])
        return sum(found.covered for found in self.copied[kind]) / tokens if tokens else 0.0


def choose_prompts(texts: Sequence[str], tokenizer: Tokenizer, wanted: int, sample_tokens: int) -> list[Prompt]:
    """Beginnings of about PROMPT_TOKENS tokens, ended at a word, of evenly spaced texts that go on long enough."""
    found = []
    for number, (text, ids) in enumerate(zip(texts, tokenizer.encode_batch(list(texts)))):
        if len(ids) < PROMPT_TOKENS + min(sample_tokens, 2 * PROMPT_TOKENS):
            continue
        head = tokenizer.decode(ids[:PROMPT_TOKENS])
        words = head.rstrip("\ufffd").rsplit(maxsplit=1)
        prompt = words[0] if len(words) > 1 else ""
        if prompt and text.startswith(prompt):
            found.append(Prompt(number, prompt, text[len(prompt) :]))
    wanted = min(wanted, len(found))
    return [found[at * len(found) // wanted] for at in range(wanted)]


def write_samples(
    subject: Subject,
    prompts: Sequence[Prompt],
    sample_tokens: int,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """What the model writes after every prompt, each from a seed of its own that is the same for any model."""
    texts = []
    for number, prompt in enumerate(prompts):
        pieces = continue_text(
            subject.model,
            subject.tokenizer,
            prompt.prompt,
            sample_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=torch.Generator(subject.device).manual_seed(seed + number),
        )
        text = ""
        for done, piece in enumerate(pieces):
            text += piece
            if on_progress is not None:
                on_progress(number * sample_tokens + done, len(prompts) * sample_tokens)
        texts.append(text)
    return texts


def open_training_shards(named: str | None, tuned: Subject, cache_bytes: int = 0) -> tuple[TokenReader | None, str]:
    """(the shards `named`, or those the model was tuned on; a remark), or (None, why nothing can be looked for)."""
    source = named or (tuned.trained.train if tuned.trained is not None else None)
    if source is None:
        return None, "the tuned model does not say what it was trained on; name its token shards with data.train"
    try:
        where = storage.locate(source)
        if storage.exists(where / "train" / MANIFEST):
            where = where / "train"
        if not storage.exists(where / MANIFEST):
            return None, f"the training shards are not at {where.uri} any more; name a copy with data.train"
        reader = TokenReader(where, cache_bytes)
    except UserError as error:
        return None, str(error).rstrip(".")
    if tuned.state is not None and reader.manifest.fingerprint not in tuned.state.fingerprint:
        return reader, "these are not the shards the tuned model was last trained on (another fingerprint)"
    return reader, ""


def look_for_copies(
    reader: TokenReader,
    texts: dict[str, list[str]],
    sample_tokens: int,
    overlap_tokens: int,
    note: str = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> Memorisation:
    """Longest overlaps of the texts of every kind with the shards, in tokens of the shards' own tokenizer.

    Texts are encoded anew, as training text was (a model may spell a word in tokens of its own), and cut at
    `sample_tokens`. Prompts are no part of them.
    """
    tokenizer = shard_tokenizer(reader)
    flat = [ids[:sample_tokens] for kind in texts for ids in tokenizer.encode_batch(texts[kind])]
    found = iter(
        longest_overlaps(
            flat, reader, min(SHORTEST, overlap_tokens), cover_tokens=overlap_tokens, on_progress=on_progress
        )
    )
    ids = iter(flat)
    copied: dict[str, list[Copied]] = {}
    for kind in texts:
        copied[kind] = []
        for _, sample, overlap in zip(texts[kind], ids, found):
            shared = sample[overlap.start : overlap.start + overlap.tokens]
            copied[kind].append(Copied(len(sample), overlap.tokens, tokenizer.decode(shared), overlap.covered))
    return Memorisation(reader.folder.uri, reader.total_tokens, copied, note)
