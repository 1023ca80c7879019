"""Weights in both directions, against transformers itself, a really trained checkpoint, and every broken folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from raygpt.errors import UserError
from raygpt.model.export import export_huggingface, export_weights
from raygpt.model.generate import generate
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.model.huggingface import read_config, read_weights
from raygpt.model.presets import PRESETS
from tests.model.reference import load_model, transformers_gpt2

TINY: dict[str, Any] = {"vocab_size": 65, "n_positions": 16, "n_layer": 2, "n_head": 2, "n_embd": 32}


def random_model(seed: int = 4, **values: Any) -> GPT:
    """A GPT with no weight at its initial value, so that a forgotten bias shows."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{"vocab_size": 65, "seq_len": 16, "n_layer": 2, "n_head": 2, "n_embd": 32, **values}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            rows = parameter[: model.config.vocab_size] if name in ("wte.weight", "lm_head.weight") else parameter
            rows.add_(torch.randn_like(rows) * 0.05)
    return model.eval()


def transformers_load(folder: Path) -> Any:
    from transformers import GPT2LMHeadModel

    loaded: Any = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


# untied weights once: what they change does not hang on the width
@pytest.mark.parametrize(("preset", "tied"), [*((preset, True) for preset in PRESETS), ("gpt2", False)])
def test_logits_equal_those_of_transformers_for_every_preset_both_ways(preset: str, tied: bool, tmp_path: Path) -> None:
    # the preset's own width and heads; fewer layers, positions and words so that it takes a moment
    shape = PRESETS[preset]
    theirs = transformers_gpt2(
        vocab_size=1000,
        n_positions=64,
        n_layer=2,
        n_head=shape["n_head"],
        n_embd=shape["n_embd"],
        tie_word_embeddings=tied,
    )
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs").eval()
    assert ours.config.tie_weights is tied and (ours.lm_head.weight is ours.wte.weight) is tied
    tokens = torch.randint(0, 1000, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (ours(tokens) - theirs(tokens).logits).abs().max() < 1e-4
        export_huggingface(ours, tmp_path / "ours", tokenizer_json=None, eot_id=0)
        back = transformers_load(tmp_path / "ours")
        assert (ours(tokens) - back(tokens).logits).abs().max() < 1e-4
    for (name, before), after in zip(theirs.named_parameters(), back.parameters(), strict=True):
        assert torch.equal(before, after), name


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tie_weights", [True, False])
def test_an_exported_model_gives_transformers_the_same_logits(bias: bool, tie_weights: bool, tmp_path: Path) -> None:
    model = random_model(bias=bias, tie_weights=tie_weights)
    tokens = torch.randint(0, 65, (3, 16))
    folder = export_huggingface(model, tmp_path / "export", tokenizer_json=None, eot_id=64)
    with torch.no_grad():
        expected = model(tokens)
        assert (transformers_load(folder)(tokens).logits - expected).abs().max() < 1e-4
        assert (load_model(folder).eval()(tokens) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("tie_weights", [True, False])
def test_a_round_trip_keeps_every_bit(tie_weights: bool, tmp_path: Path) -> None:
    model = random_model(tie_weights=tie_weights)
    again = load_model(export_huggingface(model, tmp_path / "x", tokenizer_json=None, eot_id=0))
    assert again.config == model.config
    for (name, before), after in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(before, after), name


def test_the_export_has_the_true_vocabulary_and_the_wanted_dtype(tmp_path: Path) -> None:
    folder = export_huggingface(random_model(tie_weights=False), tmp_path / "x", tokenizer_json=None, eot_id=3)
    weights = load_file(folder / "model.safetensors")
    assert weights["transformer.wte.weight"].shape == weights["lm_head.weight"].shape == (65, 32)
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == 65 and config["eos_token_id"] == 3
    export_huggingface(random_model(), folder, tokenizer_json=None, eot_id=3, dtype="bfloat16", card="# A card\n")
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16} and "lm_head.weight" not in weights
    assert (folder / "README.md").read_text() == "# A card\n"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]  # nothing left beside it


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_large_model_becomes_several_files_that_transformers_loads(dtype: str, tmp_path: Path) -> None:
    model = random_model(tie_weights=False)
    whole = export_huggingface(model, tmp_path / "whole", tokenizer_json=None, eot_id=0, dtype=dtype)
    folder = export_huggingface(model, tmp_path / "x", tokenizer_json=None, eot_id=0, dtype=dtype, shard_bytes=20_000)
    files = sorted(path.name for path in folder.glob("model*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert not (folder / "model.safetensors").exists()
    for path in folder.glob("model*.safetensors"):
        tensors = load_file(path)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 20_000
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    expected = load_file(whole / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(folder / file)[name], expected[name]), name
    assert index["weight_map"].keys() == expected.keys()
    tokens = torch.randint(0, 65, (2, 16))
    with torch.no_grad():
        difference = transformers_load(folder).float()(tokens).logits - model(tokens)
        assert difference.abs().max() < (1e-4 if dtype == "float32" else 0.1)
        assert torch.equal(load_model(folder)(tokens), load_model(whole)(tokens))


def test_weights_may_come_in_any_order_but_must_be_the_models(tmp_path: Path) -> None:
    model = random_model(bias=False)
    backwards = list(model.named_parameters())[::-1]
    for name, weights in (("x", backwards), ("y", model.named_parameters())):
        export_weights(model.config, weights, tmp_path / name, tokenizer_json=None, eot_id=0, shard_bytes=30_000)
    for path in (tmp_path / "x").iterdir():
        assert path.read_bytes() == (tmp_path / "y" / path.name).read_bytes()
    for wrong in (backwards[1:], [*backwards, backwards[0]], [("h.9.ln_1.weight", torch.ones(32))]):
        with pytest.raises(UserError, match="not those of this model"):
            export_weights(model.config, wrong, tmp_path / "z", tokenizer_json=None, eot_id=0)
    assert not (tmp_path / "z").exists()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_are_read_one_at_a_time_in_the_files_type_or_the_wanted_one(dtype: str, tmp_path: Path) -> None:
    model = random_model(tie_weights=False)
    folder = export_huggingface(model, tmp_path / "x", tokenizer_json=None, eot_id=0, dtype=dtype, shard_bytes=30_000)
    config = read_config(folder)
    parameters = dict(model.named_parameters())
    half = getattr(torch, dtype)
    for wanted in (None, torch.float32):
        found = dict(read_weights(folder, config, wanted))
        assert found.keys() == parameters.keys()
        for name, value in found.items():
            assert value.dtype == (wanted or half)
            assert torch.equal(value.float(), parameters[name].to(half).float()), name


def test_nothing_is_read_before_every_shape_is_known_to_fit(folder: Path) -> None:
    change_config(folder, n_layer=3)
    with pytest.raises(UserError, match="there are no weights for"):
        next(read_weights(folder, read_config(folder)))


def test_reading_and_exporting_take_the_memory_of_single_tensors(tmp_path: Path) -> None:
    # 20 million parameters, the largest tensor 1 MB of them; anonymous memory: mapped files are the page cache's
    code = f"""
import threading, torch
from pathlib import Path
from raygpt.model.export import export_weights
from raygpt.model.gpt import GPTConfig, initial_weights
from raygpt.model.huggingface import read_config, read_weights

def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])

config = GPTConfig(1000, 64, 25, 4, 256)
folder, again = Path({str(tmp_path / "a")!r}), Path({str(tmp_path / "b")!r})
options = dict(tokenizer_json=None, eot_id=0, shard_bytes=3e7)
export_weights(GPTConfig(1000, 64, 1, 4, 256), initial_weights(GPTConfig(1000, 64, 1, 4, 256)), again, **options)
before = peak = anonymous()

def watched(weights):
    global peak
    for pair in weights:
        peak = max(peak, anonymous())
        yield pair

export_weights(config, watched(initial_weights(config)), folder, **options)
export_weights(config, watched(read_weights(folder, read_config(folder))), again, dtype="bfloat16", **options)
print(config.num_parameters() * 4 // 1024, peak - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    whole, grown = map(int, done.stdout.split())
    assert whole > 75_000 and grown < 16_000  # KiB


def test_an_interrupted_export_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export_huggingface(random_model(1), tmp_path / "x", tokenizer_json=None, eot_id=0)
    before = (folder / "model.safetensors").read_bytes()

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("raygpt.model.export.write_json", full_disk)
    with pytest.raises(OSError, match="No space"):
        export_huggingface(random_model(2), folder, tokenizer_json=None, eot_id=0)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_export_does_not_replace_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not an exported model"):
        export_huggingface(random_model(), tmp_path, tokenizer_json=None, eot_id=0)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match="end-of-text id 65 is outside"):
        export_huggingface(random_model(), tmp_path / "x", tokenizer_json=None, eot_id=65)
    with pytest.raises(UserError, match="export dtype is 'fp8'"):
        export_huggingface(random_model(), tmp_path / "x", tokenizer_json=None, eot_id=0, dtype="fp8")


def test_a_trained_adder_still_adds_all_ten_thousand_pairs(shared_data: Path) -> None:
    # trained in minGPT by somebody else; the answer's three digits come out in reverse
    model = load_model(shared_data / "tiny_gpt2_adder" / "hf")
    assert not model.config.tie_weights and model.config.padded_vocab_size == 128
    a, b = torch.arange(100).repeat_interleave(100), torch.arange(100).repeat(100)
    digits = torch.stack((a // 10, a % 10, b // 10, b % 10), dim=1)
    out = generate(model, digits, 3, temperature=0)
    assert torch.equal(out[:, 4] + 10 * out[:, 5] + 100 * out[:, 6], a + b)
    logits = model.eval()(torch.tensor([[8, 5, 5, 0]]))[0, -1]
    published = [3.1923, -1.3719, -6.8311, -3.3251, 7.8880, 13.8552, 7.3423, -4.2436, -8.6275, -2.0702]
    assert torch.allclose(logits, torch.tensor(published), atol=1e-3)


def test_the_pipeline_of_transformers_continues_a_text_as_we_do(shared_data: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import pipeline

    tokenizer_json = (shared_data / "gpt2_bpe" / "tokenizer.json").read_bytes()
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    model = random_model(vocab_size=50257, seq_len=64)
    folder = export_huggingface(model, tmp_path / "x", tokenizer_json=tokenizer_json, eot_id=50256)
    prompt = "Hello, I'm a language model,"
    ids = tokenizer.encode(prompt).ids
    assert ids == [15496, 11, 314, 1101, 257, 3303, 2746, 11]
    ours = generate(model, torch.tensor([ids]), 20, temperature=0, eot_id=50256)[0].tolist()
    writer: Any = pipeline("text-generation", model=str(folder))
    theirs = writer(prompt, do_sample=False, max_new_tokens=20, return_full_text=True)[0]["generated_text"]
    assert theirs == tokenizer.decode(ours)
    assert writer.tokenizer.eos_token_id == 50256 and writer.tokenizer(prompt)["input_ids"] == ids


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return export_huggingface(random_model(), tmp_path / "model", tokenizer_json=None, eot_id=0)


def test_older_layouts_load_the_same(folder: Path) -> None:
    expected = load_model(folder).state_dict()
    weights = load_file(folder / "model.safetensors")
    mask = torch.ones(1, 1, 16, 16).tril()
    bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    bare |= {f"h.{layer}.attn.bias": mask.clone() for layer in range(2)}
    bare |= {"h.0.attn.masked_bias": torch.tensor(-1e4), "lm_head.weight": weights["transformer.wte.weight"].clone()}

    def same() -> bool:
        return all(torch.equal(tensor, expected[name]) for name, tensor in load_model(folder).state_dict().items())

    # without the prefix, with mask buffers and a second copy of a tied matrix
    save_file(bare, folder / "model.safetensors")
    assert same()
    # several files behind an index
    (folder / "model.safetensors").unlink()
    names = sorted(bare)
    parts = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for part, held in parts.items():
        save_file({name: bare[name] for name in held}, folder / part)
    index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same()
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model-2\.safetensors"):
        load_model(folder)
    (folder / "model.safetensors.index.json").unlink()
    # torch files, new and old format
    for zipped in (True, False):
        torch.save(bare, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        assert same()


def test_fewer_positions_crop_and_more_are_refused(folder: Path) -> None:
    whole, cropped = load_model(folder), load_model(folder, seq_len=8, dropout=0.1)
    assert cropped.config.seq_len == 8 and cropped.config.dropout == 0.1
    tokens = torch.randint(0, 65, (2, 8))
    assert torch.equal(whole.eval()(tokens), cropped.eval()(tokens))
    with pytest.raises(UserError, match=r"model\.seq_len is 32 but .* only 16 positions"):
        load_model(folder, seq_len=32)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model_type": "llama"}, "says model_type 'llama'"),
        ({"activation_function": "relu", "n_inner": 64}, "activation_function='relu', n_inner=64"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"n_layer": 3}, r"there are no weights for h\.2\..* and others"),
        ({"n_layer": 1}, r"there is no place for transformer\.h\.1\."),
        ({"vocab_size": 66}, r"does not fit the shape of transformer\.wte\.weight \(65, 32\)"),
        ({"tie_word_embeddings": False}, r"there are no weights for lm_head\.weight"),
    ],
)
def test_a_model_we_do_not_compute_exactly_is_refused(folder: Path, values: dict, sentence: str) -> None:
    change_config(folder, **values)
    with pytest.raises(UserError, match=sentence):
        load_model(folder)


def test_broken_folders_are_named(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for cut in (0, 5, 200, len(whole) - 10):
        weights.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"model\.safetensors is truncated or not a weight file"):
            load_model(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load_model(folder)
    torch.save({"wte.weight": torch.zeros(65, 32)}, folder / "pytorch_model.bin")
    whole = (folder / "pytorch_model.bin").read_bytes()
    for cut in (0, 100, len(whole) - 10):
        (folder / "pytorch_model.bin").write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"pytorch_model\.bin is truncated or not a weight file"):
            load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_model(folder)
    with pytest.raises(UserError, match="is not a folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match="neither a local folder nor could it be fetched"):
        load_model("nobody/no-such-model")


def test_code_hidden_in_a_weight_file_does_not_run(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    (folder / "model.safetensors").unlink()
    torch.save({"wte.weight": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="not a weight file"):
        load_model(folder)
    assert not (tmp_path / "sprung").exists()


def test_loading_draws_no_random_numbers(folder: Path) -> None:
    before = torch.get_rng_state()
    load_model(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_package_imports_without_ray_or_transformers() -> None:
    code = (
        "import sys, raygpt.model.generate, raygpt.model.gpt, raygpt.model.presets, raygpt.model.huggingface;"
        "print([name for name in ('ray', 'transformers', 'deepspeed', 'wandb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("named", ["../elsewhere.safetensors", "/etc/hosts", "a/b.safetensors", "..", 7])
def test_an_index_may_name_files_of_its_folder_only(tmp_path: Path, named: object) -> None:
    folder = export_huggingface(random_model(), tmp_path / "model", tokenizer_json=None, eot_id=0)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = {"weight_map": {"transformer.wte.weight": named}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="which is no file of its folder"):
        load_model(folder)
