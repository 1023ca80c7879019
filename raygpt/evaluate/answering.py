"""A model that answers tasks, wherever it is: opened where it computes, by a description that travels to workers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raygpt import storage
from raygpt.classify.folder import EXPORT, is_classifier
from raygpt.data.sources import is_path
from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError
from raygpt.scoring.encoding import before_text
from raygpt.scoring.questions import Scorer
from raygpt.storage import Location

if TYPE_CHECKING:
    from raygpt.evaluate.subject import Subject
    from raygpt.scoring.endpoint import EndpointScorer
    from raygpt.scoring.rolling import RowLosses

# Padded tokens of a pass, unless eval.batch_tokens says otherwise: 16,384 x 50,257 logits are 3.3 GB in fp32.
BATCH_TOKENS = {"cuda": 16_384, "cpu": 4_096}
# What of a Hugging Face folder decides an answer.
_OF_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "encoder.json",
    "merges.txt",
    "vocab.bpe",
    "vocab.txt",
    ".model",  # SentencePiece's
    "added_tokens.json",
    "special_tokens_map.json",
    ".jinja",
    "chat_template.json",
)
_DECIDES = ("config.json", ".safetensors", ".bin", *_OF_TOKENIZER)


@dataclass(frozen=True)
class ServedModel:
    """Somebody's server. `model` None: the only one it serves; `api_key_env` names the variable of the key; `context`
    are the most tokens of a prompt, None: what it says of itself. `known` and `probes` tell which model it is
    (`raygpt.evaluate.served`), None and empty until it was asked."""

    url: str
    model: str | None
    api_key_env: str | None = None
    context: int | None = None
    known: str | None = None
    probes: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelSource:
    """Which model, and how it is opened; picklable. `uri` is empty where `served` is asked; `run` is the run that it
    belongs to, if any."""

    uri: str
    name: str
    run: str | None = None
    tokenizer: str | None = None
    use_gpu: bool | str = "auto"
    precision: str = "auto"
    batch_tokens: int | None = None
    served: ServedModel | None = None
    chat: bool = False  # HellaSwag's contexts through the model's chat template

    @property
    def shown(self) -> str:
        """What tells it from others, for people."""
        if self.served is None:
            return self.uri
        return f"{self.served.model or 'the model'} at {self.served.url}"

    def fingerprint(self) -> str:
        """Hex digest of what decides its answers: weights, tokenizer, chat template, computing precision. Reads every
        byte once. A served model has to be known (`raygpt.evaluate.served.connect`)."""
        if self.served is not None:
            assert self.served.known is not None
            told = json.dumps([self.served.known, self.served.probes])
        else:
            found = [dict(_digests(self.uri)), self.tokenizer, _of_tokenizer(self.tokenizer), self.computes_in()]
            told = json.dumps(found, sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    def computes_in(self) -> str:
        """The precision of its answers; where the GPU is another machine's, that may be what was asked for there."""
        import torch

        from raygpt.evaluate.subject import Trained, background
        from raygpt.hardware import choose_precision

        here = torch.cuda.is_available()
        if not self.use_gpu or (self.use_gpu == "auto" and not here):
            return "fp32"
        wanted = self.precision
        ours = is_path(self.uri) and not self.uri.endswith(".gguf")
        if wanted == "auto" and ours and (saved := background(self.uri)[1]) is not None:
            wanted = Trained.of(saved).precision or wanted
        return choose_precision(wanted, torch.device("cuda"))[0] if here else wanted


class OpenModel:
    """The model of a source, opened when it is first asked for. Tasks take from it what they need."""

    def __init__(self, source: ModelSource) -> None:
        self.source = source

    @cached_property
    def subject(self) -> Subject:
        """The model in this process. Raises UserError for a served one."""
        from raygpt.evaluate.subject import open_subject

        source = self.source
        if source.served is not None:
            raise UserError("eval.endpoint serves no weights: of eval.tasks it answers wikitext, lambada, hellaswag.")
        return open_subject(source.uri, tokenizer=source.tokenizer, use_gpu=source.use_gpu, precision=source.precision)

    @cached_property
    def scorer(self) -> Scorer:
        """Scores continuations."""
        if self.source.served is not None:
            return self.served
        from raygpt.scoring.likelihood import ModelScorer

        subject = self.subject
        return ModelScorer(
            subject.name,
            subject.model,
            subject.tokenizer,
            subject.device,
            subject.precision.autocast,
            batch_tokens=self.source.batch_tokens,
            markup=self.source.chat,
        )

    @cached_property
    def chat(self) -> Callable[[str], str] | None:
        """What the model's chat template makes of a message, up to where the answer begins; None unless that is wished
        for. Raises UserError for a model without one."""
        if not self.source.chat:
            return None
        from raygpt.evaluate.foreign import chat_template

        return chat_template(self.source.uri)

    @cached_property
    def rows(self) -> RowLosses:
        """What rows of tokens cost."""
        if self.source.served is not None:
            return self.served
        from raygpt.scoring.rolling import ModelRows

        subject = self.subject
        tokens = self.source.batch_tokens or BATCH_TOKENS[subject.device.type]
        return ModelRows(subject.model, subject.device, subject.precision.autocast, batch_tokens=tokens)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's. Raises UserError for a served one whose tokenizer is not named."""
        if self.source.served is None:
            return self.subject.tokenizer
        if (found := self.served_tokenizer) is None:
            raise UserError(
                "data.tokenizer is not set, and eval.endpoint is asked for long texts, which are cut by tokens: name "
                "the served model's tokenizer, a folder or an id of Hugging Face."
            )
        return found

    @property
    def context(self) -> int:
        """Most tokens that are looked at when the next one is foretold."""
        if self.source.served is None:
            return int(self.subject.model.config.seq_len)
        return self.scorer.context - 1  # the foretold one is in the prompt

    @property
    def bos_id(self) -> int:
        """What stands before a text whose first token is foretold."""
        return before_text(self.tokenizer)

    def facts(self) -> dict[str, Any]:
        """What an evaluation says of who answered, as far as it is known by now."""
        facts: dict[str, Any] = {"name": self.source.name, "bos": getattr(self.__dict__.get("scorer"), "bos", None)}
        if "rows" in self.__dict__ or (self.source.served is not None and self.served_tokenizer is not None):
            facts |= {"bos_id": self.bos_id, "context": self.context, "tokenizer_sha256": self.tokenizer.sha256}
        if "subject" in self.__dict__:
            subject = self.subject
            facts |= {
                "parameters": subject.model.config.num_parameters(),
                "context": self.context,
                "tokenizer": subject.tokenizer.name,
                "tokenizer_sha256": subject.tokenizer.sha256,
                "vocab_size": subject.tokenizer.vocab_size,
                "step": subject.state.step if subject.state is not None else None,
                "device": _device(subject),
                "precision": subject.precision.name,
            }
        return {name: value for name, value in facts.items() if value is not None}

    @cached_property
    def served_tokenizer(self) -> Tokenizer | None:
        """What a served model's prompts are made tokens by, None where it is asked by text."""
        from raygpt.data.tokenizer import load_tokenizer

        named = self.source.tokenizer
        return None if named is None else load_tokenizer(named)

    @cached_property
    def served(self) -> EndpointScorer:
        """The endpoint, connected. Raises UserError for one that gives no log-probabilities of prompts."""
        from raygpt.scoring.endpoint import EndpointScorer

        served = self.source.served
        assert served is not None
        return EndpointScorer(
            served.url,
            served.model,
            api_key_env=served.api_key_env,
            tokenizer=self.served_tokenizer,
            context=served.context,
        )


def find_source(uri: str, **options: Any) -> ModelSource:
    """The model at `uri`, pinned to the checkpoint that is the newest now. UserError where nothing usable lies."""
    from raygpt.evaluate.foreign import is_foreign
    from raygpt.evaluate.subject import background
    from raygpt.parallel.weights import open_weights

    short = uri.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")
    if _is_classifier(uri):
        return ModelSource(uri, short, uri if storage.exists(storage.locate(uri) / "config.yaml") else None, **options)
    if is_foreign(uri):
        return ModelSource(uri, short, **options)
    found = open_weights(uri)
    run = background(found.origin)[0] if found.state is not None else None
    if run is None:
        return ModelSource(found.origin, short, **options)
    return ModelSource(found.origin, run.name, run.uri, **options)


def _is_classifier(uri: str) -> bool:
    """Whether a run or folder holds a classifier and no language model's checkpoint."""
    path = Path(uri)
    return any((place / "config.json").is_file() and is_classifier(place) for place in (path, path / EXPORT))


def _digests(uri: str) -> Iterator[tuple[str, str]]:
    """(file, sha256) of a model's files: what a checkpoint's index says, else of every byte."""
    from raygpt.model.huggingface import open_folder
    from raygpt.parallel.checkpoint import locate_checkpoint
    from raygpt.parallel.index import read_index

    if uri.endswith(".gguf"):
        yield "gguf", storage.sha256(storage.locate(uri))
        return
    if is_path(uri):
        where = storage.locate(uri)
        if _is_classifier(uri):
            yield from files(where / EXPORT)
        if (saved := locate_checkpoint(uri) if storage.exists(where) else None) is not None:
            for name, facts in read_index(saved).files.items():
                if not name.startswith(("rank-", "optimizer")):
                    yield name, facts["sha256"]
            return
        yield from files(where)
        return
    with open_folder(uri) as folder:  # an id of the hub: its snapshot in the cache
        yield from files(storage.locate(folder))


def _of_tokenizer(named: str | None) -> dict[str, str]:
    """{file: sha256} of a tokenizer that is a file or folder; a name says itself which it is."""
    if named is None or not is_path(named) or not storage.exists(where := storage.locate(named)):
        return {}
    return {"": storage.sha256(where)} if storage.is_file(where) else dict(files(where, _OF_TOKENIZER))


def files(folder: Location, ending: tuple[str, ...] = _DECIDES) -> Iterator[tuple[str, str]]:
    """(name, sha256) of the files in a folder that decide a model's answers."""
    for entry in storage.list_folder(folder):
        if entry.is_file and entry.base_name.endswith(ending):
            yield entry.base_name, storage.sha256(storage.child(folder, entry))


def _device(subject: Subject) -> str:
    import torch

    return torch.cuda.get_device_name(subject.device) if subject.device.type == "cuda" else "CPU"
