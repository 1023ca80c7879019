"""The model's arithmetic, checked against a float64 loop, closed forms and itself computed another way."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch

from raygpt.errors import UserError
from raygpt.model import gpt
from raygpt.model.gpt import GPT, Attention, GPTConfig, KVCache
from raygpt.model.presets import PRESETS
from tests.model.reference import loss_by_hand, transformers_gpt2

SMALL = GPTConfig(vocab_size=65, seq_len=16, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(1)
    model = GPT(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # logits far from uniform
    return model


def gradient(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def batch(vocab_size: int = 65, rows: int = 3, length: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(7))
    return tokens[:, :-1], tokens[:, 1:]


def test_loss_equals_a_float64_loop_over_the_logits(model: GPT) -> None:
    tokens, targets = batch()
    by_hand = loss_by_hand(model(tokens), targets)
    flat = [loss for row in by_hand for loss in row if loss is not None]
    assert model(tokens, targets).item() == pytest.approx(sum(flat) / len(flat), abs=1e-5)
    assert model(tokens, targets, reduction="sum").item() == pytest.approx(sum(flat), rel=1e-5)
    assert torch.allclose(model(tokens, targets, reduction="none"), torch.tensor(by_hand), atol=1e-5)


def test_targets_are_not_shifted_again(model: GPT) -> None:
    # targets that repeat the input: a model that shifts would score token t+1, ours scores exactly what it is given
    tokens, _ = batch()
    log_probs = model(tokens).log_softmax(-1)
    expected = -log_probs.gather(-1, tokens[..., None]).squeeze(-1)
    losses = model(tokens, tokens, reduction="none")
    assert torch.allclose(losses, expected, atol=1e-5)
    assert not torch.allclose(losses[:, :-1], -log_probs[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1), atol=1e-2)


def test_a_model_trained_on_a_counting_sequence_predicts_the_next_number_not_the_one_after() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=12, seq_len=8, n_layer=1, n_head=2, n_embd=32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    starts = torch.arange(12)[:, None]
    rows = (starts + torch.arange(9)) % 12
    for _ in range(60):
        optimizer.zero_grad()
        model(rows[:, :-1], rows[:, 1:]).backward()
        optimizer.step()
    assert torch.equal(model(rows[:, :-1]).argmax(-1), rows[:, 1:])


def test_ignored_targets_add_nothing_to_loss_or_gradient(model: GPT) -> None:
    tokens, targets = batch()
    masked = targets.clone()
    masked[:, 10:] = -100
    kept = copy.deepcopy(model)
    loss = model(tokens, masked)
    loss.backward()
    shorter = kept(tokens[:, :10], targets[:, :10])
    shorter.backward()
    assert loss.item() == pytest.approx(shorter.item(), abs=1e-6)
    for (name, ours), theirs in zip(model.named_parameters(), kept.parameters()):
        assert torch.allclose(gradient(ours), gradient(theirs), atol=1e-6), name
    assert torch.all(model(tokens, masked, reduction="none")[:, 10:] == 0)
    assert model(tokens, masked, reduction="sum").item() == pytest.approx(loss.item() * 30, rel=1e-5)


@pytest.mark.parametrize("tie_weights", [True, False])
@pytest.mark.parametrize("autocast", [False, True])
def test_padding_of_the_vocabulary_takes_no_probability_and_no_gradient(tie_weights: bool, autocast: bool) -> None:
    config = GPTConfig(vocab_size=65, seq_len=16, n_layer=1, n_head=2, n_embd=32, tie_weights=tie_weights)
    model = GPT(config)
    assert config.padded_vocab_size == 128 and model.wte.weight.shape == (128, 32)
    tokens, targets = batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert model(tokens).shape == (3, 16, 65)
        padded = model.lm_head(model.hidden(tokens))
        loss = model(tokens, targets)
    assert torch.all(padded[..., 65:] == float("-inf")) and torch.isfinite(padded[..., :65]).all()
    assert loss.dtype == torch.float32
    loss.backward()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    optimizer.step()
    for matrix in (model.wte.weight, model.lm_head.weight):
        assert torch.all(gradient(matrix)[65:] == 0) and torch.all(matrix[65:] == 0)
        assert torch.isfinite(gradient(matrix)).all() and gradient(matrix)[:65].abs().sum() > 0


def test_a_padded_and_an_exact_vocabulary_give_the_same_loss() -> None:
    # 128 rows need no padding; with the logits of the same 128 cut by hand to 65 the loss must be the padded one
    torch.manual_seed(3)
    padded = GPT(SMALL)
    exact = GPT(GPTConfig.from_dict({**SMALL.to_dict(), "vocab_size": 128}))
    exact.load_state_dict(padded.state_dict())
    tokens, targets = batch()
    by_cut = torch.nn.functional.cross_entropy(exact(tokens)[..., :65].flatten(0, 1), targets.flatten())
    assert padded(tokens, targets).item() == pytest.approx(by_cut.item(), abs=1e-6)


def test_attention_scores_beyond_half_precision_stay_finite() -> None:
    # a plain float16 product of these queries and keys is inf, and its softmax is not a number
    dtype = torch.float16
    torch.manual_seed(3)
    exact = Attention(SMALL, layer=0).double()
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.copy_(torch.randn_like(parameter).to(dtype))
        exact.c_attn.weight.mul_(16)
    x = torch.randn(2, 16, 32).to(dtype)
    query, key, _ = exact.c_attn(x.double()).split(32, dim=2)
    assert (query @ key.transpose(1, 2)).abs().max() > 65504
    half = copy.deepcopy(exact).to(dtype)
    torch.testing.assert_close(half(x).double(), exact(x.double()), rtol=0.02, atol=8)


def test_the_future_does_not_reach_the_past(model: GPT) -> None:
    tokens, _ = batch()
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 65
    before, after = model(tokens), model(changed)
    assert torch.allclose(before[:, :9], after[:, :9], atol=1e-6)
    assert not torch.allclose(before[:, 9:], after[:, 9:], atol=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_activation_checkpointing_gives_the_same_gradients(dropout: float) -> None:
    config = GPTConfig.from_dict({**SMALL.to_dict(), "dropout": dropout})
    tokens, targets = batch()
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(5)
        model = GPT(config, activation_checkpointing=checkpointing)
        model(tokens, targets).backward()
        gradients.append([gradient(parameter) for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients):
        assert torch.equal(plain, recomputed)


def masked_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """48 tokens, some of them not to be predicted: whole pieces of 7, parts of them, and none."""
    tokens, targets = batch()
    targets = targets.clone()
    targets[0, 3:12] = -100
    return tokens, targets


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("tie_weights", [True, False])
def test_logits_in_pieces_give_the_loss_and_the_gradients_of_all_at_once(reduction, dtype, tie_weights) -> None:
    torch.manual_seed(1)
    exact = GPT(GPTConfig.from_dict({**SMALL.to_dict(), "tie_weights": tie_weights})).double()
    tokens, targets = masked_batch()
    wanted = exact(tokens, targets, reduction) * 3
    wanted.backward()
    for pieces in (7, 16, 1000):
        model = copy.deepcopy(exact).float()
        model.zero_grad()
        model.loss_tokens = pieces
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = model(tokens, targets, reduction) * 3
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(wanted.item(), rel=2e-3 if dtype else 1e-6)
        for (name, ours), theirs in zip(model.named_parameters(), exact.parameters(), strict=True):
            distance = (gradient(ours).double() - gradient(theirs)).norm()
            assert distance <= (0.03 if dtype else 1e-5) * gradient(theirs).norm() + 1e-5, (name, pieces)
        assert torch.all(gradient(model.lm_head.weight)[65:] == 0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_more_logits_than_a_piece_exist_in_evaluation_and_under_activation_checkpointing(
    monkeypatch: pytest.MonkeyPatch, reduction, checkpointing: bool
) -> None:
    torch.manual_seed(1)
    model = GPT(SMALL)
    tokens, targets = masked_batch()
    whole = model(tokens, targets, reduction)
    whole.sum().backward()
    wanted = [gradient(parameter) for parameter in model.parameters()]
    seen: list[int] = []
    model.lm_head.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[0]))
    monkeypatch.setattr(gpt, "LOGIT_ROWS", 7)
    monkeypatch.setattr(gpt, "EVALUATION_LOGIT_ROWS", 7)
    model.zero_grad()
    model.activation_checkpointing = checkpointing
    with torch.set_grad_enabled(checkpointing):
        pieces = model(tokens, targets, reduction)
    assert torch.allclose(pieces, whole, rtol=1e-6, atol=1e-6)
    if checkpointing:
        pieces.sum().backward()
        for parameter, other in zip(model.parameters(), wanted, strict=True):
            assert torch.allclose(gradient(parameter), other, atol=1e-5)
    assert seen and max(seen) == 7


def test_fp16_keeps_its_logits_together_as_its_gradients_need_the_loss_scale() -> None:
    model = GPT(SMALL)
    model.loss_tokens = 7
    model.chunked_loss = None  # type: ignore[assignment]  # calling it would raise
    tokens, targets = batch()
    with torch.autocast("cpu", torch.float16):
        assert torch.isfinite(model(tokens, targets))


def test_dropout_acts_in_training_only() -> None:
    model = GPT(GPTConfig.from_dict({**SMALL.to_dict(), "dropout": 0.5}))
    tokens, targets = batch()
    assert model(tokens, targets).item() != model(tokens, targets).item()
    model.eval()
    assert model(tokens, targets).item() == model(tokens, targets).item()


@pytest.mark.parametrize("pieces", [[16], [1] * 16, [5, 1, 1, 9], [4, 4, 4, 4]])
def test_a_cache_gives_the_same_logits_however_the_tokens_arrive(model: GPT, pieces: list[int]) -> None:
    tokens, _ = batch()
    cache = KVCache(model.config)
    with torch.no_grad():
        parts = [model(part, cache=cache) for part in tokens.split(pieces, dim=1)]
        assert torch.allclose(torch.cat(parts, dim=1), model(tokens), atol=1e-5)
    assert cache.length == 16


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_sequence_longer_than_the_context_is_refused_in_a_sentence(checkpointing: bool) -> None:
    with pytest.raises(UserError, match=r"17 tokens does not fit.*context of 16.*model\.seq_len"):
        GPT(SMALL, checkpointing)(torch.zeros(1, 17, dtype=torch.int64))


def test_initialisation_is_gpt2s() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=1000, seq_len=64, n_layer=8, n_head=4, n_embd=128))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert torch.all(parameter == 0), name
        elif ".ln_" in name or name.startswith("ln_"):
            assert torch.all(parameter == 1), name
        else:
            expected = 0.02 / math.sqrt(2 * 8) if name.endswith("c_proj.weight") else 0.02
            true_rows = parameter[:1000] if name == "wte.weight" else parameter
            assert true_rows.std().item() == pytest.approx(expected, rel=0.05), name
    tokens, targets = batch(1000, 4, 64)
    assert model(tokens, targets).item() == pytest.approx(math.log(1000), abs=0.1)


def test_the_same_seed_gives_the_same_weights_through_the_meta_device() -> None:
    torch.manual_seed(11)
    plain = GPT(SMALL)
    with torch.device("meta"):
        other = GPT(SMALL)
    other.to_empty(device="cpu")
    torch.manual_seed(11)
    other.init_weights()
    assert other.lm_head.weight is other.wte.weight
    for (name, ours), theirs in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


PUBLISHED_SIZES = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}


@pytest.mark.parametrize("preset", PUBLISHED_SIZES)
def test_presets_have_the_published_sizes(preset: str) -> None:
    config = GPTConfig.from_dict(PRESETS[preset])
    assert config.num_parameters() == PUBLISHED_SIZES[preset]
    with torch.device("meta"):
        model = GPT(config, initialise=False)
    padding = (config.padded_vocab_size - config.vocab_size) * config.n_embd
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED_SIZES[preset] + padding


@pytest.mark.parametrize(("bias", "tie_weights"), itertools.product([True, False], repeat=2))
def test_parameters_are_counted_without_padding(bias: bool, tie_weights: bool) -> None:
    config = GPTConfig.from_dict({**SMALL.to_dict(), "vocab_size": 128, "bias": bias, "tie_weights": tie_weights})
    model = GPT(config)
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())
    looked_up = model.wpe.weight.numel() + (0 if tie_weights else model.wte.weight.numel())
    assert model.num_parameters(non_embedding=True) == model.num_parameters() - looked_up


def test_flops_per_token_of_gpt2_small() -> None:
    # 6 x (124,439,808 - 1024 x 768) + 12 x 12 layers x 768 x 1024, by hand
    assert GPTConfig.from_dict(PRESETS["gpt2"]).flops_per_token(1024) == 741_920_256 + 113_246_208


def test_config_survives_a_dictionary() -> None:
    config = GPTConfig(vocab_size=300, dropout=0.1, bias=False)
    assert GPTConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UserError, match="unknown keys n_heads"):
        GPTConfig.from_dict({"vocab_size": 10, "n_heads": 2})
    with pytest.raises(UserError, match="no vocab_size"):
        GPTConfig.from_dict({"n_head": 2})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"n_head": 5}, r"model\.n_embd \(768\) is not a multiple of model\.n_head \(5\)"),
        ({"n_layer": 0}, r"model\.n_layer is 0"),
        ({"dropout": 1.0}, r"model\.dropout is 1\.0"),
    ],
)
def test_impossible_shapes_are_named(values: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        GPTConfig(vocab_size=10, **values)


@pytest.mark.parametrize("loss_tokens", [0, 7])
def test_a_training_step_compiles_to_the_same_loss_and_gradients(model: GPT, loss_tokens: int) -> None:
    tokens, targets = batch()
    plain = copy.deepcopy(model)
    model.loss_tokens = loss_tokens
    torch._dynamo.reset()
    expected = plain(tokens, targets)
    expected.backward()
    # the graph alone: what the inductor makes of it needs a C++ compiler
    loss = torch.compile(model, backend="aot_eager", fullgraph=True)(tokens, targets)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters()):
        assert torch.allclose(gradient(ours), gradient(theirs), atol=1e-5), name


def test_gradients_equal_those_of_transformers() -> None:
    theirs = transformers_gpt2(vocab_size=65, n_positions=16, n_layer=2, n_head=2, n_embd=32)
    ours = GPT(SMALL)
    conv1d = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    with torch.no_grad():
        for name, parameter in theirs.transformer.named_parameters():
            target = ours.get_parameter(name)
            target[: 65 if name == "wte.weight" else None] = parameter.t() if name.endswith(conv1d) else parameter
    tokens, targets = batch()
    ours(tokens, targets).backward()
    logits = theirs(tokens).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    assert torch.allclose(ours(tokens), logits, atol=1e-4)
    for name, parameter in theirs.transformer.named_parameters():
        found = gradient(ours.get_parameter(name))
        found = found[:65] if name == "wte.weight" else found.t() if name.endswith(conv1d) else found
        assert torch.allclose(found, gradient(parameter), atol=1e-5), name
