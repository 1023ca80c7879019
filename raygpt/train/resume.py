"""Whether a language model's training may be resumed with these settings, these data and this model."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from raygpt.config.fixed import changed_fixed
from raygpt.data.order import ORDER_VERSION
from raygpt.errors import UserError
from raygpt.storage import Location


def check_resume(
    run: Location, saved: dict[str, Any], config: dict[str, Any], facts: dict[str, Any], *, ignore_fingerprint: bool
) -> None:
    """Refuse to go on with settings that would break the run's own order or weights.

    `saved` is a checkpoint's state.json plus its config under "config"; `facts` holds this start's fingerprint,
    tokenizer_sha256 and model. Raises UserError listing every difference.
    """
    wrong = []
    advice = "set it back, or give the new settings a run.name of their own"
    for key, before, now, why in changed_fixed(saved["config"], config, "train"):
        wrong.append(f"{key} is {now} but run {run.uri} was started with {before} ({why}): {advice}.")
    for key in sorted(set(saved["model"]) | set(facts["model"])):
        before, now = saved["model"].get(key), facts["model"].get(key)
        if key != "dropout" and before != now:
            wrong.append(f"model.{key} is {now} but run {run.uri} was started with {before}: {advice}.")
    if saved["order_version"] != ORDER_VERSION and not ignore_fingerprint:
        wrong.append(
            f"run {run.uri} was begun with version {saved['order_version']} of the data order and this raygpt has "
            f"version {ORDER_VERSION}: train on from its weights under another run.name with "
            f"model.init_from={run.uri}, or set data.ignore_fingerprint=true, after which some tokens will be seen "
            "twice or never."
        )
    if saved["tokenizer_sha256"] != facts["tokenizer_sha256"]:
        wrong.append(
            f"data.train was made with another tokenizer than run {run.uri} began with, so its token ids mean other "
            "text: use the first shards, or another run.name."
        )
    elif saved["fingerprint"] != facts["fingerprint"] and not ignore_fingerprint:
        wrong.append(_other_data(run, saved["fingerprint"], facts["fingerprint"]))
    if wrong:
        raise UserError("\n".join(wrong))


def _other_data(run: Location, before: str, now: str) -> str:
    consequence = "or set data.ignore_fingerprint=true, after which some tokens will be seen twice or never."
    if ";" not in before + now:  # of one corpus
        return (
            f"data.train holds other tokens than run {run.uri} began with (fingerprint {now[:12]} instead of "
            f"{before[:12]}): use the first shards, {consequence}"
        )
    changes = [
        f"{_short(new)} instead of {_short(old)}"
        for old, new in zip_longest(_parts(before), _parts(now), fillvalue="nothing")
        if old != new
    ]
    return (
        f"the mixture of run {run.uri} is another one than it began with ({'; '.join(changes)}): set it back (a share "
        f"that moves does so over the run's whole length), {consequence}"
    )


def _parts(fingerprint: str) -> list[str]:
    # raygpt.data.mixture writes several parts, an order of one corpus its hash alone
    return fingerprint.split("; ") if ";" in fingerprint else [f"data.train {fingerprint}"]


def _short(part: str) -> str:
    *words, last = part.split(" ")
    return " ".join([*words, last[:12] if len(last) == 64 else last])
