"""Text to token ids and back for the engine: Hugging Face's tokenizers and this package's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer

from raygpt.data.tokenizer import END_NAMES, Tokenizer
from raygpt.errors import UserError, one_line
from raygpt.serve.hf_network import source

# Special tokens that end an answer whatever a model's files say: base models' files often name one of several.
ENDS = {*END_NAMES, "<|end|>", "<end_of_turn>", "<|return|>"} - {"[SEP]"}


class HuggingFaceCoder:
    """A transformers tokenizer. In a prompt the names of special tokens mean these tokens, as chat templates need."""

    def __init__(self, spec: str, model: Any = None) -> None:
        where, arguments = source(spec)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(where, **arguments)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(
                f"teacher.model={spec} has no tokenizer that transformers can load ({one_line(error)}): put its "
                "tokenizer files into the folder."
            ) from error
        self._spec = spec
        # beginning of text, for models whose tokenizer puts it there: Gemma writes nonsense without it
        begin, probe = self._tokenizer.bos_token_id, self._tokenizer.encode("a", add_special_tokens=True)
        self._begin = [begin] if begin is not None and probe[:1] == [begin] else []
        self.eos_ids = frozenset(self._ends(model))

    def encode(self, text: str) -> list[int]:
        ids = list(self._tokenizer.encode(text, add_special_tokens=False))
        return ids if not ids or ids[:1] == self._begin else self._begin + ids

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        if not self._tokenizer.chat_template:
            raise UserError(no_template(self._spec))
        try:
            found = self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # a template raises whatever its author wrote
            raise UserError(f"the model's chat template refuses these messages: {one_line(error)}.") from error
        return list(found)

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        return str(
            self._tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False)
        )

    def _ends(self, model: Any) -> set[int]:
        found: set[int] = set()
        for place in (getattr(model, "generation_config", None), getattr(model, "config", None), self._tokenizer):
            ids = getattr(place, "eos_token_id", None)
            found |= set(ids) if isinstance(ids, list) else {ids} if ids is not None else set()
        added = self._tokenizer.added_tokens_decoder
        return found | {token for token, entry in added.items() if entry.special and entry.content in ENDS}


class OwnCoder:
    """The tokenizer beside a run's checkpoints. Text never turns into special tokens."""

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        self._tokenizer, self._name = tokenizer, name
        self.eos_ids = frozenset({tokenizer.eot_id})

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self._tokenizer.encode(text)] if text else []

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        raise UserError(no_template(self._name))

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=not special)


def no_template(name: str) -> str:
    return f"{name} has no chat template: send a prompt to /v1/completions, or serve a model that was tuned to chat."
