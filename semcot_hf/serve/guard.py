"""`Guard`: what each request passes first: API key, name of the host, size of the body; counts and log lines."""

import asyncio
import hmac
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from .config import ServeConfig, is_local
from .metrics import Metrics
from .responses import error_body

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
# Paths that are counted by name; all others are counted together.
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/load_model", "/health", "/metrics")
# A name or an address, which is in brackets if it has colons, and maybe a port.
_HOST = re.compile(r"^\[?(.*?)\]?(?::\d+)?$")


class Guard:
    """ASGI middleware around the application.

    Args:
        app: the application.
        config: key and limits.
        metrics: counts the requests.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], config: ServeConfig, metrics: Metrics):
        self._app, self._config, self._metrics = app, config, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 0
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        read, limit, complete = 0, self._config.max_body_bytes, False

        async def limited() -> MutableMapping[str, Any]:
            nonlocal read, complete
            if complete:
                # Waits until the client hangs up.
                return await receive()
            left = start + self._config.request_timeout - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, left))
            except TimeoutError as error:
                text = f"The body did not arrive within {self._config.request_timeout:g} seconds."
                raise HTTPException(408, text) from error
            complete = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > limit:
                raise HTTPException(413, f"The body is larger than {limit} bytes: shorten it.")
            return message

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        refusal = self._refusal(scope["path"], headers)
        try:
            if refusal is not None:
                code, text = refusal
                extra = {"WWW-Authenticate": "Bearer"} if code == 401 else {}
                await JSONResponse(error_body(text, code), code, extra)(scope, receive, noted)
            else:
                await self._app(scope, limited, noted)
        finally:
            seconds = time.monotonic() - start
            path = scope["path"] if scope["path"] in PATHS else "other"
            self._metrics.request(path, status, seconds)
            logger.info("%s %s %d in %.3f s", scope["method"], path, status, seconds)

    def _refusal(self, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        """Return status and text of a request that is not let through, or `None`."""
        if path == "/health":
            return None
        key = self._config.api_key
        if key is not None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
                return 401, "The API key is missing or wrong: send it as 'Authorization: Bearer KEY'."
        elif not is_local(_HOST.sub(r"\1", headers.get("host", "")).lower()):
            # A page in a browser could reach a server without a key by a name of its own that leads here.
            return 403, f"Host {headers.get('host', '')!r} is not this machine: use 127.0.0.1, or set an API key."
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._config.max_body_bytes:
            return 413, f"The body is larger than {self._config.max_body_bytes} bytes: shorten it."
        return None
