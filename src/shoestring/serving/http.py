"""The HTTP face: the OpenAI API's completions and chat over a live engine, with metrics and health."""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shoestring.errors import MissingExtra
from shoestring.generation.text_stream import TextStream
from shoestring.serving.api_request import ApiRequest, BadRequest, read_chat, read_completion
from shoestring.serving.driver import EngineDriver
from shoestring.serving.engine import Engine, Message
from shoestring.serving.events import Emit, Finish, Reason, Reject
from shoestring.serving.metrics import RequestTimes
from shoestring.serving.prometheus import ServingMetrics

MOST_BODY_BYTES = 2**20
_REASONS = {Reason.LENGTH: "length", Reason.STOP: "stop", Reason.CANCELLED: "stop", Reason.FAILED: "error"}


@dataclass(frozen=True)
class _Face:
    """How the answers of one of the two APIs look: one choice, whole or a piece of it."""

    prefix: str
    whole: str
    piece: str
    choice: Callable[[str], dict[str, Any]]
    part: Callable[[str], dict[str, Any]]


COMPLETION = _Face("cmpl", "text_completion", "text_completion", lambda t: {"text": t}, lambda t: {"text": t})
CHAT = _Face(
    "chatcmpl", "chat.completion", "chat.completion.chunk",
    lambda t: {"message": {"role": "assistant", "content": t}},
    lambda t: {"delta": {"content": t}},
)  # fmt: skip


@dataclass
class _Answer:
    """A request under way: pieces of text come out of `pieces`."""

    rid: str
    request: ApiRequest
    face: _Face
    times: RequestTimes
    reason: str = "stop"
    created: int = field(default_factory=lambda: int(time.time()))


class Server:
    """An engine, its tokenizer, and what the handlers share. name: of the model, as clients know it."""

    def __init__(self, engine: Engine, tokenizer: Any, name: str) -> None:
        self.engine, self.tokenizer, self.name = engine, tokenizer, name
        self.metrics = ServingMetrics(engine, name)
        self.driver = EngineDriver(engine, self.metrics.sample)
        self._numbers = itertools.count()

    def begin(self, body: Mapping[str, Any], face: _Face) -> tuple[_Answer, "asyncio.Queue[Message]"]:
        """Check a body and hand it to the engine. Raises: BadRequest."""
        read = read_chat if face is CHAT else read_completion
        request = read(body, self.tokenizer, self.name)
        if not self.driver.accepts:
            raise BadRequest("the server is stopping; try another one.", status=503)
        context = self.engine.model.cfg.max_position_embeddings
        most = request.max_new_tokens or (context or 2**31) - len(request.prompt)
        if context is not None and len(request.prompt) + max(1, most) > context:
            raise BadRequest(
                f"{len(request.prompt)} tokens of prompt and {max(1, most)} new ones are more than the "
                f"context of {context}.", "max_tokens",
            )  # fmt: skip
        answer = _Answer(
            f"{face.prefix}-{next(self._numbers)}", request, face, RequestTimes(self.engine.clock())
        )
        messages: asyncio.Queue[Message] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def add(engine: Engine) -> None:
            engine.add(
                answer.rid, request.prompt, most, sampling=request.sampling, seed=request.seed,
                stop_tokens=() if request.ignore_eos else None,
            )  # fmt: skip

        def listen(message: Message) -> None:
            if isinstance(message, Emit):
                answer.times.tokens.append(self.engine.clock())
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who would read
                loop.call_soon_threadsafe(messages.put_nowait, message)

        self.driver.submit(answer.rid, add, listen)
        return answer, messages

    async def pieces(self, answer: _Answer, messages: "asyncio.Queue[Message]") -> AsyncIterator[str]:
        """The text as it comes. A reader that leaves cancels the request. Raises: BadRequest if it is
        rejected.
        """
        text, ended = TextStream(self.tokenizer, answer.request.stop), False
        try:
            while not ended:
                message = await messages.get()
                if isinstance(message, Reject):
                    ended = True
                    raise BadRequest(
                        message.reason, status=429 if "try again later" in message.reason else 400
                    )
                if isinstance(message, Finish):
                    ended, answer.reason = True, _REASONS[message.reason]
                    continue
                for token in message.new_token_ids or ():
                    if piece := text.push(token):
                        yield piece
                if text.stopped is not None:
                    return
            if rest := text.finish():
                yield rest
        finally:
            if not ended:
                self.driver.cancel(answer.rid)
                answer.reason = "abort" if text.stopped is None else "stop"
            self.metrics.finished(answer.times, len(answer.request.prompt), answer.reason)

    def document(
        self, answer: _Answer, choice: dict[str, Any] | None, reason: str | None, kind: str
    ) -> dict[str, Any]:
        """One answer, or one event of a stream. choice: None for none."""
        choices = (
            [] if choice is None else [{"index": 0, **choice, "logprobs": None, "finish_reason": reason}]
        )
        return {
            "id": answer.rid, "object": kind, "created": answer.created, "model": self.name, "choices":
            choices
        }  # fmt: skip

    async def whole(self, answer: _Answer, messages: "asyncio.Queue[Message]") -> dict[str, Any]:
        """The answer in one piece."""
        text = "".join([piece async for piece in self.pieces(answer, messages)])
        found = self.document(answer, answer.face.choice(text), answer.reason, answer.face.whole)
        return found | {"usage": usage(answer)}

    async def events(self, answer: _Answer, messages: "asyncio.Queue[Message]") -> AsyncIterator[str]:
        """The answer as server-sent events."""
        face = answer.face
        try:
            async for piece in self.pieces(answer, messages):
                yield _event(self.document(answer, face.part(piece), None, face.piece))
        except BadRequest as error:
            yield _event(error_body(error))
            return
        end = {"delta": {}} if face is CHAT else face.part("")
        yield _event(self.document(answer, end, answer.reason, face.piece))
        if answer.request.include_usage:
            yield _event(self.document(answer, None, None, face.piece) | {"usage": usage(answer)})
        yield "data: [DONE]\n\n"


def usage(answer: _Answer) -> dict[str, int]:
    """Tokens of prompt and output."""
    prompt, new = len(answer.request.prompt), len(answer.times.tokens)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def error_body(error: BadRequest) -> dict[str, Any]:
    """An error as the OpenAI API words it."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.status}}


def _event(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


def create_app(server: Server) -> Any:
    """The application, for any ASGI server; it starts the engine, and at its end lets requests finish.

    Raises: MissingExtra without fastapi.
    """
    try:
        from fastapi import FastAPI, Request
        from fastapi.responses import JSONResponse, Response, StreamingResponse
    except ImportError as error:
        raise MissingExtra("serving over HTTP needs fastapi; pip install 'shoestring[serve]'") from error

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        server.driver.start()
        yield
        await asyncio.to_thread(server.driver.stop)

    async def answer(request: Any, face: _Face) -> Any:
        begun = server.begin(await _body(request), face)
        if not begun[0].request.stream:
            return await server.whole(*begun)
        return StreamingResponse(server.events(*begun), media_type="text/event-stream")

    async def refuse(_: Any, error: Any) -> Any:
        headers = {"Retry-After": "1"} if error.status in (429, 503) else None
        return JSONResponse(error_body(error), error.status, headers=headers)

    async def completions(request: Request) -> Any:
        return await answer(request, COMPLETION)

    async def chat(request: Request) -> Any:
        return await answer(request, CHAT)

    async def models() -> Any:
        return {"object": "list", "data": [{"id": server.name, "object": "model", "owned_by": "shoestring"}]}

    async def health() -> Any:
        return Response(status_code=200 if server.driver.accepts else 503)

    async def metrics() -> Any:
        return Response(server.metrics.text(), media_type=server.metrics.content_type)

    app = FastAPI(title="shoestring", lifespan=lifespan)
    app.add_exception_handler(BadRequest, refuse)
    for path, handler, method in (
        ("/v1/completions", completions, "POST"), ("/v1/chat/completions", chat, "POST"),
        ("/v1/models", models, "GET"), ("/health", health, "GET"), ("/metrics", metrics, "GET"),
    ):  # fmt: skip
        app.add_api_route(path, handler, methods=[method], response_model=None)
    return app


async def _body(request: Any) -> dict[str, Any]:
    raw = b""
    async for part in request.stream():
        raw += part
        if len(raw) > MOST_BODY_BYTES:
            raise BadRequest(f"the body is larger than {MOST_BODY_BYTES} bytes.", status=413)
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise BadRequest(f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object.")
    return body
