"""`RemoteEngine`: one `vllm serve HOST --enable-prompt-embeds`, asked through its completions API."""

import base64
import io
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import torch
from torch import Tensor

from .jobs import Job, Piece, RequestError, TokenLogprob

_CONNECT_SECONDS = 10.0
# vLLM's place of a field that its own checks refuse.
_PLACE = re.compile(r"'loc': 'body\.(\w+)")


class EngineDown(Exception):
    """The engine does not answer: it cannot be reached, is too busy, or broke off.

    Args:
        text: what happened.
        error: what the client gets where no other engine answers either.
    """

    def __init__(self, text: str, error: RequestError | None = None):
        super().__init__(text)
        unreachable = "The engine cannot be reached: try again later."
        self.error = error or RequestError(502, unreachable, code="engine_unreachable")


def encoded(embeds: Tensor) -> str:
    """Return embeddings as vLLM takes them: base64 of what `torch.save` writes."""
    # vLLM takes no float64; what is saved is a tensor of its own, not a view of a larger one.
    embeds = embeds.detach().cpu()
    embeds = embeds.float() if embeds.dtype == torch.float64 else embeds.clone()
    file = io.BytesIO()
    torch.save(embeds, file)
    return base64.b64encode(file.getvalue()).decode()


class RemoteEngine:
    """An engine behind an address.

    Args:
        url: its address, such as http://127.0.0.1:8000.
        api_key: its key, or `None`.

    Attributes:
        busy: number of requests that it is answering.
        positions: most positions of a prompt with its answer, where the engine says it.
    """

    def __init__(self, url: str, api_key: str | None = None):
        self.url, self.busy = url.rstrip("/").removesuffix("/v1"), 0
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
        timeout = httpx2.Timeout(None, connect=_CONNECT_SECONDS)
        # Proxies of the environment are for other hosts; what goes to the engine must not pass through them.
        self._client = httpx2.AsyncClient(headers=headers, limits=limits, timeout=timeout, trust_env=False)
        self._model: str | None = None
        self.positions: int | None = None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def model(self) -> str:
        """Return the name by which the engine serves the host.

        Raises:
            EngineDown: when it does not answer.
        """
        if self._model is None:
            try:
                answer = await self._client.get(f"{self.url}/v1/models", timeout=_CONNECT_SECONDS)
                answer.raise_for_status()
                card = answer.json()["data"][0]
                self._model, self.positions = str(card["id"]), card.get("max_model_len")
            except (httpx2.HTTPError, ValueError, LookupError) as error:
                raise EngineDown(f"{self.url}: {error!r}") from error
        return self._model

    async def next_token(self, prompt: Tensor | Sequence[int], top: int, temperature: float = 0.0) -> dict[int, float]:
        """Return the log-probabilities of the `top` most probable next tokens by id; of all tokens with -1.

        Args:
            prompt: embeddings (length, hidden size), or token ids.
            top: number of tokens.
            temperature: of the token that is chosen, which may be among them too.

        Raises:
            EngineDown, RequestError: as in `pieces`.
        """
        body = {**_prompt(prompt), "max_tokens": 1, "temperature": temperature}
        body |= {"logprobs": top, "return_tokens_as_token_ids": True}
        async with self._answer(body) as answer:
            [choice] = json.loads(await answer.aread())["choices"]
            [token] = _logprobs(choice["logprobs"])
            return dict(token.top)

    async def pieces(
        self,
        job: Job,
        prompt: Tensor | Sequence[int],
        settings: dict[str, Any],
        logprobs: list[float] | None = None,
    ) -> AsyncIterator[Piece]:
        """Yield the pieces of a job's answers; its number of completion tokens is raised with the last one.

        Args:
            job: the job.
            prompt: embeddings (length, hidden size), or token ids.
            settings: further fields of the request.
            logprobs: gets the log-probability of each generated token, one that ends the answer included.

        Raises:
            EngineDown: when the engine cannot be reached, is too busy, fails, or its connection breaks.
            RequestError: when it refuses the request.
        """
        # Greedy answers are all the same, and vLLM refuses to make several.
        copies = job.choices if settings.get("temperature") == 0 else 1
        body = {
            **settings,
            **_prompt(prompt),
            "n": job.choices // copies,
            "max_tokens": job.max_new_tokens,
            "stop": list(job.stops),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if job.top_logprobs is not None or logprobs is not None:
            body |= {"logprobs": job.top_logprobs or 0, "return_tokens_as_token_ids": True}
        async with self._answer(body) as answer:
            ended, completion = False, 0
            async for line in answer.aiter_lines():
                if not line.startswith("data:"):
                    continue
                text = line[5:].strip()
                ended = text == "[DONE]"
                if ended:
                    break
                chunk = json.loads(text)
                if "error" in chunk:
                    raise self._failed("it sent an error instead of an answer")
                if chunk.get("usage"):
                    completion = copies * int(chunk["usage"]["completion_tokens"])
                for choice in chunk.get("choices", ()):
                    tokens, reason = _logprobs(choice.get("logprobs")), choice["finish_reason"]
                    if logprobs is not None:
                        logprobs += [token.logprob for token in tokens]
                    if job.top_logprobs is None:
                        tokens = ()
                    elif reason == "stop" and not isinstance(choice.get("stop_reason"), str):
                        # A token that ends the answer is no part of it.
                        tokens = tokens[:-1]
                    if choice["text"] or tokens or reason:
                        for index in range(copies) if copies > 1 else (choice["index"],):
                            yield Piece(index, choice["text"], tokens, _reason(reason))
            if not ended:
                raise EngineDown(f"{self.url}: the answer broke off")
            job.completion_tokens += completion

    @asynccontextmanager
    async def _answer(self, body: dict[str, Any]) -> AsyncIterator[httpx2.Response]:
        """Send a request for a completion; yield the response, and turn what goes wrong into errors of this module."""
        body["model"] = await self.model()
        self.busy += 1
        try:
            async with self._client.stream("POST", f"{self.url}/v1/completions", json=body) as answer:
                if answer.status_code != 200:
                    raise self._refusal(answer.status_code, (await answer.aread()).decode(errors="replace"))
                yield answer
        except (httpx2.TransportError, ValueError, LookupError, TypeError) as error:
            self._model = None
            raise EngineDown(f"{self.url}: {error!r}") from error
        finally:
            self.busy -= 1

    def _refusal(self, status: int, text: str) -> Exception:
        if status in (429, 503):
            busy = RequestError(status, "The engine is too busy: try again later.", code="engine_busy")
            return EngineDown(f"{self.url}: it answered with status {status}", busy)
        if status >= 500 or status in (401, 403, 404):
            return self._failed(f"it answered with status {status}")
        param = None
        try:
            content = json.loads(text)
            found = content.get("error", content)
            message, param = str(found.get("message", text)), found.get("param")
        except (ValueError, AttributeError):
            message = text
        if param is None and (place := _PLACE.search(message)):
            param = place.group(1)
        return RequestError(400, f"The engine refuses the request: {message[:500]}", param)

    def _failed(self, text: str) -> EngineDown:
        # A restarted engine may serve under another name.
        self._model = None
        return EngineDown(
            f"{self.url}: {text}", RequestError(502, f"The engine failed: {text}.", code="engine_failed")
        )


def _prompt(prompt: Tensor | Sequence[int]) -> dict[str, Any]:
    return {"prompt_embeds": encoded(prompt)} if isinstance(prompt, Tensor) else {"prompt": list(prompt)}


def _reason(reason: str | None) -> str | None:
    return reason if reason in (None, "stop", "length") else "stop"


def _logprobs(found: dict[str, Any] | None) -> tuple[TokenLogprob, ...]:
    if not found or not found.get("tokens"):
        return ()
    tops = found.get("top_logprobs") or [None] * len(found["tokens"])
    return tuple(
        TokenLogprob(
            _id(token),
            logprob,
            tuple(sorted(((_id(other), value) for other, value in (top or {}).items()), key=lambda pair: -pair[1])),
        )
        for token, logprob, top in zip(found["tokens"], found["token_logprobs"], tops, strict=True)
    )


def _id(text: str) -> int:
    """Return the id in vLLM's form of a token.

    >>> _id("token_id:17")
    17
    """
    return int(text.removeprefix("token_id:"))
