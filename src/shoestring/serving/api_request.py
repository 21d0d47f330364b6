"""What a client of the HTTP face may ask, checked field by field: the OpenAI API's completions and chat."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoestring.errors import ShoestringError
from shoestring.generation.sampling import Sampling

MOST_TOKENS = 16
"""New tokens of a completion that says nothing, as in the OpenAI API."""
_ONLY = {
    "n": (1, None),
    "best_of": (1, None),
    "echo": (False, None),
    "logprobs": (None, False),
    "suffix": (None, ""),
}


class BadRequest(ShoestringError, ValueError):
    """A request that cannot be answered. status: of HTTP. param: the field at fault, if one is."""

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.status = param, status


@dataclass(frozen=True)
class ApiRequest:
    """A request that can be served. prompt: token ids. max_new_tokens: None: as many as fit the context."""

    prompt: tuple[int, ...]
    max_new_tokens: int | None
    sampling: Sampling
    seed: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    ignore_eos: bool


def read_completion(body: Mapping[str, Any], tokenizer: Any, model: str) -> ApiRequest:
    """A body of /v1/completions. Raises: BadRequest naming the field."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
    elif isinstance(prompt, list) and all(_is(int, token) for token in prompt):
        ids = prompt
    else:
        raise BadRequest("prompt must be one text or one list of token ids.", "prompt")
    return _read(body, tuple(ids), model, _whole(body, "max_tokens", MOST_TOKENS, 1))


def read_chat(body: Mapping[str, Any], tokenizer: Any, model: str) -> ApiRequest:
    """A body of /v1/chat/completions. Raises: BadRequest naming the field."""
    messages = body.get("messages")
    fits = (
        isinstance(messages, list)
        and messages
        and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in messages
        )
    )
    if not fits:
        raise BadRequest("messages must be a list of objects with a role and a content of text.", "messages")
    if not getattr(tokenizer, "chat_template", None):
        raise BadRequest("this model has no chat template; use /v1/completions.", "messages")
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    return _read(body, ids, model, _whole(body, name, None, 1))


def _read(body: Mapping[str, Any], prompt: tuple[int, ...], model: str, most: int | None) -> ApiRequest:
    if body.get("model", model) != model:
        raise BadRequest(f"there is no model {body['model']!r}; this server has {model!r}.", "model", 404)
    if not prompt:
        raise BadRequest("the prompt is empty; give at least one token to go on from.", "prompt")
    for name, allowed in _ONLY.items():
        if body.get(name) not in allowed:
            raise BadRequest(f"{name}={body[name]!r} is not supported; leave it out.", name)
    stop = body.get("stop") or ()
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if any(not isinstance(text, str) or not text for text in stops):
        raise BadRequest("stop must be a text or a list of texts, none of them empty.", "stop")
    options = body.get("stream_options") or {}
    return ApiRequest(
        prompt, most, _sampling(body), _whole(body, "seed", 0, 0) or 0, stops,
        bool(body.get("stream", False)), bool(options.get("include_usage", False)),
        bool(body.get("ignore_eos", False)),
    )  # fmt: skip


def _sampling(body: Mapping[str, Any]) -> Sampling:
    values = {
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0
    }  # fmt: skip
    for name, usual in values.items():
        given = body.get(name)
        if given is None:
            continue
        if not _is(int if name == "top_k" else (int, float), given):
            raise BadRequest(f"{name}={given!r} must be a number.", name)
        values[name] = type(usual)(given)
    try:
        return Sampling(**values)  # type: ignore[arg-type]
    except ValueError as error:
        raise BadRequest(str(error), str(error).partition("=")[0]) from error


def _whole(body: Mapping[str, Any], name: str, usual: int | None, least: int) -> int | None:
    value = body.get(name)
    if value is None:
        return usual
    if not _is(int, value) or value < least:
        raise BadRequest(f"{name}={value!r} must be a whole number of {least} or more.", name)
    return int(value)


def _is(kind: Any, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
