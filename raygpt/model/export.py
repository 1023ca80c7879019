"""A Hugging Face folder anywhere: local ones are renamed into place, on S3 config.json comes last."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pyarrow import fs as pafs

from raygpt import storage
from raygpt.errors import UserError
from raygpt.model.gpt import GPT
from raygpt.model.huggingface import export_huggingface
from raygpt.storage import Location


def export_model(model: GPT, target: Location, *, tokenizer_json: bytes, eot_id: int, card: str) -> Location:
    """`export_huggingface` to a local folder or an s3:// one; returns `target`.

    Raises UserError when something else than an exported model stands there, or it cannot be written.
    """
    if target.is_local:
        try:
            export_huggingface(model, Path(target.path), tokenizer_json=tokenizer_json, eot_id=eot_id, card=card)
        except OSError as error:
            raise storage.explain(error, target) from error
        return target
    last = target / "config.json"
    if storage.list_folder(target) and not storage.exists(last):
        raise UserError(f"export.output={target.uri} holds something that is no exported model: choose another folder.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = export_huggingface(
            model, Path(scratch) / "export", tokenizer_json=tokenizer_json, eot_id=eot_id, card=card
        )
        # until config.json is there again nobody takes the folder for a model
        storage.delete(last)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == last.name):
            try:
                pafs.copy_files(str(path), (target / path.name).path, pafs.LocalFileSystem(), target.fs)
            except OSError as error:
                raise storage.explain(error, target) from error
    return target
