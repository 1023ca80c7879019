"""`raygpt sample`: texts a model writes after a prompt, shown as they come."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from raygpt.config import Config
from raygpt.config.checks import base_tokenizer
from raygpt.config.job import Call, Job

if TYPE_CHECKING:
    from raygpt.evaluate.subject import Subject


DECLARATION = Job(
    "sample",
    "write text with a model",
    ("run", "model", "data", "sample"),
    reads=("scale", "train"),
    checks=(base_tokenizer,),
    place=80,
)


# Control characters but tab and line feed: on a terminal they would move the cursor or worse.
_CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "�")


def run(config: Config, call: Call) -> int:
    from raygpt.jobs.evaluate import chosen_subject

    subject = chosen_subject(config)
    print(subject.describe(), flush=True)
    write_samples(config, subject, sys.stdout)
    return 0


def write_samples(config: Config, subject: Subject, stream: TextIO) -> list[str]:
    """Print the texts the section `sample` asks for, and return them; run.seed decides what is drawn."""
    import torch

    from raygpt.model.text import continue_text

    wanted = config.sample
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")  # a terminal that cannot show a character must not end the job
    generator = torch.Generator(subject.device).manual_seed(config.run.seed)
    texts = []
    for number in range(1, wanted.num_samples + 1):
        print(f"--- {number} of {wanted.num_samples}", file=stream, flush=True)
        text = wanted.prompt
        _show(wanted.prompt, stream)
        for piece in continue_text(
            subject.model,
            subject.tokenizer,
            wanted.prompt,
            wanted.max_new_tokens,
            temperature=wanted.temperature,
            top_k=wanted.top_k,
            top_p=wanted.top_p,
            generator=generator,
        ):
            _show(piece, stream)
            text += piece
        print(file=stream, flush=True)
        texts.append(text)
    return texts


def _show(text: str, stream: TextIO) -> None:
    stream.write(text.translate(_CONTROL) if stream.isatty() else text)
    stream.flush()
