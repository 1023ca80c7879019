"""Writing Hugging Face's GPT2LMHeadModel folders, from weights that come one at a time, on disk or on S3.

Theirs and ours differ in two ways: Conv1D keeps matrices [in, out] where nn.Linear keeps [out, in], and our vocabulary
is padded to a multiple of 128 rows.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pyarrow import fs as pafs
from torch import Tensor

from raygpt import storage
from raygpt.errors import UserError
from raygpt.model.architecture import shapes_of
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.model.tensorfile import Spec, header
from raygpt.storage import Location

CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
VOCABULARY = ("wte.weight", "lm_head.weight")  # matrices with padding rows
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INDEX = "model.safetensors.index.json"


def export_weights(
    config: GPTConfig,
    weights: Iterable[tuple[str, Tensor]],
    folder: Path,
    *,
    tokenizer_json: bytes | None,
    eot_id: int,
    card: str = "",
    dtype: str = "float32",
    shard_bytes: float | None = None,
) -> Path:
    """Writes a folder that transformers' `pipeline("text-generation", model=folder)` loads; returns it.

    `weights` are (name, value) of every parameter as GPT names and shapes it, in any order; a tied output matrix is
    left out. Each goes to its place in the file before the next is asked for, so memory holds about two of them,
    whatever the model's size.

    config.json, generation_config.json, model.safetensors with the vocabulary cut to its true size, the tokenizer, and
    README.md (`card`, or a short one). Weights of more than `shard_bytes` become model-00001-of-0000N.safetensors and
    an index. A model without biases gets biases of zero, which give equal logits. Written beside `folder` and renamed,
    so `folder` is the old export, the new one or absent; anything else that stands there is refused with UserError, as
    are weights that are not this model's.
    """
    if dtype not in DTYPES:
        raise UserError(f"export dtype is {dtype!r}; choose one of {', '.join(DTYPES)}.")
    if not 0 <= eot_id < config.vocab_size:
        raise UserError(f"the end-of-text id {eot_id} is outside the model's vocabulary of {config.vocab_size}.")
    if folder.exists() and not (folder / "config.json").exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an exported model: choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    tag = uuid.uuid4().hex[:8]
    aside, old = (folder.with_name(f".{folder.name}.{kind}-{tag}") for kind in ("new", "old"))
    aside.mkdir()
    try:
        _write_weights(aside, config, weights, DTYPES[dtype], shard_bytes)
        write_json(aside / "config.json", their_config(config, eot_id, dtype))
        write_json(
            aside / "generation_config.json",
            {"bos_token_id": eot_id, "eos_token_id": eot_id, "pad_token_id": eot_id},
        )
        if tokenizer_json is not None:
            (aside / "tokenizer.json").write_bytes(tokenizer_json)
            write_json(aside / "tokenizer_config.json", _tokenizer_config(tokenizer_json, eot_id, config))
        (aside / "README.md").write_text(card or _plain_card(config), encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def export_huggingface(model: GPT, folder: Path, **options: Any) -> Path:
    """`export_weights` of a model on any device, with the same options."""
    return export_weights(model.config, model.named_parameters(), folder, **options)


def export_to(config: GPTConfig, weights: Iterable[tuple[str, Tensor]], target: Location, **options: Any) -> Location:
    """`export_weights` to a local folder or an s3:// one (by way of local disk, config.json last); returns `target`.

    Raises UserError when something else than an exported model stands there, or it cannot be written.
    """
    if target.is_local:
        try:
            export_weights(config, weights, Path(target.path), **options)
        except OSError as error:
            raise storage.explain(error, target) from error
        return target
    last = target / "config.json"
    if storage.list_folder(target) and not storage.exists(last):
        raise UserError(f"export.output={target.uri} holds something that is no exported model: choose another folder.")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = export_weights(config, weights, Path(scratch) / "export", **options)
        except OSError as error:
            raise storage.explain(error, storage.locate(scratch)) from error
        try:
            # until config.json is there again nobody takes the folder for a model
            storage.delete(last)
            for stale in _weight_files(target):
                storage.delete(stale)
            for path in sorted(folder.iterdir(), key=lambda path: path.name == last.name):
                pafs.copy_files(str(path), (target / path.name).path, pafs.LocalFileSystem(), target.fs)
        except OSError as error:
            raise storage.explain(error, target) from error
    return target


def _weight_files(target: Location) -> list[Location]:
    """Of an earlier export: with fewer or more shards than the new one they would be mixed up."""
    entries = storage.list_folder(target)
    return [storage.child(target, entry) for entry in entries if entry.base_name.startswith("model")]


# --- weights -----------------------------------------------------------------------------------------------


@dataclass
class _Shard:
    """One weight file: values are put at their places in any order."""

    name: str
    specs: list[Spec] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.specs)

    def places(self) -> dict[str, int]:
        """First byte of every tensor."""
        place, out = len(header(self.specs, METADATA)), {}
        for spec in self.specs:
            out[spec.name] = place
            place += spec.nbytes
        return out


METADATA = {"format": "pt"}  # transformers refuses a file without it


def _write_weights(
    folder: Path,
    config: GPTConfig,
    weights: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    shard_bytes: float | None,
) -> None:
    with torch.device("meta"):
        ours = shapes_of(GPT(config, initialise=False))
    specs = [Spec(_their_name(name), dtype, _their_shape(name, shape, config)) for name, shape in ours.items()]
    zeros = [] if config.bias else [Spec(name, dtype, (width,)) for name, width in missing_biases(ours)]
    shards = _split([*specs, *zeros], shard_bytes)
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        where: dict[str, tuple[BinaryIO, int]] = {}
        for shard in shards:
            file = files[shard.name] = stack.enter_context(open(folder / shard.name, "wb"))
            file.write(header(shard.specs, METADATA))
            file.truncate(len(header(shard.specs, METADATA)) + shard.nbytes)  # what is not written reads as zeros
            where |= {name: (file, place) for name, place in shard.places().items()}
        missing = dict(ours)
        for name, value in weights:
            if missing.pop(name, None) != tuple(value.shape):
                raise UserError(f"the weights are not those of this model ({name} {tuple(value.shape)}).")
            _put(*where[_their_name(name)], their_value(name, value.detach(), config).to(dtype))
        if missing:
            raise UserError(f"the weights are not those of this model ({', '.join(sorted(missing)[:3])} missing).")
    if len(shards) > 1:
        total = {"total_size": sum(shard.nbytes for shard in shards)}
        names = {spec.name: shard.name for shard in shards for spec in shard.specs}
        write_json(folder / INDEX, {"metadata": total, "weight_map": names})


def _split(specs: list[Spec], shard_bytes: float | None) -> list[_Shard]:
    """Files of at most `shard_bytes`, in order; a tensor larger than that has a file of its own."""
    shards = [_Shard("")]
    for spec in specs:
        if shard_bytes is not None and shards[-1].specs and shards[-1].nbytes + spec.nbytes > shard_bytes:
            shards.append(_Shard(""))
        shards[-1].specs.append(spec)
    count = len(shards)
    for number, shard in enumerate(shards, 1):
        shard.name = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
    return shards


def _put(file: BinaryIO, place: int, value: Tensor) -> None:
    file.seek(place)
    flat = value.cpu().contiguous().reshape(-1)
    file.write(memoryview(flat.view(torch.uint8).numpy()))  # type: ignore[arg-type]


def their_value(name: str, value: Tensor, config: GPTConfig) -> Tensor:
    """A parameter as transformers keeps it: Conv1D matrices turned, the vocabulary without its padding rows."""
    if name in VOCABULARY:
        value = value[: config.vocab_size]
    return value.t() if name.endswith(CONV1D) else value


def _their_name(name: str) -> str:
    return name if name == "lm_head.weight" else f"transformer.{name}"


def _their_shape(name: str, shape: tuple[int, ...], config: GPTConfig) -> tuple[int, ...]:
    if name in VOCABULARY:
        return (config.vocab_size, *shape[1:])
    return shape[::-1] if name.endswith(CONV1D) else shape


def missing_biases(ours: dict[str, tuple[int, ...]]) -> list[tuple[str, int]]:
    """(transformers' name, size) of the biases that a model without any (`ours`: its shapes) has to be given."""
    return [
        (f"transformer.{name.removesuffix('weight')}bias", shape[0])
        for name, shape in ours.items()
        if name not in (*VOCABULARY, "wpe.weight")
    ]


# --- the other files ---------------------------------------------------------------------------------------


def their_config(config: GPTConfig, eot_id: int, dtype: str) -> dict[str, Any]:
    """transformers' config.json of the architecture."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.seq_len,
        "n_ctx": config.seq_len,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        "activation_function": "gelu_new",
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "use_cache": True,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "tie_word_embeddings": config.tie_weights,
        "torch_dtype": dtype,
    }


def _tokenizer_config(tokenizer_json: bytes, eot_id: int, config: GPTConfig) -> dict[str, Any]:
    spec = json.loads(tokenizer_json)
    names = {entry["id"]: entry["content"] for entry in spec.get("added_tokens") or []}
    vocabulary = spec.get("model", {}).get("vocab") or {}
    if eot_id not in names and isinstance(vocabulary, dict):
        names |= {index: token for token, index in vocabulary.items() if index == eot_id}
    special = names.get(eot_id, "<|endoftext|>")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.seq_len,
        "bos_token": special,
        "eos_token": special,
        "unk_token": special,
        "clean_up_tokenization_spaces": False,
    }


def _plain_card(config: GPTConfig) -> str:
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
        f"GPT-2 architecture, {config.num_parameters():,} parameters: {config.n_layer} layers, {config.n_head} heads, "
        f"width {config.n_embd}, context {config.seq_len} tokens, vocabulary {config.vocab_size}.\n"
    )


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
