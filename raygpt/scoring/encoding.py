"""PURE. A question's texts as tokens."""

from __future__ import annotations

from raygpt.data.tokenizer import Tokenizer
from raygpt.scoring.questions import Question


def split(question: Question) -> tuple[str, str]:
    """(context, what of it is counted to the continuations): its trailing blanks, where both are encoded as one."""
    if question.joining == "apart":
        return question.context, ""
    head = question.context.rstrip()
    return head, question.context[len(head) :]


def beginning(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that the tokenizer puts before a text by itself."""
    plain = tokenizer.backend.encode("a", add_special_tokens=False).ids
    marked = tokenizer.backend.encode("a", add_special_tokens=True).ids
    for start in range(len(marked) - len(plain) + 1):
        if marked[start : start + len(plain)] == plain:
            return tuple(marked[:start])
    return ()


def before_text(tokenizer: Tokenizer) -> int:
    """The token that a text's first one is predicted from, by lm-evaluation-harness's rule: the `bos_token` that a
    model's files name; where that is not known what the tokenizer puts before a text, else end of text."""
    if tokenizer.bos_id is not None:
        return tokenizer.bos_id
    return (*beginning(tokenizer), tokenizer.eot_id)[0]


def encode(tokenizer: Tokenizer, question: Question, continuation: str) -> tuple[list[int], list[int]]:
    """(ids of the context, ids of the continuation) as `Joining` has it. Something stands before every continuation:
    what the tokenizer begins a text with, and where that is nothing, before an empty context, `before_text`."""
    head, tail = split(question)
    before = tokenizer.encode(head).tolist()
    if question.joining == "apart":
        after = tokenizer.encode(continuation).tolist()
    else:
        after = tokenizer.encode(head + tail + continuation).tolist()[len(before) :]
    return [*beginning(tokenizer), *before] or [before_text(tokenizer)], after
