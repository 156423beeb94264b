"""The HTTP application: OpenAI's endpoints over an engine."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from .guard import Guard
from .jobs import Job, Piece, RequestError
from .metrics import Metrics
from .protocol import AnswerRequest, ChatRequest, CompletionRequest, LoadRequest
from .responses import Responses, error_body, event
from .service import Engine, Service

logger = logging.getLogger(__name__)

# Seconds between two looks at whether a waiting client is still there.
_LOOK = 0.2
# A field's name comes from the client; one that is longer is no name.
_LONGEST_NAME = 200
# nginx's status for clients that hung up; it is only counted.
_HUNG_UP = 499


class Feed:
    """Hands what an engine emits, from any thread, to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[Job, Piece | RequestError]] = asyncio.Queue()

    def put(self, job: Job, event: Piece | RequestError) -> None:
        """Add an event; a loop that has ended takes none."""
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (job, event))
        except RuntimeError:
            logger.debug("An answer came after the server had ended.")

    async def next(self, seconds: float) -> tuple[Job, Piece | RequestError] | None:
        """Return the next event, or `None` after so many seconds without one."""
        try:
            return await asyncio.wait_for(self._queue.get(), seconds)
        except TimeoutError:
            return None


def make_app(service: Service, engine: Engine, metrics: Metrics) -> FastAPI:
    """Return the application.

    Args:
        service: makes jobs of requests.
        engine: answers them; it is closed with the application.
        metrics: shown at /metrics.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    # The documentation pages load scripts from other hosts.
    app = FastAPI(title="semcot serve", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(Guard, config=service.config, metrics=metrics)

    @app.exception_handler(RequestError)
    async def _refused(_: Request, error: RequestError) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status in (429, 503) else {}
        return JSONResponse(error_body(error.message, error.status, error.param, error.code), error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        message, param = _first(error)
        return JSONResponse(error_body(message, 400, param), 400)

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        # FastAPI says no more of what is no UTF-8, or has numbers of thousands of digits.
        text = "The body cannot be read as JSON in UTF-8." if error.status_code == 400 else str(error.detail)
        return JSONResponse(error_body(text, error.status_code), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def _failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_body("The server failed; its log has the reason.", 500), 500)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _answer(service, engine, body, request)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        return await _answer(service, engine, body, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != service.config.model_name:
            raise service.unknown_model(name)
        return _model(service)

    @app.post("/load_model")
    async def load_model(body: LoadRequest) -> Response:
        if body.model not in (None, service.config.model_name):
            raise service.unknown_model(body.model)
        ready = {"status": "ready", "model": service.config.model_name, "cached": True}
        return Response(event(ready), media_type="text/event-stream")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def shown() -> Response:
        return Response(metrics.text(), media_type=metrics.content_type)

    return app


async def _answer(service: Service, engine: Engine, body: AnswerRequest, request: Request) -> Response:
    feed = Feed()
    jobs = await asyncio.to_thread(service.jobs, body, feed.put)
    if service.config.log_prompts:
        logger.info("request %s", json.dumps(body.model_dump(exclude_none=True)))
    responses = Responses(isinstance(body, ChatRequest), service.config.model_name, service.tokenizer, jobs)
    pieces = _pieces(service, engine, jobs, feed, request)
    if not body.stream:
        found = [pair async for pair in pieces]
        if not _complete(jobs, found):
            return Response(status_code=_HUNG_UP)
        whole = responses.whole(found)
        if service.config.log_prompts:
            logger.info("answer %s", whole["choices"])
        return JSONResponse(whole)
    # An error before the first piece has a status of its own.
    first = await anext(pieces, None)
    if first is None:
        return Response(status_code=_HUNG_UP)
    usage = body.stream_options is not None and body.stream_options.include_usage
    stream = _stream(responses, first, pieces, usage)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _pieces(
    service: Service, engine: Engine, jobs: list[Job], feed: Feed, request: Request
) -> AsyncIterator[tuple[Job, Piece]]:
    """Yield the pieces of all answers; stop early, and free the jobs' places, when the client has hung up."""
    deadline = time.monotonic() + service.config.request_timeout
    left = sum(job.choices for job in jobs)
    try:
        for job in jobs:
            engine.submit(job)
        look = time.monotonic() + _LOOK
        while left:
            found = await feed.next(_LOOK)
            now = time.monotonic()
            if now >= deadline:
                raise RequestError(
                    504, f"The answer took longer than {service.config.request_timeout:g} seconds.", code="timeout"
                )
            if now >= look:
                look = now + _LOOK
                if await request.is_disconnected():
                    return
            if found is None:
                continue
            job, got = found
            if isinstance(got, RequestError):
                raise got
            left -= got.finish_reason is not None
            yield job, got
    finally:
        for job in jobs:
            engine.cancel(job)


async def _stream(
    responses: Responses, first: tuple[Job, Piece], pieces: AsyncIterator[tuple[Job, Piece]], usage: bool
) -> AsyncIterator[str]:
    for chunk in responses.chunks(*first):
        yield chunk
    try:
        async for job, piece in pieces:
            for chunk in responses.chunks(job, piece):
                yield chunk
    except RequestError as error:
        yield event(error_body(error.message, error.status, error.param, error.code))
        return
    if usage:
        yield responses.ending()
    yield "data: [DONE]\n\n"


def _complete(jobs: list[Job], found: list[tuple[Job, Piece]]) -> bool:
    return sum(piece.finish_reason is not None for _, piece in found) == sum(job.choices for job in jobs)


def _first(error: RequestValidationError) -> tuple[str, str | None]:
    """Return the message and the field of a request's first error; what was sent is not repeated."""
    problems = error.errors()
    if problems[0]["type"] == "json_invalid":
        return "The body is not JSON.", None
    if isinstance(error.body, bytes):
        return "The body must be sent with the header 'Content-Type: application/json'.", None
    # An unknown field says more than the alternatives of a union that it does not fit.
    problem = next((item for item in problems if item["type"] == "extra_forbidden"), problems[0])
    field = _field(problem, error.body)
    # So does what is wrong within a list than that it is no text.
    deeper = [item for item in problems if _field(item, error.body).startswith(f"{field}.")]
    problem = max(deeper, key=lambda item: _field(item, error.body).count("."), default=problem)
    field = _field(problem, error.body)
    if problem["type"] == "extra_forbidden":
        return f"{field!r} is no field of this API: remove it, or correct its name.", field
    texts = dict.fromkeys(
        item["msg"].removeprefix("Value error, ") for item in problems if _field(item, error.body) == field
    )
    return f"{field or 'body'}: {'; or: '.join(texts)}.", field or None


def _field(problem: dict[str, Any], body: Any) -> str:
    """Return the field that one of pydantic's errors is about, without the members of unions that it names, too.

    Args:
        problem: the error.
        body: what was sent.

    >>> body = {"messages": [{"content": [{"text": "Hi"}]}]}
    >>> place = ("body", "messages", 0, "content", "list[TextPart]", 0, "type")
    >>> _field({"type": "missing", "loc": place}, body)
    'messages.0.content.0.type'
    """
    parts: list[str] = []
    here = body
    for part in problem["loc"][1:]:
        if part in here if isinstance(here, dict) else isinstance(here, list) and isinstance(part, int):
            here = here[part]
            parts.append(str(part))
    if problem["type"] == "missing":
        parts += map(str, problem["loc"][1:][-1:])
    name = ".".join(parts)
    return name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "..."


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.config.model_name, "object": "model", "created": 0, "owned_by": "semcot_hf"}
