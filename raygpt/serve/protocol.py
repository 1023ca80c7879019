"""PURE but for pydantic. Requests of the OpenAI protocol: read, checked against what the model can do, made plain.

`read_completion` and `read_chat` turn a JSON body into an `Ask`: every answer that is wanted, ready for an engine.
What cannot be done is refused by name rather than left out: a setting that is not known here, a penalty, a tool.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raygpt.errors import UserError
from raygpt.serve.requests import Engine, Request, Sampling

MAX_TOP_LOGPROBS = 20  # as OpenAI's chat and vLLM
MAX_STOPS = 16
COMPLETION_TOKENS = 16  # the protocol's default of max_tokens for completions
# Settings of the protocol that change nothing about an answer here.
IGNORED = (
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)


Prompt = str | list[str] | list[int] | list[list[int]]


class ProtocolError(Exception):
    """An answer that is an error, in the protocol's form."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code, self.retry_after = status, kind, param, code, retry_after

    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Limits:
    """What one request may ask for: tokens of an answer, and answers (prompts × n)."""

    max_tokens: int
    max_answers: int


@dataclass(frozen=True)
class Ask:
    """A request made plain. `requests` are its answers in the order of their index; `prompts` how many prompts they
    belong to; `echoes` what stands before each answer, "" without echo."""

    chat: bool
    model: str
    requests: tuple[Request, ...]
    prompts: int
    echoes: tuple[str, ...]
    echo: bool
    stream: bool
    include_usage: bool
    logprobs: bool

    @property
    def prompt_tokens(self) -> int:
        """Each prompt counts once, however many answers it gets."""
        each = len(self.requests) // self.prompts
        return sum(len(request.prompt) for request in self.requests[::each])


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    include_obfuscation: bool = False


class _Body(BaseModel):
    """What both kinds of requests have. None is the protocol's way of leaving a setting out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    n: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    ignore_eos: bool | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class _Completion(_Body):
    prompt: Prompt
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    type: str
    text: str | None = None


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]
    name: str | None = None
    refusal: None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


class _Format(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    type: str


class _Chat(_Body):
    messages: list[_Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: _Format | None = None


B = TypeVar("B", bound=_Body)


def parse_json(body: bytes) -> dict[str, Any]:
    """The body as an object. Raises ProtocolError for what is none."""
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ProtocolError(f"the body is no JSON: {reason[:200]}") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"the body must be a JSON object, not {type(value).__name__}")
    return value


def read_completion(body: dict[str, Any], engine: Engine, limits: Limits) -> Ask:
    """An Ask of /v1/completions. Raises ProtocolError; may take long for long texts, which are tokenized here."""
    asked = _validated(_Completion, body, engine, limits)
    if asked.suffix:
        raise ProtocolError("suffix is not supported: the model writes only after the prompt", param="suffix")
    if asked.best_of is not None and asked.best_of != 1:
        raise ProtocolError("best_of is not supported: ask for n answers and choose among them", param="best_of")
    prompts = _prompts(asked.prompt, engine)
    echo = bool(asked.echo)
    if asked.max_tokens == 0 and not echo:
        raise ProtocolError("max_tokens may be 0 only with echo: there would be no answer", param="max_tokens")
    sampling = _sampling(asked, asked.logprobs)
    answers: list[Request] = []
    echoes: list[str] = []
    n = _answers(asked, len(prompts), limits)
    for text, ids in prompts:
        room = _room(ids, engine, "prompt")
        tokens = asked.max_tokens if asked.max_tokens is not None else min(COMPLETION_TOKENS, room, limits.max_tokens)
        _check_tokens(tokens, ids, room, engine, limits, "max_tokens")
        request = Request(tuple(ids), replace(sampling, max_tokens=tokens), echo and asked.logprobs is not None)
        answers += _repeated(request, n)
        echoes += [(engine.decode(ids) if text is None else text) if echo else ""] * n
    return _ask(asked, answers, len(prompts), echoes, echo=echo, chat=False, logprobs=asked.logprobs is not None)


def read_chat(body: dict[str, Any], engine: Engine, limits: Limits) -> Ask:
    """An Ask of /v1/chat/completions. Raises ProtocolError, also for a model without a chat template."""
    asked = _validated(_Chat, body, engine, limits)
    if asked.response_format is not None and asked.response_format.type != "text":
        raise ProtocolError("response_format other than text is not supported", param="response_format")
    if asked.top_logprobs is not None and not asked.logprobs:
        raise ProtocolError("top_logprobs needs logprobs=true", param="top_logprobs")
    messages = [{"role": _role(message.role), "content": _content(message)} for message in asked.messages]
    try:
        ids = engine.encode_chat(messages)
    except UserError as error:
        raise ProtocolError(str(error), param="messages") from None
    room = _room(ids, engine, "messages")
    name = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
    tokens = getattr(asked, name)
    if tokens is None:
        tokens = min(room, limits.max_tokens)
    elif tokens == 0:
        raise ProtocolError("max_tokens must be at least 1", param=name)
    _check_tokens(tokens, ids, room, engine, limits, name)
    sampling = _sampling(asked, (asked.top_logprobs or 0) if asked.logprobs else None)
    n = _answers(asked, 1, limits)
    answers = _repeated(Request(tuple(ids), replace(sampling, max_tokens=tokens)), n)
    return _ask(asked, answers, 1, [""] * n, echo=False, chat=True, logprobs=bool(asked.logprobs))


def _ask(
    asked: _Body, answers: list[Request], prompts: int, echoes: list[str], *, echo: bool, chat: bool, logprobs: bool
) -> Ask:
    usage = asked.stream_options is not None and asked.stream_options.include_usage
    if asked.stream_options is not None and not asked.stream:
        raise ProtocolError("stream_options needs stream=true", param="stream_options")
    stream = bool(asked.stream)
    return Ask(chat, asked.model, tuple(answers), prompts, tuple(echoes), echo, stream, usage, logprobs)


def _validated(kind: type[B], body: dict[str, Any], engine: Engine, limits: Limits) -> B:
    asked_model = body.get("model")
    if isinstance(asked_model, str) and asked_model != engine.name:
        message = f"the model {asked_model[:200]!r} is not served here: the one that is is {engine.name!r}"
        raise ProtocolError(message, status=404, param="model", code="model_not_found")
    # before pydantic looks at every element, which takes seconds and 100 times the memory
    prompt, most = body.get("prompt"), max(engine.max_model_len, limits.max_answers)
    if isinstance(prompt, list) and (len(prompt) > most or any(isinstance(p, list) and len(p) > most for p in prompt)):
        raise ProtocolError(f"prompt is a list of more than {most:,}: no prompt may be so long", param="prompt")
    try:
        asked = kind.model_validate({key: value for key, value in body.items() if key not in IGNORED})
    except ValidationError as error:
        raise _refusal(error) from None
    for name in ("frequency_penalty", "presence_penalty", "logit_bias"):
        if getattr(asked, name):
            raise ProtocolError(f"{name} is not supported: leave it out", param=name)
    stops = asked.stops()
    if len(stops) > MAX_STOPS or any(not text for text in stops):
        raise ProtocolError(f"stop must be at most {MAX_STOPS} texts, none of them empty", param="stop")
    return asked


def _refusal(error: ValidationError) -> ProtocolError:
    """The first thing pydantic found, in a sentence. Of a union it reports every branch: the name is what counts."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = [str(part) for part in first["loc"]]
    name = place[0] if place else None
    if first["type"] == "extra_forbidden":
        where = ".".join(place).encode("ascii", "backslashreplace").decode()  # it may hold half a character
        return ProtocolError(f"{where} is no setting that this server knows: leave it out", param=where)
    if first["type"] == "missing":
        return ProtocolError(f"{'.'.join(place)} is missing", param=".".join(place))
    if name == "prompt":
        return ProtocolError(
            "prompt must be a text, a list of texts, a list of token ids or a list of such lists", param=name
        )
    return ProtocolError(f"{'.'.join(place)}: {first['msg'][0].lower()}{first['msg'][1:]}", param=name)


def _prompts(
    prompt: str | list[str] | list[int] | list[list[int]], engine: Engine
) -> list[tuple[str | None, list[int]]]:
    """(text where it came as one, token ids) of each prompt."""
    if isinstance(prompt, str):
        texts: list[Any] = [prompt]
    elif prompt and isinstance(prompt[0], int):
        texts = [prompt]
    else:
        texts = list(prompt)
    if not texts:
        raise ProtocolError("prompt is empty: the model needs at least one token to go on from", param="prompt")
    return [(one, engine.encode(one)) if isinstance(one, str) else (None, one) for one in texts]


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _content(message: _Message) -> str:
    if isinstance(message.content, str):
        return message.content
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise ProtocolError(
                f"a part of the kind {part.type[:40]!r} is not supported: the model reads text", param="messages"
            )
    return "".join(part.text or "" for part in message.content)


def _sampling(asked: _Body, top_logprobs: int | None) -> Sampling:
    return Sampling(
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        top_k=asked.top_k if asked.top_k is not None and asked.top_k > 0 else None,
        seed=asked.seed,
        stop=asked.stops(),
        top_logprobs=top_logprobs,
        ignore_eos=bool(asked.ignore_eos),
    )


def _answers(asked: _Body, prompts: int, limits: Limits) -> int:
    n = asked.n or 1
    if prompts * n > limits.max_answers:
        raise ProtocolError(
            f"{prompts} prompts with n={n} are {prompts * n} answers but a request may ask for {limits.max_answers} "
            "(serve.max_concurrent): send several requests",
            param="n" if n > 1 else "prompt",
        )
    return n


def _repeated(request: Request, n: int) -> list[Request]:
    """n answers to one prompt; with a seed each draws by its own."""
    seed = request.sampling.seed
    if seed is None or n == 1:
        return [request] * n
    return [replace(request, sampling=replace(request.sampling, seed=seed + index)) for index in range(n)]


def _room(ids: Sequence[int], engine: Engine, param: str) -> int:
    """Tokens that an answer to this prompt may have. Raises ProtocolError for a prompt that cannot be one."""
    if not ids:
        raise ProtocolError(f"{param} is empty: the model needs at least one token to go on from", param=param)
    if min(ids) < 0 or max(ids) >= engine.vocab_size:
        raise ProtocolError(
            f"{param} holds a token id outside the vocabulary of {engine.vocab_size:,}: ids are 0 to "
            f"{engine.vocab_size - 1:,}",
            param=param,
        )
    if len(ids) > engine.max_model_len:
        raise _too_long(len(ids), 0, engine, param)
    return engine.max_model_len - len(ids)


def _check_tokens(tokens: int, ids: Sequence[int], room: int, engine: Engine, limits: Limits, param: str) -> None:
    if tokens > limits.max_tokens:
        raise ProtocolError(
            f"{param} is {tokens:,} but an answer may have {limits.max_tokens:,} tokens (serve.max_tokens)", param=param
        )
    if tokens > room or (tokens == 0 and param != "max_tokens"):
        raise _too_long(len(ids), tokens, engine, "messages" if param == "max_completion_tokens" else "prompt")


def _too_long(prompt: int, answer: int, engine: Engine, param: str) -> ProtocolError:
    return ProtocolError(
        f"This model's maximum context length is {engine.max_model_len:,} tokens but {prompt + answer:,} were asked "
        f"for ({prompt:,} of the prompt, {answer:,} of the answer): shorten the prompt or lower max_tokens",
        param=param,
        code="context_length_exceeded",
    )


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


# read_completion or read_chat
Reader = Callable[[dict[str, Any], Engine, Limits], Ask]
