"""The two models of a comparison, and what follows from them: the text they are compared on, where the page goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from raygpt import storage
from raygpt.data.sources import is_path, shard_folders
from raygpt.errors import UserError
from raygpt.evaluate.subject import Subject, open_subject
from raygpt.parallel import checkpoint
from raygpt.storage import Location

# Names that Hugging Face still takes for these models; their tokenizers are found under the full ones only.
HUB_NAMES = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}


def open_both(base: str, tuned: str, runs: str, **options: Any) -> tuple[Subject, Subject]:
    """(base, tuned), each on the CPU until it is its turn: two of XL do not fit a 16 GB GPU beside each other.

    `base` and `tuned` are paths, URIs, Hugging Face ids or names of runs in the folder `runs`; options as of
    `open_subject`.
    """
    return _open("base", base, runs, options), _open("tuned", tuned, runs, options)


def output_folder(output: str | None, tuned: Subject) -> Location:
    """compare.output, or comparison/ in the tuned run's folder."""
    if output is not None:
        return storage.locate(output)
    if tuned.run is None:
        raise UserError("compare.output is not set, and compare.tuned lies in no run: name the folder of the page.")
    return tuned.run / "comparison"


def domain_uri(named: str | None, tuned: Subject) -> str:
    """`named`, or what the tuned run was validated on."""
    if named is not None:
        return named
    if tuned.trained is None or tuned.trained.train is None:
        raise UserError(
            "compare.domain is not set and compare.tuned has no validation data of its own: name held-out text of the "
            "domain."
        )
    try:
        return shard_folders(tuned.trained.train, tuned.trained.val)[1]
    except UserError as error:
        raise UserError(
            "compare.domain is not set and the tuned run's own validation data is gone: name held-out "
            "text of the domain."
        ) from error


def context(wanted: int | None, base: Subject, tuned: Subject) -> int:
    """Tokens that both models can look at: data.seq_len, what the tuned one was trained on, or the shorter context."""
    longest = min(base.model.config.seq_len, tuned.model.config.seq_len)
    if wanted is not None and wanted > longest:
        raise UserError(
            f"data.seq_len={wanted} exceeds the models' common context of {longest}: lower it or leave it out."
        )
    trained = tuned.trained.seq_len if tuned.trained is not None else None
    return min(longest, wanted or trained or longest)


@contextmanager
def in_place(subject: Subject) -> Iterator[None]:
    """The model is on its device meanwhile, and back in host memory afterwards."""
    subject.model.to(subject.device)
    try:
        yield
    finally:
        if subject.device.type != "cpu":
            subject.model.to("cpu")
            torch.cuda.empty_cache()


def _open(which: str, name: str, runs: str, options: dict[str, Any]) -> Subject:
    uri = model_uri(which, name, runs)
    check_run(uri, which)
    try:
        subject = open_subject(uri, **options)
    except UserError as error:
        raise UserError(f"compare.{which}: {error}") from error
    if subject.device.type != "cpu":
        subject.model.to("cpu")
    return subject


def check_run(uri: str, which: str) -> None:
    """A run that never saved is not taken for a broken Hugging Face folder."""
    if not is_path(uri):
        return
    where = storage.locate(uri)
    if storage.exists(where / checkpoint.FOLDER) and not checkpoint.complete_checkpoints(where):
        raise UserError(
            f"compare.{which}: {where.uri} is a run without a usable checkpoint: train it further, or name another."
        )


def model_uri(which: str, name: str, runs: str) -> str:
    """What the setting means: a path or URI as it stands, a run's name in `runs`, a Hugging Face id."""
    if "/" in name or storage.exists(storage.locate(name)):
        return name
    run = storage.locate(runs) / name
    # a run is called gpt2 unless it is named: as a base that is the model, as a tuned one the run
    if (which == "tuned" or name not in HUB_NAMES) and storage.exists(run / checkpoint.FOLDER):
        return run.uri
    return HUB_NAMES.get(name, name)
