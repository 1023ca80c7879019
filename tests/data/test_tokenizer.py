"""Tokenizers: ids equal the reference's, text never becomes special tokens, equal tokenizers have equal hashes."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tokenizers

from raygpt.data import words
from raygpt.data.tokenizer import Tokenizer, byte_tokenizer, load_tokenizer, train_tokenizer
from raygpt.errors import UserError

WHITE_SPACE = [chr(c) for c in range(0x3100) if chr(c).isspace()] + ["\u200b", "\ufeff", "\u180e"]
ODD_TEXTS = [
    "",
    " ",
    "a",
    "héllo wörld\n\n\tx",
    "日本語 テキスト",
    "\U0001f600\u200d\x00\x7f",
    "a<|endoftext|>b",
    "\r\n  ",
]


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> Tokenizer:
    return load_tokenizer(str(shared_data / "gpt2_bpe"))


@pytest.fixture(scope="module")
def web_texts(shared_data: Path) -> list[str]:
    return pq.read_table(shared_data / "pretrain_text/openwebtext_1k.parquet")["text"].to_pylist()[:150]


def test_gpt2_gives_openai_ids(gpt2: Tokenizer) -> None:
    assert gpt2.encode("Hello, I'm a language model,").tolist() == [15496, 11, 314, 1101, 257, 3303, 2746, 11]
    assert (gpt2.name, gpt2.vocab_size, gpt2.eot_id, gpt2.dtype) == ("gpt2", 50257, 50256, np.uint16)


def test_tokenizer_json_and_vocabulary_pair_are_the_same_tokenizer(
    gpt2: Tokenizer, shared_data: Path, tmp_path: Path
) -> None:
    for name, copy in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        shutil.copy(shared_data / "gpt2_bpe" / name, tmp_path / copy)
    pair = load_tokenizer(str(tmp_path))
    file = load_tokenizer(str(shared_data / "gpt2_bpe/tokenizer.json"))
    assert pair.sha256 == file.sha256 == gpt2.sha256
    for text in ODD_TEXTS:
        assert pair.encode(text).tolist() == gpt2.encode(text).tolist()


def test_special_token_text_is_encoded_as_letters(gpt2: Tokenizer) -> None:
    for tokenizer in (gpt2, byte_tokenizer()):
        ids = tokenizer.encode("a<|endoftext|>b")
        assert tokenizer.eot_id not in ids.tolist()
        assert tokenizer.decode(ids) == "a<|endoftext|>b"


def test_byte_ids_are_the_bytes() -> None:
    tokenizer = byte_tokenizer()
    assert (tokenizer.vocab_size, tokenizer.eot_id, tokenizer.is_bytes) == (257, 256, True)
    for text in ODD_TEXTS:
        assert tokenizer.encode(text).tolist() == list(text.encode())
        # the tokenizer that is exported gives what the numpy path gives
        assert tokenizer.backend.encode(text).ids == list(text.encode())
        assert tokenizer.decode(tokenizer.encode(text)) == text
    every_byte = bytes(range(256))
    assert tokenizer.decode(every_byte[:128]) == every_byte[:128].decode()


def test_batches_equal_the_library_one_by_one(gpt2: Tokenizer, web_texts: list[str], shared_data: Path) -> None:
    reference = tokenizers.Tokenizer.from_file(str(shared_data / "gpt2_bpe/tokenizer.json"))
    texts = [text for text in ODD_TEXTS + web_texts if "<|endoftext|>" not in text]
    for text, ids in zip(texts, gpt2.encode_batch(texts), strict=True):
        assert ids.dtype == np.uint16
        assert ids.tolist() == reference.encode(text).ids
        assert gpt2.decode(ids) == text
    assert gpt2.encode_batch([]) == []


def test_every_white_space_and_word_boundary_is_cut_as_the_library_cuts(gpt2: Tokenizer) -> None:
    made = random.Random(0)
    atoms = [
        *WHITE_SPACE,
        " ",
        "\n",
        "  ",
        "a",
        "don't",
        "'s",
        "é",
        "12",
        "٣",
        "²",
        "日",
        "!?",
        "'",
        "_",
        "\u0301",
        "\U0001f600",
    ]
    texts = ["".join(made.choices(atoms, k=made.randint(1, 30))) for _ in range(4000)]
    expected = [e.ids for e in gpt2.backend.encode_batch_fast(texts, add_special_tokens=False)]
    assert [ids.tolist() for ids in gpt2.encode_batch(texts)] == expected
    # and again, from memory
    assert [ids.tolist() for ids in gpt2.encode_batch(texts[::-1])] == expected[::-1]


def test_forgetting_words_changes_no_ids(
    gpt2: Tokenizer, web_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [ids.tolist() for ids in gpt2.encode_batch(web_texts[:20])]
    monkeypatch.setattr(words, "MAX_PIECES", 100)
    assert [gpt2.encode(text).tolist() for text in web_texts[:20]] == before


@pytest.mark.parametrize("characters", [10, 97, 4096])
def test_text_cut_into_pieces_gives_the_ids_of_the_whole(
    gpt2: Tokenizer, web_texts: list[str], characters: int
) -> None:
    text = "\n\n".join(web_texts[:25]) + "  \n \t\n x  y\u00a0 z\u3000 q 1234 5' ll 'll don't  "
    pieces = gpt2.pieces(text, characters)
    assert "".join(pieces) == text and len(pieces) > len(text) / (characters + 100)
    joined = np.concatenate([gpt2.encode(piece) for piece in pieces])
    assert joined.tolist() == gpt2.backend.encode(text, add_special_tokens=False).ids


def test_tokenizer_without_a_known_exact_cut_keeps_text_whole() -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "</s>": 1}, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer = Tokenizer.from_json(backend.to_str().encode(), "other")
    assert tokenizer.eot_id == 1
    assert tokenizer.pieces("a a " * 1000, 10) == ["a a " * 1000]


def test_training_is_deterministic_and_ends_with_end_of_text(web_texts: list[str]) -> None:
    one, two = (train_tokenizer(iter(web_texts), 600) for _ in range(2))
    assert one.to_json() == two.to_json() and one.sha256 == two.sha256
    assert (one.vocab_size, one.eot_id) == (600, 599)
    assert one.decode(one.encode("Naïve \U0001f600")) == "Naïve \U0001f600"
    assert len(one.encode(web_texts[0])) < len(web_texts[0].encode()) * 0.8


def test_training_on_little_text_stops_at_its_last_pair() -> None:
    tokenizer = train_tokenizer(iter(["abab"]), 5000)
    assert 257 < tokenizer.vocab_size < 300 and tokenizer.eot_id == tokenizer.vocab_size - 1


def test_saving_and_pickling_keep_the_hash(gpt2: Tokenizer, tmp_path: Path) -> None:
    for tokenizer in (gpt2, byte_tokenizer(), train_tokenizer(iter(["some text"]), 260)):
        (tmp_path / "tokenizer.json").write_bytes(tokenizer.to_json())
        again, shipped = load_tokenizer(str(tmp_path)), pickle.loads(pickle.dumps(tokenizer))
        assert again.sha256 == shipped.sha256 == tokenizer.sha256
        assert again.eot_id == tokenizer.eot_id and shipped.name == tokenizer.name
        assert again.is_bytes == tokenizer.is_bytes


def test_different_tokenizers_have_different_hashes(gpt2: Tokenizer) -> None:
    small, large = (train_tokenizer(iter(["some text, some more text"]), size) for size in (258, 262))
    assert len({gpt2.sha256, byte_tokenizer().sha256, small.sha256, large.sha256}) == 4


def test_end_of_text_is_what_the_folder_says(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(iter(["text"]), 260)
    tokenizer.backend.add_special_tokens(["<stop>"])
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.to_json())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<stop>"}}))
    assert load_tokenizer(str(tmp_path)).eot_id == tokenizer.backend.token_to_id("<stop>")


def test_vocabularies_over_65536_are_uint32() -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<|endoftext|>": 0, "a": 70_000}, unk_token="a"))
    assert Tokenizer.from_json(backend.to_str().encode(), "wide").dtype == np.uint32


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("no/such/folder", "no such folder"),
        ("train:500", "raygpt prepare"),
        ("{tmp}/empty", "holds no tokenizer"),
        ("{tmp}/broken.json", "not a tokenizer"),
        ("gpt2", "local folder"),
        ("some-org/some-model", "local folder"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(
    spec: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text("{")
    if spec in ("gpt2", "some-org/some-model"):
        import huggingface_hub

        def offline(*_: object, **__: object) -> str:
            raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(UserError, match=says) as raised:
        load_tokenizer(spec.format(tmp=tmp_path))
    assert "\n" not in str(raised.value)


def test_vocabulary_too_small_to_train_is_refused() -> None:
    with pytest.raises(UserError, match="at least 257"):
        train_tokenizer(iter(["a"]), 256)


def test_tokenizer_without_an_end_of_text_is_refused() -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
    with pytest.raises(UserError, match="ends a text"):
        Tokenizer.from_json(backend.to_str().encode(), "endless")
