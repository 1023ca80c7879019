"""What a row of a file becomes: a prompt, or the messages of a conversation.

| template | takes | becomes |
|---|---|---|
| prompt | `prompt`, or `messages` | itself |
| instruction | `instruction` (`input`) | a request to the assistant |
| topics | `topic`, `audience`, `style` | a text about it for them in that style, as Cosmopedia's prompts cross them |
| continue | `text` | its beginning, which the teacher goes on with |
| tutorial, faq, table, math | `text` | a request to rewrite it so |

The four ways of rewriting are those that came out best of 90 in Hugging Face's FinePhrase study (2026); the wording is
our own. A file of one's own is Jinja (`{{ field }}`): as it stands the user's message, or in YAML with `prompt`,
`system`, `chat` and `options`. Jinja runs sandboxed: a template is text, not a program.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import jinja2
import yaml
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from yaml.nodes import MappingNode

from raygpt import storage
from raygpt.config.reading import compose, entries, read
from raygpt.distill.answers import Question
from raygpt.errors import UserError, one_line

CONTINUE_WORDS = 100  # of a text, where generate.text_words does not say how many
MESSAGES = "messages"
ROLES = ("system", "user", "assistant")

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=False)


@dataclass(frozen=True)
class Template:
    """`prompt` and `system` are Jinja over a row's fields; `chat` says whether the teacher is asked through the chat
    protocol; `options` are lists that a row is crossed with where the settings have none. `fields` may not be empty.
    """

    name: str
    prompt: str
    chat: bool = True
    system: str | None = None
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    text_words: int | None = None

    @property
    def version(self) -> str:
        """Name and digest: a changed template is another one."""
        text = json.dumps([self.prompt, self.system, self.chat, self.text_words])
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def continues(self) -> bool:
        """Whether an answer makes sense only behind its prompt."""
        return self.name == "continue"

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """What a row must have, in alphabetical order."""
        found = _variables(self.prompt) | _variables(self.system or "")
        return tuple(sorted(found - set(self.optional)))

    def render(self, row: Mapping[str, Any]) -> Question:
        """The question of a row (its options among the fields). Raises ValueError saying what is missing or empty,
        in words that follow the row's place."""
        if self.name == "prompt" and MESSAGES in row and row.get("prompt") is None:
            return Question(None, _messages(row[MESSAGES], self.system))
        if missing := [name for name in self.fields if name not in row]:
            has = ", ".join(repr(name) for name in list(row)[:12]) or "none"
            raise ValueError(f"has no {' and no '.join(map(repr, missing))} (it has {has})")
        for name in self.fields:
            if row[name] is None or (isinstance(row[name], str) and not row[name].strip()):
                raise ValueError(f"has an empty {name!r}")
        values = {**dict.fromkeys(self.optional), **row}
        if self.text_words is not None and isinstance(row.get("text"), str):
            values["text"] = first_words(row["text"], self.text_words)
        try:
            prompt = _compiled(self.prompt).render(values)
            system = _compiled(self.system).render(values) if self.system else None
        except Exception as error:  # a template is its author's own
            raise ValueError(f"does not fit the template {self.name} ({one_line(error)})") from error
        if not prompt.strip():
            raise ValueError("makes an empty prompt")
        if not self.chat:
            return Question(prompt)
        user = ("user", prompt)
        return Question(None, (("system", system), user) if system else (user,))


def first_words(text: str, words: int) -> str:
    """The beginning of a text up to the end of its word number `words`, at most half of it, line breaks and all."""
    pieces = text.split()
    keep = min(words, max(1, len(pieces) // 2)) if len(pieces) <= 2 * words else words
    position = 0
    for piece in pieces[:keep]:
        position = text.index(piece, position) + len(piece)
    return text[:position]


def _messages(value: Any, system: str | None) -> tuple[tuple[str, str], ...]:
    if isinstance(value, str):  # of a CSV file
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("has 'messages' that are no list of {role, content}") from None
    try:
        messages = tuple((str(each["role"]), each["content"]) for each in value)
    except (TypeError, KeyError):
        raise ValueError("has 'messages' that are no list of {role, content}") from None
    if not messages or any(not isinstance(content, str) or not content.strip() for _, content in messages):
        raise ValueError("has an empty message")
    if unknown := [role for role, _ in messages if role not in ROLES]:
        raise ValueError(f"has a message of the role {unknown[0]!r}: roles are {', '.join(ROLES)}")
    if messages[-1][0] != "user":
        raise ValueError("has messages whose last is not the user's")
    return (("system", system), *messages) if system and messages[0][0] != "system" else messages


@lru_cache(maxsize=64)
def _variables(text: str) -> frozenset[str]:
    return frozenset(meta.find_undeclared_variables(_ENVIRONMENT.parse(text)))


@lru_cache(maxsize=64)
def _compiled(text: str) -> jinja2.Template:
    return _ENVIRONMENT.from_string(text)


def _rewriting(name: str, request: str) -> Template:
    return Template(name, f"{request}\n\nText:\n{{{{ text }}}}")


TEMPLATES = {
    each.name: each
    for each in (
        Template("prompt", "{{ prompt }}", chat=False),
        Template(
            "instruction",
            "{{ instruction }}"
            "{% set more = input or (instances[0].input if instances else '') %}{% if more %}\n\n{{ more }}{% endif %}",
            optional=("input", "instances"),
        ),
        Template(
            "topics",
            "Write {{ style }} about {{ topic }} for {{ audience }}. Explain what matters, with examples, in well-made "
            "paragraphs. Write the text alone, without a remark before or after it.",
            options={"audience": ("a general reader",), "style": ("an explanatory article",)},
        ),
        Template("continue", "{{ text }}", chat=False, text_words=CONTINUE_WORDS),
        _rewriting(
            "tutorial",
            "Turn the text below into a tutorial that teaches a reader step by step how the thing is done or "
            "understood. Number the steps where that helps, keep every fact of the text, and write for somebody new to "
            "the subject. Give the tutorial alone, without a remark of your own.",
        ),
        _rewriting(
            "faq",
            "Turn the text below into a list of questions and answers. Ask what a reader would want to know, from the "
            "basic to the advanced, and answer each question so fully that it can be read by itself. Give the "
            "questions and answers alone, without a remark of your own.",
        ),
        _rewriting(
            "table",
            "Put the facts of the text below into a Markdown table with a heading for every column. Below the table "
            "write one question that can be answered from it, and the answer. Give table, question and answer alone, "
            "without a remark of your own.",
        ),
        _rewriting(
            "math",
            "From the numbers and relations in the text below make a word problem that takes several steps of "
            "arithmetic. Write the problem, then solve it step by step and show every calculation. Give problem and "
            "solution alone, without a remark of your own.",
        ),
    )
}


def load_template(
    name: str, *, system: str | None = None, chat: bool | None = None, text_words: int | None = None
) -> Template:
    """A template by its name, or from a file; `system`, `chat` and `text_words` take the place of its own.

    Raises UserError for a name that is neither, and for a file that is no template.
    """
    found = TEMPLATES.get(name) or _from_file(name)
    try:
        fields = found.fields
        if system is not None:
            _ENVIRONMENT.parse(system)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"generate.template={name} is no Jinja template ({one_line(error)}): mend it.") from error
    if text_words is not None and "text" not in fields:
        raise UserError(
            f"generate.text_words has no meaning for the template {name}, which has no 'text': leave it out."
        )
    chat = found.chat if chat is None else chat
    if system is not None and not chat:
        if name != "prompt":
            raise UserError(
                f"generate.system needs the chat protocol, which {name} does not use: set generate.chat=true."
            )
        chat = True
    return Template(
        found.name,
        found.prompt,
        chat,
        system if system is not None else found.system,
        found.options,
        found.optional,
        text_words if text_words is not None else found.text_words,
    )


def _from_file(name: str) -> Template:
    where = storage.locate(name)
    try:
        text = storage.read_text(where)
    except FileNotFoundError:
        raise UserError(
            f"generate.template={name} is neither a template ({', '.join(TEMPLATES)}) nor a file: mend the name."
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"generate.template={name} is not UTF-8 text: save it as UTF-8.") from None
    stem, _, ending = where.name.rpartition(".")
    if ending.lower() not in ("yaml", "yml"):
        return Template(stem or where.name, text.strip())
    try:
        node = compose(text)
    except yaml.YAMLError as error:
        raise UserError(f"generate.template={name} is not valid YAML ({one_line(error)}): mend it.") from error
    except UserError as error:
        raise UserError(f"generate.template={name} {error}.") from None
    # as typed: an option `no` is asked as that, and not as False
    kinds = {"prompt": str, "system": str | None, "chat": bool, "options": dict[str, list[str]], "optional": list[str]}
    parts = entries(node) if isinstance(node, MappingNode) else ()
    about = {key: read(part, kinds.get(key, Any)) for key, part in parts}
    known = {"prompt", "system", "chat", "options", "optional"}
    if not isinstance(about, dict) or not isinstance(about.get("prompt"), str) or set(about) - known:
        raise UserError(
            f"generate.template={name} must have the key 'prompt', and beside it 'system', 'chat', 'options' and "
            "'optional' at most."
        )
    lists, optional = about.get("options") or {}, about.get("optional") or []
    if not isinstance(lists, dict) or not all(isinstance(values, list) and values for values in lists.values()):
        raise UserError(f"generate.template={name}: 'options' must hold a list for each name: write style: [plain].")
    if not isinstance(optional, list):
        raise UserError(f"generate.template={name}: 'optional' must be a list of fields: write optional: [input].")
    options = {key: tuple(map(str, values)) for key, values in lists.items()}
    return Template(
        stem,
        about["prompt"].strip(),
        bool(about.get("chat", True)),
        about.get("system"),
        options,
        tuple(map(str, optional)),
    )
