"""The responses of OpenAI's API: whole answers, chunks of streamed ones, usage and log-probabilities."""

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from .jobs import Job, Piece, TokenLogprob


class Responses:
    """Writes the responses to one request.

    Args:
        chat: whether the request is a chat.
        model: name of the model.
        tokenizer: the host's.
        jobs: one for each prompt.
    """

    def __init__(self, chat: bool, model: str, tokenizer: PreTrainedTokenizerBase, jobs: Sequence[Job]):
        self._chat, self._tokenizer, self._jobs = chat, tokenizer, jobs
        self._head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": model,
        }
        # Where the text of each choice's next token starts, for the completions API.
        self._offsets: dict[int, int] = {}
        # The choices of which a chunk has been written.
        self._opened: set[int] = set()

    def usage(self) -> dict[str, int]:
        """Return the numbers of prompt, implicit and completion tokens, and their sum."""
        prompt = sum(job.prompt_tokens for job in self._jobs)
        implicit = sum(job.implicit_tokens for job in self._jobs)
        completion = sum(job.completion_tokens for job in self._jobs)
        return {
            "prompt_tokens": prompt,
            "implicit_tokens": implicit,
            "completion_tokens": completion,
            "total_tokens": prompt + implicit + completion,
        }

    def whole(self, pieces: Sequence[tuple[Job, Piece]]) -> dict[str, Any]:
        """Return the response with all answers, in their order."""
        choices = []
        for number, (job, index) in enumerate(self._numbered()):
            own = [piece for owner, piece in pieces if owner is job and piece.index == index]
            text = "".join(piece.text for piece in own)
            tokens = [token for piece in own for token in piece.tokens]
            content = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
            choice = {"index": number, **content, "finish_reason": own[-1].finish_reason}
            choices.append({**choice, "logprobs": self._logprobs(number, job, tokens), **_thought(job), **_route(job)})
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, "usage": self.usage()}

    def chunks(self, job: Job, piece: Piece) -> list[str]:
        """Return the chunks of a piece of a streamed answer.

        Before an answer's first piece stands a chunk with the role (chats) and what the implicit tokens say, which is
        not known earlier: the thoughts of a request's prompts need not be made at once.
        """
        number, choices = self._numbered().index((job, piece.index)), []
        thought = _thought(job)
        if number not in self._opened and (self._chat or thought):
            content = {"delta": {"role": "assistant", "content": ""}} if self._chat else {"text": ""}
            choices.append({"index": number, **content, "logprobs": None, "finish_reason": None, **thought})
        self._opened.add(number)
        content = {"delta": {"content": piece.text} if piece.text else {}} if self._chat else {"text": piece.text}
        logprobs = self._logprobs(number, job, piece.tokens) if piece.tokens else None
        choice = {"index": number, **content, "logprobs": logprobs, "finish_reason": piece.finish_reason}
        choices.append(choice | (_route(job) if piece.finish_reason else {}))
        return [self._chunk([choice]) for choice in choices]

    def ending(self) -> str:
        """Return the chunk with the usage."""
        return self._chunk([], usage=self.usage())

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> str:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return event({**self._head, "object": kind, "choices": choices, **more})

    def _numbered(self) -> list[tuple[Job, int]]:
        return [(job, index) for job in self._jobs for index in range(job.choices)]

    def _logprobs(self, number: int, job: Job, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if job.top_logprobs is None:
            return None
        if self._chat:
            return {
                "content": [
                    {
                        **self._token(token.token, token.logprob),
                        "top_logprobs": [self._token(*pair) for pair in token.top],
                    }
                    for token in tokens
                ]
            }
        texts = [self._text(token.token) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offsets.get(number, 0))
            self._offsets[number] = offsets[-1] + len(text)
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self._text(other): value for other, value in token.top} for token in tokens],
            "text_offset": offsets,
        }

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def _text(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))


def event(content: dict[str, Any]) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def error_body(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return the body of an error in OpenAI's form."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _route(job: Job) -> dict[str, Any]:
    return {} if job.rule is None else {"route": job.route, "confidence": job.confidence}


def _thought(job: Job) -> dict[str, str]:
    return {} if job.thought is None else {"implicit_text": job.thought}
