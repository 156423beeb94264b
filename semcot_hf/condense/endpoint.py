"""Condensation by an OpenAI-compatible or Hub endpoint: concurrent requests, retries, no reply bought twice."""

import email.utils
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import httpx2
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

from .journal import Reply
from .requests import Fail, Keep, Request, messages

# Temporary: request timeout, conflict, too early, too many requests; and all faults of the server, 5xx.
_TEMPORARY = (408, 409, 425, 429)
# Faults of this one request, such as a question beyond the model's context.
_OF_REQUEST = (400, 413, 422)
_FAILURES_IN_A_ROW = 10


class EndpointSource:
    """Ask a chat model over HTTP, with `huggingface_hub.InferenceClient`.

    The address and the key come from the environment unless given: SEMCOT_BASE_URL with SEMCOT_API_KEY, else
    OPENAI_BASE_URL with OPENAI_API_KEY; without an address, the Hub's inference providers with the Hub token. A key is
    only sent to the address that it belongs to.

    A request without a reply within `timeout`, with a broken connection or with HTTP 408, 409, 425, 429 or 5xx is
    retried after the server's Retry-After, or else after 1, 2, 4... seconds (times a random 0.5 to 1), up to
    `max_tries` requests in all. A rate limit makes all threads wait. A question without a reply is recorded as failed;
    10 in a row end the run, and so do refusals such as a wrong key. Replies after the timeout may have been billed.

    Args:
        model: the model's name at the endpoint, or its Hub id.
        base_url, api_key: override the environment.
        concurrency: number of simultaneous requests.
        timeout: seconds to wait for the server.
        max_tries: maximum HTTP requests for one reply.
        max_new_tokens: maximum tokens of one reply.
        temperature: of second and later replies; the first is greedy.
        backoff: seconds before the second try.
        max_wait: maximum seconds between two tries, also when Retry-After is longer.

    Raises:
        ValueError: for numbers out of range.
    """

    is_rule = False
    from_question = False

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        concurrency: int = 8,
        timeout: float = 60.0,
        max_tries: int = 6,
        max_new_tokens: int = 512,
        temperature: float = 0.7,
        backoff: float = 1.0,
        max_wait: float = 60.0,
    ):
        limits = {"concurrency": concurrency, "max_tries": max_tries, "max_new_tokens": max_new_tokens}
        for name, value in limits.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if timeout <= 0:
            raise ValueError(f"timeout={timeout} must be more than 0 seconds.")
        self.model, self.concurrency, self.timeout, self.max_tries = model, concurrency, timeout, max_tries
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.backoff, self.max_wait = backoff, max_wait
        base_url, api_key = endpoint_of(base_url, api_key, os.environ)
        self.client = InferenceClient(base_url=base_url, api_key=api_key, timeout=timeout)
        self.fingerprint: Mapping = {
            "source": "endpoint",
            "model": model,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
        }
        self._resume_at = 0.0
        self._failures_in_a_row = 0

    def complete(self, requests: Sequence[Request], keep: Keep, fail: Fail) -> None:
        """Send all `requests`; `keep` and `fail` are called from several threads, at once for each reply.

        Raises:
            ValueError: when the endpoint refuses, or fails on 10 questions in a row.
        """
        stop = threading.Event()
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="condense") as pool:
            futures = [pool.submit(self._answer_or_stop, request, keep, fail, stop) for request in requests]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                # Requests under way will be billed: leaving the pool waits for their replies.
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _answer_or_stop(self, request: Request, keep: Keep, fail: Fail, stop: threading.Event) -> None:
        try:
            self._answer(request, keep, fail, stop)
        except BaseException:
            stop.set()
            raise

    def _answer(self, request: Request, keep: Keep, fail: Fail, stop: threading.Event) -> None:
        problem = ""
        for tried in range(self.max_tries):
            if stop.wait(max(0.0, self._resume_at - time.monotonic())) or stop.is_set():
                return
            wait = min(self.max_wait, self.backoff * 2**tried * random.uniform(0.5, 1.0))
            try:
                reply = self._ask(request)
            except InferenceTimeoutError:
                problem = f"no reply within {self.timeout:g} seconds"
            except HfHubHTTPError as error:
                status = error.response.status_code
                problem = f"HTTP {status}: {_first_line(error)}"
                if status in _OF_REQUEST:
                    break
                if status not in _TEMPORARY and status < 500:
                    raise ValueError(
                        f"the endpoint refuses model={self.model!r} with {problem}. Check the model's name, the "
                        "address (SEMCOT_BASE_URL or OPENAI_BASE_URL) and the key (SEMCOT_API_KEY or OPENAI_API_KEY)."
                    ) from error
                asked = retry_after(error.response.headers)
                wait = wait if asked is None else min(self.max_wait, asked)
                if status == 429:
                    self._resume_at = max(self._resume_at, time.monotonic() + wait)
            except httpx2.RequestError as error:
                problem = f"{type(error).__name__}: {_first_line(error)}"
            except _BadReply as error:
                problem = str(error)
            else:
                self._failures_in_a_row = 0
                keep(request, reply)
                return
            if tried + 1 < self.max_tries and stop.wait(wait):
                return
        fail(request, problem)
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= _FAILURES_IN_A_ROW:
            raise ValueError(
                f"the endpoint failed on {self._failures_in_a_row} questions in a row, the last time with {problem}. "
                "All replies are kept: rerun the same command to continue."
            )

    def _ask(self, request: Request) -> Reply:
        try:
            output = self.client.chat_completion(
                messages(request),
                model=self.model,
                max_tokens=self.max_new_tokens,
                temperature=self.temperature if request.earlier else 0.0,
            )
            choice, usage = output.choices[0], output.usage
            text = choice.message.content or ""
        except HfHubHTTPError:
            raise
        # A failing proxy may send anything with status 200.
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            raise _BadReply(
                f"a reply that is not a chat completion ({type(error).__name__}: {_first_line(error)})"
            ) from error
        return Reply(
            text,
            cut_off=choice.finish_reason == "length",
            input_tokens=(usage.prompt_tokens or 0) if usage else 0,
            output_tokens=(usage.completion_tokens or 0) if usage else 0,
        )


class _BadReply(Exception):
    """A reply with status 200 that is not a chat completion."""


def endpoint_of(
    base_url: str | None, api_key: str | None, environ: Mapping[str, str]
) -> tuple[str | None, str | None]:
    """Return address and key; (None, None) means the Hub with its own token.

    >>> endpoint_of(None, None, {"OPENAI_BASE_URL": "https://a/v1", "OPENAI_API_KEY": "k", "SEMCOT_API_KEY": "other"})
    ('https://a/v1', 'k')
    >>> endpoint_of("http://127.0.0.1:8000/v1", None, {"OPENAI_API_KEY": "k"})
    ('http://127.0.0.1:8000/v1', 'none')
    """
    if base_url is None and not environ.get("SEMCOT_BASE_URL") and environ.get("OPENAI_BASE_URL"):
        base_url, api_key = environ["OPENAI_BASE_URL"], api_key or environ.get("OPENAI_API_KEY")
    else:
        base_url = base_url or environ.get("SEMCOT_BASE_URL") or None
        api_key = api_key or environ.get("SEMCOT_API_KEY") or None
    # Without a key the client would send the Hub token, which other servers must not see.
    return base_url, "none" if base_url and not api_key else api_key


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait by the header Retry-After (a number or a date); `None` when missing or unreadable.

    >>> retry_after({"retry-after": "1.5"}), retry_after({}), retry_after({"retry-after": "soon"})
    (1.5, None, None)
    >>> retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"})
    0.0
    """
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
