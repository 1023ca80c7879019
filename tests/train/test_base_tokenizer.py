"""The base model's tokenizer: where it is found, and data made with another one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from raygpt.config.settings import config_from_dict
from raygpt.data import tokenizer as tokenizer_module
from raygpt.data.shards import load_manifest
from raygpt.data.tokenizer import Tokenizer, load_tokenizer
from raygpt.errors import UserError
from raygpt.parallel import checkpoint, saving
from raygpt.parallel.checkpoint import RunState
from raygpt.storage import locate
from raygpt.train.base_tokenizer import base_tokenizer, check_tokenizer, chosen_tokenizer


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose checkpoint was trained on bytes."""
    tokenizer = load_tokenizer("bytes")
    state = RunState(step=3, tokenizer_name="bytes", tokenizer_sha256=tokenizer.sha256, eot_id=tokenizer.eot_id)
    files: dict = {"state.json": state.to_json().encode(), "tokenizer.json": tokenizer.to_json()}
    saving.write(locate(tmp_path / "run") / checkpoint.FOLDER / checkpoint.folder_name(3), files)
    return tmp_path / "run"


@pytest.fixture
def huggingface(tmp_path: Path, shared_data: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (folder / "tokenizer.json").write_bytes((shared_data / "gpt2_bpe/tokenizer.json").read_bytes())
    return folder


def chosen(init_from: object, tokenizer: str) -> Tokenizer | str:
    return chosen_tokenizer(
        config_from_dict({"model": {"init_from": str(init_from)}, "data": {"tokenizer": tokenizer}})
    )


def test_a_runs_a_checkpoints_and_a_folders_own_is_found(run: Path, huggingface: Path, shared_data: Path) -> None:
    own = load_tokenizer("bytes").sha256
    assert base_tokenizer(str(run)).sha256 == own
    assert base_tokenizer(str(run / "checkpoints/step_00000003")).sha256 == own
    assert base_tokenizer(str(huggingface)).sha256 == load_tokenizer(str(shared_data / "gpt2_bpe")).sha256
    assert chosen(run, "base").sha256 == own  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["gpt2", "gpt2-xl", "openai-community/gpt2-large", "distilgpt2"])
def test_openais_models_have_gpt2s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(tokenizer_module, "_from_hub", lambda *arguments: asked.append(arguments))
    base_tokenizer(name)
    assert asked == [("openai-community/gpt2", "gpt2", None)]


def test_a_folder_without_a_tokenizer_needs_data_tokenizer(huggingface: Path) -> None:
    (huggingface / "tokenizer.json").unlink()
    with pytest.raises(
        UserError, match=f"^model.init_from={huggingface} comes without a tokenizer .*data.tokenizer"
    ) as r:
        base_tokenizer(str(huggingface))
    assert "\n" not in str(r.value)
    assert chosen(huggingface, "bytes") == "bytes"


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^model.init_from=/no/such/model does not exist"):
        base_tokenizer("/no/such/model")
    with pytest.raises(UserError, match="data.tokenizer=base is that of model.init_from, which names no model"):
        chosen("random", "base")
    assert chosen("random", "train:300") == "train:300"


def test_another_tokenizer_than_the_models_is_refused_before_text_is_prepared(run: Path, shared_data: Path) -> None:
    for other in (str(shared_data / "gpt2_bpe"), "train:300"):
        with pytest.raises(
            UserError, match=f"data.tokenizer={other} but model.init_from={run} reads bytes of 257: set"
        ):
            chosen(run, other)
    assert chosen(run, "bytes").sha256 == load_tokenizer("bytes").sha256  # type: ignore[union-attr]


def test_shards_of_another_tokenizer_are_refused(run: Path, make_shards: Callable[..., str], shared_data: Path) -> None:
    shards = make_shards(500)
    check_tokenizer(base_tokenizer(str(run)), load_manifest(shards), str(run), shards)
    gpt2 = load_tokenizer(str(shared_data / "gpt2_bpe"))
    says = (
        f"data.train={shards} was made with tokenizer bytes of 257 but model.init_from=x reads gpt2 of 50,257: name the"
    )
    with pytest.raises(UserError, match=says):
        check_tokenizer(gpt2, load_manifest(shards), "x", shards)
