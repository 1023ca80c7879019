"""Weights from Hugging Face's GPT2LMHeadModel folders, one at a time and without importing transformers.

Theirs and ours differ in three ways only: Conv1D keeps matrices [in, out] where nn.Linear keeps [out, in];
our vocabulary is padded to a multiple of 128 rows; their causal-mask buffers are not weights. Writing: export.py.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pyarrow import fs as pafs
from torch import Tensor

from raygpt.errors import UserError, one_line
from raygpt.model.architecture import shapes_of
from raygpt.model.export import CONV1D, INDEX, VOCABULARY, export_huggingface
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.storage import child, explain, list_folder, locate

__all__ = ["export_huggingface", "open_folder", "read_config", "read_weights"]

MASKS = (".attn.bias", ".attn.masked_bias")
# single file, index of several files; safetensors first: mapped, and data rather than code
WEIGHT_FILES = (
    ("model.safetensors", INDEX),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


@contextmanager
def open_folder(folder_or_hub_id: str | os.PathLike[str], *, weights: bool = True) -> Iterator[Path]:
    """A local folder with the files of a local one, an s3:// one (copied, for as long as this is open) or a Hub id.

    Without `weights` only config.json is fetched. Raises UserError where there is no such folder or id.
    """
    spec = os.fspath(folder_or_hub_id)
    if "://" not in spec:
        yield _local_folder(spec, weights)
        return
    where = locate(spec)
    with tempfile.TemporaryDirectory() as scratch:
        for entry in list_folder(where):
            name = entry.base_name
            if entry.is_file and (name == "config.json" or (weights and _is_weights(name))):
                source, target = child(where, entry).path, str(Path(scratch) / name)
                try:
                    pafs.copy_files(source, target, where.fs, pafs.LocalFileSystem())
                except OSError as error:
                    raise explain(error, where / name) from error
        yield Path(scratch)


def read_weights(folder: Path, config: GPTConfig, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """(name, value) of every parameter of GPT(config), one at a time: our names and layout, padding rows zero.

    Values are views of the mapped files where they can be, in the file's type or in `dtype`: the memory they take is
    that of one of them, or none. All names and shapes are checked before the first one comes: raises UserError for a
    missing or truncated file and for weights that do not fit config.json. (`config` is `read_config`'s.)
    """
    _check(folder, config)
    for path in _weight_files(folder):
        for theirs, found in _read_tensors(path):
            if (name := _our_name(theirs, config)) is None:
                continue
            value = _cut(name, found, config)
            value = value if dtype is None else value.to(dtype)
            yield name, _padded(value, config.padded_vocab_size) if name in VOCABULARY else value


def read_config(folder: Path, *, dropout: float = 0.0, seq_len: int | None = None) -> GPTConfig:
    """Our config of a folder's config.json. Raises UserError where the model is not one we compute exactly."""
    path = folder / "config.json"
    values = read_json(path)
    if values.get("model_type") != "gpt2":
        raise UserError(f"{path} says model_type {values.get('model_type')!r}: choose a GPT-2 model ('gpt2').")
    wanted = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "n_inner": (None, 4 * int(values.get("n_embd", 768))),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "layer_norm_epsilon": (1e-5,),
    }
    odd = [f"{key}={values[key]!r}" for key, allowed in wanted.items() if values.get(key, allowed[0]) not in allowed]
    if odd:
        raise UserError(f"{path} asks for {', '.join(odd)}, which this GPT-2 does not have: choose a plain GPT-2.")
    positions = int(values.get("n_positions", 1024))
    if seq_len is not None and seq_len > positions:
        raise UserError(
            f"model.seq_len is {seq_len} but {path} has only {positions} positions: set it to {positions} or less."
        )
    return GPTConfig(
        vocab_size=int(values.get("vocab_size", 50257)),
        seq_len=positions if seq_len is None else seq_len,
        n_layer=int(values.get("n_layer", 12)),
        n_head=int(values.get("n_head", 12)),
        n_embd=int(values.get("n_embd", 768)),
        dropout=dropout,
        tie_weights=bool(values.get("tie_word_embeddings", True)),
    )


# --- reading -----------------------------------------------------------------------------------------------


def _local_folder(spec: str, weights: bool) -> Path:
    folder = Path(spec).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", spec) or spec.startswith("."):
        raise UserError(
            f"{spec} is not a folder: name one with config.json and model.safetensors, or a Hugging Face id."
        )
    try:
        return _fetch(spec, weights)
    except Exception as error:
        raise UserError(
            f"{spec} is neither a local folder nor could it be fetched from the Hugging Face Hub "
            f"({type(error).__name__}): check the name and the network, or download it and name the folder."
        ) from error


def _fetch(hub_id: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    def fetch(patterns: list[str]) -> Path:
        try:
            return Path(snapshot_download(hub_id, allow_patterns=patterns))
        except Exception:
            # the network is away, but an earlier run may have left the model in the cache
            return Path(snapshot_download(hub_id, allow_patterns=patterns, local_files_only=True))

    if not weights:
        return fetch(["config.json"])
    folder = fetch(["config.json", "model*.safetensors", INDEX])
    if not any(folder.glob("model*.safetensors")):
        folder = fetch(["config.json", "pytorch_model*.bin", "pytorch_model.bin.index.json"])
    return folder


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".index.json")) or re.fullmatch(r"pytorch_model.*\.bin", name) is not None


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}: it is not a Hugging Face model folder.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): fetch it again.") from error


def _weight_files(folder: Path) -> list[Path]:
    for single, index in WEIGHT_FILES:
        if (folder / single).exists():
            return [folder / single]
        if (folder / index).exists():
            parts = _names_in(folder / index)
            missing = [name for name in parts if not (folder / name).exists()]
            if missing:
                raise UserError(f"{folder} lacks {', '.join(missing)}, which {index} names: fetch the model again.")
            return [folder / name for name in parts]
    raise UserError(f"{folder} has neither model.safetensors nor pytorch_model.bin: no weights to load.")


def _names_in(index: Path) -> list[str]:
    """Weight files that an index names. A path in place of a name could mean any file of the machine: UserError."""
    named = read_json(index).get("weight_map")
    parts = list(named.values()) if isinstance(named, dict) else []
    odd = [part for part in parts if not isinstance(part, str) or not re.fullmatch(r"\w[\w.-]*", part)]
    if odd or not parts:
        what = f"names {odd[0]!r}, which is no file of its folder" if odd else "names no weight files"
        raise UserError(f"{index} {what}: fetch the model from where you trust it.")
    return sorted(set(parts))


def _read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, one after the other, mapped into memory. Raises UserError for a broken file."""
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    yield name, file.get_tensor(name)
        else:
            # weights_only: tensors are read, no pickled code runs; files from before torch 1.6 cannot be mapped
            from zipfile import is_zipfile

            yield from torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path)).items()
    except UserError:
        raise
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise _broken(path, error) from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise _broken(path, error) from error
        raise


def _broken(path: Path, error: Exception) -> UserError:
    reason = one_line(error, 160)
    return UserError(f"{path} is truncated or not a weight file ({reason}): fetch it again.")


def _our_name(theirs: str, config: GPTConfig) -> str | None:
    """Our name of their tensor, None for one that is not needed."""
    name = theirs.removeprefix("transformer.")
    return None if name.endswith(MASKS) or (name == "lm_head.weight" and config.tie_weights) else name


def _check(folder: Path, config: GPTConfig) -> None:
    """UserError unless the folder holds every weight of the model, each in its shape, and no others."""
    with torch.device("meta"):
        shapes = shapes_of(GPT(config, initialise=False))
    missing, unknown, misfits = set(shapes), [], []
    for path in _weight_files(folder):
        for theirs, found in _read_tensors(path):
            name = _our_name(theirs, config)
            if name is None:
                continue
            if name not in shapes:
                unknown.append(theirs)
                continue
            missing.discard(name)
            if tuple(_cut(name, found, config).shape) != _true_shape(name, shapes[name], config):
                misfits.append(f"{theirs} {tuple(found.shape)}")
    problems = [
        f"{label} {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
        for label, names in (
            ("there is no place for", unknown),
            ("config.json does not fit the shape of", misfits),
            ("there are no weights for", sorted(missing)),
        )
        if names
    ]
    if problems:
        raise UserError(f"{folder} cannot be loaded as a plain GPT-2 language model: {'; '.join(problems)}.")


def _cut(name: str, found: Tensor, config: GPTConfig) -> Tensor:
    """Our layout, and no more positions than the model has."""
    value = found.t() if name.endswith(CONV1D) else found
    return value[: config.seq_len] if name == "wpe.weight" else value


def _true_shape(name: str, shape: tuple[int, ...], config: GPTConfig) -> tuple[int, ...]:
    return (config.vocab_size, *shape[1:]) if name in VOCABULARY else shape


def _padded(value: Tensor, rows: int) -> Tensor:
    out = value.new_zeros(rows, *value.shape[1:])
    out[: len(value)] = value
    return out
