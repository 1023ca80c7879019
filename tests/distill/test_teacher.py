"""Which teachers are taken, and the one sentence that refuses the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raygpt.capacity.memory import Setup, needs
from raygpt.config.settings import load_config
from raygpt.data.tokenizer import Tokenizer, byte_tokenizer, load_tokenizer, train_tokenizer
from raygpt.distill.foreign_teacher import load_foreign
from raygpt.distill.teacher_states import MakeDistillation, OnlineTeacher, find_teacher, teacher_bytes, teacher_dtype
from raygpt.distill.transport import Transport
from raygpt.errors import UserError
from raygpt.jobs.distill import DECLARATION
from raygpt.model import registry
from raygpt.model.gpt import GPTConfig
from raygpt.model.huggingface import export_huggingface
from raygpt.parallel.checkpoint import complete_checkpoints, read_state
from raygpt.parallel.distributed import World
from raygpt.storage import locate
from tests.distill.small import VOCAB, model, rows
from tests.model.toy_architecture import ToyFamily

BYTES = byte_tokenizer()
CPU = torch.device("cpu")


def saved(folder: Path, tokenizer: Tokenizer | None = BYTES, **shape: Any) -> str:
    made = model(0, 24, **{"vocab_size": 257, "seq_len": 16, **shape})
    given = tokenizer or BYTES
    export_huggingface(made, folder, tokenizer_json=given.to_json(), eot_id=given.eot_id)
    if tokenizer is None:
        for path in folder.glob("*token*"):
            path.unlink()
    return str(folder)


def found(uri: str, tokenizer: Tokenizer = BYTES, *, seq_len: int = 16, student: Any = None) -> Any:
    student = student or GPTConfig(257, 16, 1, 2, 16)
    return find_teacher(uri, tokenizer.info, tokenizer.to_json(), precision="auto", seq_len=seq_len, student=student)


def test_a_teacher_of_the_same_tokens_is_taken_and_loaded_frozen(tmp_path: Path) -> None:
    source = found(saved(tmp_path / "teacher"))
    assert source.width == 24 and source.vocab_size == 257
    torch.manual_seed(3)
    before = torch.get_rng_state()
    make = MakeDistillation(Transport("hidden", 24, 257), 0.5, "forward", teacher=source)
    objective = make(World(0, 1, CPU), None)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)  # the student's first weights are drawn from it
    teacher = objective.teacher
    assert isinstance(teacher, OnlineTeacher) and not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    reference = model(0, 24, vocab_size=257, seq_len=16).eval()
    tokens = rows(1)[:, :-1]
    logits = teacher.states(tokens)["hidden"] @ teacher.output[:257].t()
    torch.testing.assert_close(logits.view(*tokens.shape, 257), reference(tokens).detach(), rtol=1e-4, atol=1e-4)


def test_a_run_teaches_by_its_newest_checkpoint() -> None:
    run = Path(__file__).parents[1] / "before" / "ddp"
    made_with = load_tokenizer(str(run.parent / "data"))
    seen = read_state(complete_checkpoints(locate(run))[0])
    student = GPTConfig(seen.model["vocab_size"], 8, 1, 2, 16)
    source = found(str(run), made_with, seq_len=8, student=student)
    assert source.uri.endswith("checkpoints/step_00000010") and source.width == seen.model["n_embd"]
    output = source.load(Transport("hidden", source.width, source.vocab_size), World(0, 1, CPU)).output
    assert torch.equal(output, dict(source.weights())["wte.weight"])


def test_the_same_ids_under_another_end_of_text_are_the_same_vocabulary(tmp_path: Path) -> None:
    """A hash tells tokenizers apart that give every token one id; what counts are the ids."""
    other = Tokenizer.from_json(BYTES.to_json(), "another", eot_id=0)
    assert other.sha256 != BYTES.sha256
    assert found(saved(tmp_path / "teacher"), other)


def test_another_vocabulary_is_refused_naming_both_and_the_way(tmp_path: Path) -> None:
    trained = train_tokenizer(iter(["some words and some more words"] * 20), 270)
    uri = saved(tmp_path / "teacher", trained, vocab_size=trained.vocab_size)
    with pytest.raises(UserError) as refused:
        found(uri)
    words = str(refused.value)
    assert f"of {trained.vocab_size} ids" in words and f"{BYTES.name} of 257 ids" in words
    assert "distill.mode=sequence" in words and "data.tokenizer" in words


def test_what_cannot_teach_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = saved(tmp_path / "teacher")
    with pytest.raises(UserError, match=r"reads at most 16 tokens and rows have data.seq_len=17: lower data.seq_len"):
        found(uri, seq_len=17)
    with pytest.raises(UserError, match=r"has 257 outputs and the student 300: set model.vocab_size=257"):
        found(uri, student=GPTConfig(300, 16, 1, 2, 16))
    with pytest.raises(UserError, match=r"comes without a tokenizer .* bytes of 257 .*distill.mode=sequence"):
        found(saved(tmp_path / "bare", None))
    with pytest.raises(UserError, match=r"nowhere"):
        found(str(tmp_path / "nowhere"))


def test_an_architecture_without_hidden_states_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.FAMILIES, "toy", ToyFamily())
    toy = ToyFamily().config({"vocab_size": 257, "n_embd": 16, "seq_len": 16})

    class Source:
        config, origin = toy, "somewhere"

    monkeypatch.setattr("raygpt.distill.teacher_states.is_foreign", lambda _: False)
    monkeypatch.setattr("raygpt.distill.teacher_states.open_weights", lambda _: Source)
    monkeypatch.setattr("raygpt.distill.teacher_states.open_tokenizer", lambda _: BYTES)
    with pytest.raises(UserError, match="is of architecture toy, which does not hand over its hidden states"):
        found("somewhere")


def test_a_model_of_another_family_teaches_where_transformers_loads_it(tmp_path: Path) -> None:
    """Its states and output matrix make the logits that transformers makes; one that caps its logits is refused."""
    from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 257, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16}
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**shape, initializer_range=0.5)).eval()
    llama.save_pretrained(tmp_path / "llama")
    (tmp_path / "llama" / "tokenizer.json").write_bytes(BYTES.to_json())
    source = found(str(tmp_path / "llama"))
    assert (source.width, source.vocab_size, source.seq_len) == (24, 257, 16)
    assert source.parameters == llama.num_parameters()
    teacher = source.load(Transport("hidden", 24, 257), World(0, 1, CPU))
    tokens = rows(1)[:, :-1]
    logits = teacher.states(tokens)["hidden"] @ teacher.output.t()
    torch.testing.assert_close(logits.view(*tokens.shape, 257), llama(input_ids=tokens).logits.detach())
    with pytest.raises(UserError, match=r"reads at most 16 tokens"):
        found(str(tmp_path / "llama"), seq_len=17)
    capped = Gemma2Config(**shape, head_dim=12, final_logit_softcapping=1.0, initializer_range=0.5)
    Gemma2ForCausalLM(capped).save_pretrained(tmp_path / "gemma")
    with pytest.raises(UserError, match=r"makes its logits otherwise than by a matrix .* distill.mode=sequence"):
        load_foreign(str(tmp_path / "gemma"), torch.float32)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"distill.mode": "logits"}, r"distill.teacher.* is not set"),
        (
            {"distill.transport": "sampled", "distill.divergence": "reverse"},
            r"distill.divergence .*must be forward with",
        ),
        ({"distill.mode": "sequence", "distill.store": "x"}, r"distill.store .*is for distill.mode=logits"),
        ({"distill.mode": "logits", "distill.store": "x", "data.train": "none"}, r"data.train.* is not set"),
        ({"distill.alpha": "1.5"}, "distill.alpha"),
    ],
)
def test_settings_that_do_not_go_together_are_named(options: dict[str, str], says: str) -> None:
    base = {"data.train": "somewhere", "train.max_steps": "3"}
    with pytest.raises(UserError, match=says):
        load_config(DECLARATION, None, {**base, **options}, {})
    del base["train.max_steps"]  # states have no length
    load_config(DECLARATION, None, {**base, "distill.mode": "logits", "distill.teacher": "t", "distill.store": "x"}, {})


def test_the_memory_plan_names_the_teacher() -> None:
    student = GPTConfig(257, 16, 1, 2, 16)
    for gpu in (False, True):
        plain, beside = (needs(student, Setup(gpu=gpu, teacher=size)) for size in (0, 10**9))
        moments = beside.device if gpu else beside.host
        assert all(parts["teacher"] == 10**9 for parts in moments.values())
        assert "teacher" not in next(iter((plain.device if gpu else plain.host).values()))
        assert (beside.device_peak - plain.device_peak if gpu else beside.host_peak - plain.host_peak) > 10**9


def test_a_teachers_bytes_are_its_weights_or_its_output_matrix_and_pieces_of_logits(tmp_path: Path) -> None:
    source = found(saved(tmp_path / "teacher"))
    transport = Transport("hidden", 24, 257)
    pieces = 8 * 1024 * 257 * 4
    assert teacher_bytes(MakeDistillation(transport, 0.5, "forward", teacher=source)) == (
        pieces + 4 * source.parameters
    )
    assert teacher_bytes(MakeDistillation(transport, 0.5, "forward", stored="x")) == pieces + 4 * 24 * 257
    assert teacher_dtype("auto", CPU) == torch.float32 and teacher_dtype("bf16", CPU) == torch.bfloat16


def test_a_teacher_in_half_precision_stays_close() -> None:
    tokens = rows(2)[:, :-1]
    transport = Transport("topk", 24, VOCAB, top_k=8)
    full = OnlineTeacher(model(4, 24), transport, torch.float32, CPU).states(tokens)
    half = OnlineTeacher(model(4, 24), transport, torch.bfloat16, CPU).states(tokens)
    assert (full["log_probs"][:, 0] - half["log_probs"][:, 0]).abs().mean() < 0.05
