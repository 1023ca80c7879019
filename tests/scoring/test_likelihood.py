"""What a model gives to continuations, against one pass in float64 for each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import processors
from torch import Tensor, nn
from torch.nn import functional

from raygpt.data.tokenizer import Tokenizer, byte_tokenizer, train_tokenizer
from raygpt.errors import UserError
from raygpt.evaluate.foreign import Foreign, ForeignConfig, ForeignModel, load_foreign
from raygpt.model import registry
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.model.tree import grow, layout
from raygpt.scoring.likelihood import ModelScorer
from raygpt.scoring.questions import Question
from tests.scoring.small import save_foreign

TEXT = "the cat sat on the mat and the dog lay by the door while it rained on the roof of the old house "
QUESTIONS = [
    Question("0", "The cat sat", (" on the mat.", " on the dog.", " by", " on the mat.")),
    Question("1", "It rained on ", ("the roof", "an old house", " the door"), "whole"),
    Question("2", "It rained on ", ("the roof", "an old house"), "apart"),
    Question("3", "A dog lay by the door of the house while it", (" rained",)),
    Question("4", "", ("The cat", "A dog")),
    Question("5", "   ", ("The cat", "A dog")),
]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_tokenizer(iter([TEXT] * 20), 300)


@pytest.fixture(scope="module")
def model(words: Tokenizer) -> GPT:
    return tiny(words.vocab_size)


def tiny(vocab_size: int, seq_len: int = 64) -> GPT:
    """Weights large enough that what stands where matters."""
    torch.manual_seed(3)
    made = GPT(GPTConfig(vocab_size=vocab_size, seq_len=seq_len, n_layer=2, n_head=2, n_embd=32)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)
    return made


def reference(
    net: nn.Module, backend: tokenizers.Tokenizer, question: Question, begin: Sequence[int] = (), context: int = 64
) -> list[tuple[float, int, bool]]:
    """A pass for each continuation, in float64: lm-evaluation-harness's cut of the tokens, or each by itself."""

    def encode(text: str) -> list[int]:
        return list(backend.encode(text, add_special_tokens=False).ids)

    result = []
    for continuation in question.continuations:
        if question.joining == "apart":
            before, aims = encode(question.context), encode(continuation)
        else:
            blanks = len(question.context) - len(question.context.rstrip())
            head = question.context[: len(question.context) - blanks]
            before = encode(head)
            aims = encode(question.context + continuation)[len(before) :]
        end = backend.token_to_id("<|endoftext|>")
        assert end is not None
        before = [*begin, *before] or [end]
        inputs = (before + aims)[-context - 1 : -1]
        with torch.no_grad():
            out = net(torch.tensor([inputs]))
        logits: Tensor = (out if isinstance(out, Tensor) else out.logits)[0].double()
        lines = logits.log_softmax(dim=-1)[-len(aims) :]
        result.append(
            (
                sum(float(line[aim]) for line, aim in zip(lines, aims)),
                len(aims),
                all(int(line.argmax()) == aim for line, aim in zip(lines, aims)),
            )
        )
    return result


def agree(scorer: ModelScorer, net: nn.Module, tokenizer: Tokenizer, questions: Sequence[Question], **more: object):
    answers = scorer.ask(questions)
    assert len(answers) == len(questions)
    for question, scores in zip(questions, answers):
        expected = reference(net, tokenizer.backend, question, **more)  # type: ignore[arg-type]
        assert [one.tokens for one in scores] == [tokens for _, tokens, _ in expected]
        assert [one.greedy for one in scores] == [greedy for _, _, greedy in expected]
        assert [one.logprob for one in scores] == pytest.approx([total for total, _, _ in expected], abs=2e-4)


@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
def test_every_continuation_scores_what_a_pass_of_its_own_gives(model: GPT, words: Tokenizer, batch_tokens: int):
    agree(ModelScorer("tiny", model, words, batch_tokens=batch_tokens), model, words, QUESTIONS)


def test_first_choices_are_told(model: GPT, words: Tokenizer):
    ids = words.encode("The cat sat").astype(np.int64)
    with torch.no_grad():
        best = int(model(torch.from_numpy(ids)[None])[0, -1].argmax())
    others = [text for text in (" on", " by", " the") if words.encode(text).tolist() != [best]]
    question = Question("0", "The cat sat", (words.decode([best]), *others), "apart")
    assert [one.greedy for one in ModelScorer("tiny", model, words).ask([question])[0]][:1] == [True]
    assert not any(one.greedy for one in ModelScorer("tiny", model, words).ask([question])[0][1:])


def test_neighbours_and_batches_change_no_prediction(model: GPT, words: Tokenizer):
    random = np.random.default_rng(0)
    pieces = TEXT.split()
    some = [
        Question(
            str(number),
            " ".join(random.choice(pieces, random.integers(1, 12))),
            tuple(" " + " ".join(random.choice(pieces, random.integers(1, 6))) for _ in range(4)),
        )
        for number in range(64)
    ]
    together = ModelScorer("tiny", model, words, batch_tokens=64 * 64).ask(some)
    alone = list(chain(*(ModelScorer("tiny", model, words, batch_tokens=1).ask([one]) for one in some)))
    backwards = ModelScorer("tiny", model, words, batch_tokens=300).ask(some[::-1])[::-1]
    for one, two, three in zip(together, alone, backwards):
        sums = [[score.logprob for score in scores] for scores in (one, two, three)]
        assert sums[1] == pytest.approx(sums[0], abs=1e-4) and sums[2] == pytest.approx(sums[0], abs=1e-4)
        assert np.argmax(sums[0]) == np.argmax(sums[1]) == np.argmax(sums[2])


def test_equal_continuations_score_equally_to_the_bit(model: GPT, words: Tokenizer):
    first, *_, last = ModelScorer("tiny", model, words).ask(QUESTIONS)[0]
    assert first == last


def test_a_context_is_computed_once_and_logits_only_where_they_are_read(model: GPT, words: Tokenizer):
    read: list[int] = []
    foretold: list[int] = []
    hooks = [
        model.wte.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0].numel())),
        model.lm_head.register_forward_pre_hook(lambda _, arguments: foretold.append(len(arguments[0]))),
    ]
    context, ends = "The cat sat on the mat and it", [" rained on", " and the dog", " lay"]
    ModelScorer("tiny", model, words).ask([Question("0", context, tuple(ends), "apart")])
    for hook in hooks:
        hook.remove()
    lengths = [len(words.encode(end)) for end in ends]
    assert sum(read) == len(words.encode(context)) + sum(lengths) - 3  # the last token of each is read by nobody
    assert sum(foretold) == 1 + sum(lengths) - 3  # what follows the context is foretold once for all


def test_contexts_longer_than_the_model_s_are_cut_from_the_left_and_counted():
    tokenizer, short = byte_tokenizer(), tiny(257, seq_len=24)
    scorer = ModelScorer("short", short, tokenizer)
    long = [
        Question("0", "a context of much more than 24 bytes, of which", (" one", " some are left")),
        Question("1", "of 20 bytes exactly.", (" four", " five!")),  # 25 with the last byte, which is not read
    ]
    agree(scorer, short, tokenizer, long, context=24)
    assert scorer.cut == 3


def test_what_cannot_be_scored_is_named():
    tokenizer, short = byte_tokenizer(), tiny(257, seq_len=16)
    scorer = ModelScorer("short", short, tokenizer)
    with pytest.raises(UserError, match="question 7: continuation 1 has 17 tokens, and the context of short is 16"):
        scorer.ask([Question("7", "a", (" fits", " does not fit, no"))])
    with pytest.raises(UserError, match="question 8: continuation 0 has no tokens of its own"):
        scorer.ask([Question("8", "a", ("",), "apart")])
    with torch.no_grad():
        short.ln_f.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"short gives no number \(nan\) for the question 9"):
        scorer.ask([Question("9", "a", (" b",))])


def test_the_token_a_tokenizer_puts_before_a_text_stands_before_every_context_and_is_named():
    plain = byte_tokenizer()
    plain.backend.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)]
    )
    tokenizer, model = Tokenizer(plain.backend, "begins", 256), tiny(257)
    scorer = ModelScorer("tiny", model, tokenizer)
    assert scorer.bos == "<|endoftext|>" and ModelScorer("tiny", model, byte_tokenizer()).bos is None
    agree(scorer, model, tokenizer, QUESTIONS, begin=[256])


def test_markup_reads_the_names_of_special_tokens_in_a_text():
    tokenizer, model = byte_tokenizer(), tiny(257)
    question = Question("0", "<|endoftext|>a", (" b",), "apart")
    letters = ModelScorer("tiny", model, tokenizer).ask([question])[0][0]
    (token,) = ModelScorer("tiny", model, tokenizer, markup=True).ask([question])[0]
    with torch.no_grad():
        lines = model(torch.tensor([[256, ord("a"), ord(" ")]]))[0].double().log_softmax(dim=-1)
    assert token.logprob == pytest.approx(float(lines[1, ord(" ")] + lines[2, ord("b")]), abs=1e-4)
    assert abs(token.logprob - letters.logprob) > 1e-3


@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_models_of_transformers_score_what_they_say_themselves(kind: str, words: Tokenizer):
    from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    net: nn.Module
    if kind == "llama":
        shape: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        net = LlamaForCausalLM(LlamaConfig(vocab_size=words.vocab_size, max_position_embeddings=64, **shape))
    else:  # places its tokens by the mask it is given, and takes none that branches
        net = BloomForCausalLM(BloomConfig(vocab_size=words.vocab_size, hidden_size=32, n_layer=2, n_head=2))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(20 if parameter.dim() > 1 else 1)
    net.eval()
    registry.register(Foreign())
    parameters = sum(parameter.numel() for parameter in net.parameters())
    model = ForeignModel(net, ForeignConfig(kind, words.vocab_size, 64, parameters)).eval()
    agree(ModelScorer(kind, model, words), net, words, QUESTIONS)
    assert model.trees is (kind == "llama")


def local_models() -> Iterator[Any]:
    """Models whose layers look back over 8 places."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM, MistralConfig, MistralForCausalLM

    shape: dict[str, Any] = {"vocab_size": 257, "hidden_size": 32, "intermediate_size": 64}
    shape["max_position_embeddings"] = 64
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    yield MistralForCausalLM(MistralConfig(**shape, **heads, sliding_window=8))
    layers = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    yield GPTNeoForCausalLM(GPTNeoConfig(**shape, **layers, window_size=8))


def test_local_attention_shortens_trees_and_not_what_the_model_reads(tmp_path: Path):
    texts = ("the cat sat on the mat, and", (" the dog lay", " it rained on"))
    questions = [Question("0", *texts, "apart"), Question("1", "a", ("bc", "d"), "apart")]
    for number, net in enumerate(local_models()):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(8 if parameter.dim() > 1 else 1)
        loaded = load_foreign(str(save_foreign(net.eval(), tmp_path / str(number), byte_tokenizer())))
        assert loaded.model.config.seq_len == 64
        assert registry.of(loaded.model.config).tree_tokens(loaded.model) == 8
        agree(ModelScorer("local", loaded.model, loaded.tokenizer), net, loaded.tokenizer, questions)


def test_a_large_vocabulary_s_logits_exist_some_at_a_time(monkeypatch: pytest.MonkeyPatch):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "final_logit_softcapping": 1.0}  # behind its head
    torch.manual_seed(0)
    net: Any = Gemma2ForCausalLM(Gemma2Config(vocab_size=300, **shape)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(20 if parameter.dim() > 1 else 1)
    model = ForeignModel(net, ForeignConfig("gemma2", 300, 64, 1)).eval()
    tokens = torch.randint(300, (3, 21))
    targets = tokens[:, 1:].clone()
    targets[0, 15:] = -100
    with torch.no_grad():
        logits = net(tokens[:, :-1]).logits
        expected = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(3, 20)
        monkeypatch.setattr("raygpt.evaluate.foreign.LOGIT_BYTES", 300 * 4 * 7)
        seen: list[int] = []
        passes: list[int] = []
        net.lm_head.register_forward_hook(lambda _, __, out: seen.append(out.shape[:-1].numel()))
        net.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
        found = model(tokens[:, :-1], targets, reduction="none")
        assert torch.allclose(found, expected, atol=1e-4) and float(found[0, 15:].abs().max()) == 0
        assert max(seen) == 7 and sum(seen) == 55 and len(passes) == 1
        assert float(model(tokens[:, :-1], targets)) == pytest.approx(float(expected.sum()) / 55, rel=1e-5)
        assert torch.allclose(net(tokens[:, :-1]).logits, logits)  # as it was
    assert "forward" not in vars(net.model)


def test_a_tree_holds_what_sequences_begin_with_once():
    tree = grow([np.array(row) for row in ([5, 6, 7], [5, 6, 8, 9], [5, 6, 7], [5], [4, 6])])
    assert tree.tokens.tolist() == [5, 6, 7, 8, 9, 4, 6]
    assert [tree.tokens[path].tolist() for path in tree.paths] == [[5, 6, 7], [5, 6, 8, 9], [5, 6, 7], [5], [4, 6]]
    _, positions, mask = layout([tree, grow([np.array([1, 2])])])
    assert positions[0].tolist() == [0, 1, 2, 2, 3, 0, 1]
    assert [np.flatnonzero(row).tolist() for row in mask[0, 0]] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 3],
        [0, 1, 3, 4],
        [5],
        [5, 6],
    ]
    assert [np.flatnonzero(row).tolist() for row in mask[1, 0]] == [[0], [0, 1], [2], [3], [4], [5], [6]]
