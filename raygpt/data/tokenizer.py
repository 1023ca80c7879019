"""Text to token ids and back: one class over the `tokenizers` library for every tokenizer a run may use.

`gpt2` (the hub's), `bytes` (256 bytes and end of text, the byte's value is its id), any saved folder, or
a byte-level BPE trained on the corpus. Text never turns into special tokens: a document that contains
the letters `<|endoftext|>` is encoded as those letters, and only the writer of shards adds the token.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from raygpt import storage
from raygpt.data.shards import TokenizerInfo, token_dtype
from raygpt.data.words import WordEncoder
from raygpt.errors import UserError, one_line
from raygpt.storage import Location

END_OF_TEXT = "<|endoftext|>"
# Where a tokenizer does not say which of its tokens ends a text, the first of these it has.
END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "<|im_end|>", "</s>", "<eos>", "<|eot_id|>", "[SEP]")
GPT2_HUB_ID = "openai-community/gpt2"
# OpenAI's models and their distillation share one tokenizer; the bare names are ids of the hub too.
_SIZES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
GPT2_IDS = {*_SIZES, "distilgpt2", *(f"openai-community/{size}" for size in _SIZES), "distilbert/distilgpt2"}
# GPT-2's pre-tokenizer never joins a character with a single space or newline after it, nor looks back across that
# boundary, so text cut there encodes to the same ids as a whole; nor does it join the punctuation of scripts that are
# written without spaces with the letter or digit behind it.
_CUT = re.compile(r"(?<=\S)[ \n](?=\S)|(?<=[。！？，、；：…」』）》])(?=[^\W_])")


class Tokenizer:
    """A `tokenizers.Tokenizer` with its end-of-text id and a hash that identifies what it does.

    Encoding never adds end of text nor any other special token. Instances pickle (Ray tasks keep one per
    process) and are safe to share between threads. `bos_id` is the beginning-of-text token that a model's own files
    name, None where they name none or are not known.
    """

    bos_id: int | None = None

    def __init__(self, backend: tokenizers.Tokenizer, name: str, eot_id: int) -> None:
        # encode_special_tokens: special-token text inside a document is ordinary text
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self.backend = backend
        self.name = name
        self.eot_id = eot_id
        self._definition = json.loads(backend.to_str())
        vocab = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values()) + 1
        self.dtype = token_dtype(self.vocab_size)
        model = self._definition["model"]
        self.is_bytes = model["type"] == "BPE" and not model["merges"] and model["vocab"] == _byte_vocab()
        self.splits_exactly = self.is_bytes or self._is_gpt2_split()
        self._words = WordEncoder(self._library_ids) if self.splits_exactly else None

    def __reduce__(self) -> tuple:
        return Tokenizer.from_json, (self.to_json(), self.name, self.eot_id), {"bos_id": self.bos_id}

    @classmethod
    def from_json(cls, data: bytes, name: str, eot_id: int | None = None) -> Tokenizer:
        """From the contents of a tokenizer.json. UserError when it is damaged or has no end-of-text token."""
        try:
            backend = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        except Exception as error:  # the library raises a bare Exception
            raise UserError(
                f"{name} is not a tokenizer this raygpt can read ({one_line(error)}): save it again."
            ) from error
        return cls(backend, name, _find_end(backend, name) if eot_id is None else eot_id)

    @property
    def info(self) -> TokenizerInfo:
        """What a shard manifest records."""
        return TokenizerInfo(self.name, self.vocab_size, self.eot_id, self.sha256)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of what decides the ids of a text: equal for tokenizers that encode alike.

        Formatting, decoding, truncation, padding and templates are left out, so the same vocabulary saved
        as tokenizer.json or as vocab.json with merges.txt has one hash.
        """
        kept = {key: self._definition[key] for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
        kept["added_tokens"] = [[token["id"], token["content"]] for token in kept["added_tokens"]]
        kept["eot_id"] = self.eot_id
        text = json.dumps(_meaningful(kept), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> bytes:
        """Contents of tokenizer.json, as Hugging Face reads it."""
        return self.backend.to_str(pretty=True).encode("utf-8")

    def encode(self, text: str) -> np.ndarray:
        """(n,) ids of one text, uint16 or uint32."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One (n,) array of ids per text, uint16 or uint32 as `dtype` says."""
        flat, lengths = self.encode_flat(texts)
        return np.split(flat, np.cumsum(lengths)[:-1]) if len(texts) else []

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts end to end as one (total,) array, and their (len(texts),) int64 lengths."""
        if self.is_bytes:
            encoded = [text.encode("utf-8") for text in texts]
            flat = np.frombuffer(b"".join(encoded), dtype=np.uint8).astype(self.dtype)
            return flat, np.array([len(data) for data in encoded], dtype=np.int64)
        if self._words is not None:
            return self._words.encode_flat(texts, self.dtype)
        ids = self._library_ids(texts)
        lengths = np.array([len(part) for part in ids], dtype=np.int64)
        return np.concatenate([np.array(part, self.dtype) for part in ids] or [np.empty(0, self.dtype)]), lengths

    def _library_ids(self, texts: Sequence[str]) -> list[Sequence[int]]:
        # array: four times as fast from a list as numpy, and a quarter of its memory
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [array("I", encoding.ids) for encoding in encodings]

    def pieces(self, text: str, characters: int) -> list[str]:
        """The text cut into parts of about `characters` whose ids, joined, are the ids of the whole.

        A tokenizer for which no cut is known to be exact, and text without a word boundary, stay whole.
        """
        if len(text) <= characters or not self.splits_exactly:
            return [text]
        parts, start = [], 0
        while len(text) - start > characters:
            cut = start + characters
            if not self.is_bytes:
                match = _CUT.search(text, cut)
                if match is None:
                    break
                cut = match.start()
            parts.append(text[start:cut])
            start = cut
        parts.append(text[start:])
        return parts

    def decode(self, ids: Iterable[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD. End of text is dropped unless asked for."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def _is_gpt2_split(self) -> bool:
        pre = self._definition["pre_tokenizer"] or {}
        return (
            pre.get("type") == "ByteLevel"
            and pre.get("use_regex", True)
            and not pre.get("add_prefix_space")
            and self._definition["normalizer"] is None
            and all(token["special"] for token in self._definition["added_tokens"])
        )


def load_tokenizer(spec: str, eot_id: int | None = None) -> Tokenizer:
    """`gpt2`, `bytes`, a folder (local or s3://) or file with a tokenizer, or a Hugging Face id `org/name`.

    A folder holds tokenizer.json, or GPT-2's pair vocab.json (encoder.json) and merges.txt (vocab.bpe). The ids of all
    of OpenAI's GPT-2 models mean `gpt2`.
    UserError when there is none, it is damaged, or the hub cannot be reached.
    """
    if spec == "bytes":
        return byte_tokenizer()
    if spec.startswith("train:"):
        raise UserError(
            f"{spec} trains a tokenizer on a corpus, which only `raygpt prepare` can do: name a saved one here."
        )
    if spec == "base":
        raise UserError("data.tokenizer=base is that of model.init_from, which names no model: name a tokenizer.")
    if spec in GPT2_IDS and not storage.exists(storage.locate(spec)):
        return _from_hub(GPT2_HUB_ID, "gpt2", eot_id)
    where = storage.locate(spec)
    if storage.is_file(where):
        return Tokenizer.from_json(storage.read_bytes(where), _stem(where), eot_id)
    if storage.exists(where):
        return _from_folder(where, eot_id)
    if where.is_local and re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
        return _from_hub(spec, spec, eot_id)
    raise UserError(
        f"data.tokenizer={spec}: no such folder or file; choose gpt2, bytes, train:<vocab_size> or a folder."
    )


def byte_tokenizer() -> Tokenizer:
    """257 ids: id b is the byte b, 256 is end of text. A byte-level BPE without merges, so Hugging Face loads it."""
    backend = _byte_level(models.BPE(vocab=_byte_vocab(), merges=[]))
    backend.add_special_tokens([END_OF_TEXT])
    return Tokenizer(backend, "bytes", 256)


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE over `texts`, end of text as the last id. The same texts give the same tokenizer.

    A small corpus may run out of pairs to merge and end below `vocab_size`. UserError below 257.
    """
    if vocab_size < 257:
        raise UserError(f"data.tokenizer=train:{vocab_size}: a byte-level vocabulary needs at least 257 entries.")
    backend = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=[],
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([END_OF_TEXT])
    return Tokenizer(backend, f"bpe-{vocab_size}", backend.get_vocab_size() - 1)


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_vocab() -> dict[str, int]:
    """Character that stands for each byte in GPT-2's byte-level alphabet -> the byte (Radford et al. 2019, encoder.py).

    Printable Latin-1 characters stand for themselves, the other bytes for U+0100 onwards in order.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    vocab = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return vocab | {chr(256 + n): byte for n, byte in enumerate(others)}


def _from_folder(folder: Location, eot_id: int | None) -> Tokenizer:
    def read(*names: str) -> bytes | None:
        for name in names:
            if storage.is_file(folder / name):
                return storage.read_bytes(folder / name)
        return None

    if eot_id is None:
        eot_id = _configured_end(read("tokenizer_config.json"), folder)
    if definition := read("tokenizer.json"):
        return _named(Tokenizer.from_json(definition, folder.name, eot_id))
    vocab, merges = read("vocab.json", "encoder.json"), read("merges.txt", "vocab.bpe")
    if vocab is None or merges is None:
        raise UserError(
            f"{folder.uri} holds no tokenizer: it needs tokenizer.json, or vocab.json (encoder.json) with merges.txt "
            "(vocab.bpe)."
        )
    try:
        lines = merges.decode("utf-8").split("\n")
        pairs = [(line.split(" ")[0], line.split(" ")[1]) for line in lines if line and not line.startswith("#version")]
        backend = _byte_level(models.BPE(vocab=json.loads(vocab), merges=pairs))
    except Exception as error:  # the library raises a bare Exception
        raise UserError(
            f"{folder.uri}: its vocabulary or merges are damaged ({one_line(error)}): copy them again."
        ) from error
    end = _find_end(backend, folder.uri) if eot_id is None else eot_id
    backend.add_special_tokens([backend.id_to_token(end)])
    return _named(Tokenizer(backend, folder.name, end))


def _named(tokenizer: Tokenizer) -> Tokenizer:
    # a folder called train/ says nothing: known vocabularies keep their own name
    if tokenizer.is_bytes:
        tokenizer.name = "bytes"
    elif tokenizer.vocab_size == 50257 and tokenizer.eot_id == 50256:
        tokenizer.name = "gpt2"
    return tokenizer


def _from_hub(hub_id: str, name: str, eot_id: int | None) -> Tokenizer:
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(hub_id, "tokenizer.json")
    except Exception as error:  # a dozen classes: offline mode, connection, missing repository, gated
        raise UserError(
            f"data.tokenizer={name}: tokenizer.json of {hub_id} is neither in the Hugging Face cache nor to be had "
            f"from the hub ({type(error).__name__}): give a local folder that holds tokenizer.json, or vocab.json and "
            "merges.txt."
        ) from error
    return Tokenizer.from_json(storage.read_bytes(storage.locate(path)), name, eot_id)


def _configured_end(config: bytes | None, folder: Location) -> int | None:
    """End-of-text id that tokenizer_config.json names, when tokenizer.json has that token."""
    if config is None or not storage.is_file(folder / "tokenizer.json"):
        return None
    try:
        end = json.loads(config).get("eos_token")
        end = end.get("content") if isinstance(end, dict) else end
        return (
            tokenizers.Tokenizer.from_str(storage.read_text(folder / "tokenizer.json")).token_to_id(end)
            if end
            else None
        )
    except Exception:  # a damaged side file decides nothing; tokenizer.json itself is checked by its reader
        return None


def _find_end(backend: tokenizers.Tokenizer, name: str) -> int:
    for token in END_NAMES:
        if (found := backend.token_to_id(token)) is not None:
            return found
    raise UserError(
        f"{name}: none of its tokens ends a text (looked for {', '.join(END_NAMES)}); add {END_OF_TEXT} to it."
    )


def _meaningful(value: object) -> object:
    """The definition without fields that are off (null, false, empty): library versions differ in writing them."""
    if isinstance(value, dict):
        dropped = ("trim_offsets",)
        return {k: _meaningful(v) for k, v in value.items() if k not in dropped and v not in (None, False, "", [], {})}
    return [_meaningful(item) for item in value] if isinstance(value, list) else value


def _stem(where: Location) -> str:
    return where.parent.name if where.name == "tokenizer.json" else where.name.removesuffix(".json")
