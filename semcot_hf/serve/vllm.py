"""`VllmEngine`: implicit tokens are made here, and stock vLLM servers decode from prompt embeddings."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ..inference.decoding import decoding_config
from ..modeling.escalation_semcot import Escalation
from .choosing import temperature_of
from .front import Front
from .jobs import Job, Piece, RequestError
from .metrics import Observer
from .remote import EngineDown, RemoteEngine

logger = logging.getLogger(__name__)

Prompt = Tensor | list[int]
Found = TypeVar("Found")

# Seconds for which an engine that could not be reached comes last.
_AVOIDED = 2.0
# Prompts whose most probable next token is compared at start-up; the tolerance covers rounding in bfloat16.
_PROBES = ("The capital of France is", "2 + 3 =", "Once upon a time there was")
_TOLERANCE = 0.5


class VllmEngine:
    """Answers jobs by vLLM servers.

    Args:
        front: makes the embeddings.
        urls: addresses of servers of the same host; each job goes to the one with the fewest open requests.
        api_key: key of the servers.
        tokens_per_batch: budget for prompts x (longest prompt + implicit tokens) of one pass of the generator.
        max_queue: most jobs that wait for their implicit tokens.
        observer: gets times, tokens and load.
    """

    def __init__(
        self,
        front: Front,
        urls: Sequence[str],
        *,
        api_key: str | None = None,
        tokens_per_batch: int = 16384,
        max_queue: int = 256,
        observer: Observer | None = None,
    ):
        self.front, self._observer = front, observer or Observer()
        self.tokens_per_batch, self._max_queue = tokens_per_batch, max_queue
        self._engines = [RemoteEngine(url, api_key) for url in urls]
        self._avoided: dict[RemoteEngine, float] = {}
        config = decoding_config(front.model, front.tokenizer, max_new_tokens=1, temperature=0.0, stop=None)
        self._ends = list(cast(list[int] | None, config.eos_token_id) or [])
        # The jobs whose implicit tokens are to be made, and those for which they are being made.
        self._waiting: list[Job] = []
        self._making: list[Job] = []
        self._lock = threading.Lock()
        self._tasks: dict[Job, asyncio.Task[None]] = {}
        self._closed = False
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="semcot-implicit")
        self._loop = asyncio.new_event_loop()
        self._arrived = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, name="semcot-front", daemon=True)
        self._thread.start()
        # Known after `check`: most positions of a prompt with its answer, where the engines say it, and what of their
        # log-probabilities cannot be had.
        self.positions: int | None = None
        self._problems: dict[str, str] = {}
        self._gathering = asyncio.run_coroutine_threadsafe(self._gather(), self._loop)

    def submit(self, job: Job) -> None:
        """Queue a job; see `TransformersEngine.submit`."""
        if self._closed:
            raise RequestError(503, "The server is shutting down.", code="unavailable")
        with self._lock:
            waiting = self._number_waiting()
            if waiting >= self._max_queue:
                raise RequestError(429, f"{waiting} requests are waiting already: try again later.", code="queue_full")
            self._waiting.append(job)
        self._loop.call_soon_threadsafe(self._arrived.set)

    def cancel(self, job: Job) -> None:
        """Give up a job's place, the engine's too."""
        job.cancelled = True
        with self._lock:
            if job in self._waiting:
                self._waiting.remove(job)
        if not self._closed:
            self._loop.call_soon_threadsafe(self._cancel, job)

    def _cancel(self, job: Job) -> None:
        task = self._tasks.get(job)
        if task is not None:
            task.cancel()

    def close(self) -> None:
        """End; open jobs fail."""
        self._closed = True
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._maker.shutdown()
        self._loop.close()

    async def _end(self) -> None:
        self._gathering.cancel()
        for job in [*self._waiting, *self._making, *self._tasks]:
            self._fail(job, RequestError(503, "The server was stopped."))
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for engine in self._engines:
            await engine.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # Implicit tokens

    async def _gather(self) -> None:
        """Begin waiting jobs, as many at once as can be."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                self._making = self._next_jobs()
                try:
                    await self._begin(self._making)
                except Exception as error:  # It must not end the gathering, for which all later jobs would wait.
                    logger.exception("Requests could not be begun.", exc_info=error)
                    for job in self._making:
                        if job not in self._tasks:
                            self._fail(job, _failed())
                    self._making = []

    async def _begin(self, jobs: list[Job]) -> None:
        """Make the embeddings of jobs that can be computed at once, and start asking for their answers."""
        self._report()
        if not jobs:
            return
        prompts = await self._loop.run_in_executor(self._maker, self._prompts, jobs)
        for job, prompt in zip(jobs, prompts, strict=True):
            if isinstance(prompt, RequestError):
                self._fail(job, prompt)
            elif not job.cancelled:
                self._tasks[job] = self._loop.create_task(self._ask(job, prompt))
        self._making = []
        self._report()

    def _next_jobs(self) -> list[Job]:
        """Take the first waiting jobs that fit the budget and can be computed with the first one."""
        with self._lock:
            waiting = [job for job in self._waiting if not job.cancelled]
            jobs: list[Job] = []
            for job in waiting:
                longest = max(len(other.prompt) + other.count for other in [*jobs, job])
                if jobs and (job.kind != jobs[0].kind or (len(jobs) + 1) * longest > self.tokens_per_batch):
                    break
                jobs.append(job)
            self._waiting = waiting[len(jobs) :]
        return jobs

    def _prompts(self, jobs: list[Job]) -> Sequence[Prompt | RequestError]:
        """Return the embeddings of jobs, the ids of those for the host alone, or why there are none."""
        now = time.monotonic()
        for job in jobs:
            if not job.begun:
                self._observer.seconds("queue", now - job.arrived)
                job.begun = True
        if jobs[0].count == 0 or jobs[0].asks_host:
            return [job.prompt for job in jobs]
        start = time.perf_counter()
        prompts = self._made(jobs)
        self._observer.seconds("implicit", time.perf_counter() - start)
        return prompts

    def _made(self, jobs: list[Job]) -> Sequence[Tensor | RequestError]:
        try:
            return self.front.prompts(jobs)
        except Exception as error:  # The prompt that is to blame must not fail the others.
            if len(jobs) > 1:
                return [made for job in jobs for made in self._made([job])]
            if isinstance(error, ValueError):
                return [RequestError(400, str(error))]
            logger.exception("Implicit tokens could not be made.", exc_info=error)
            return [_failed()]

    # Answers

    async def _ask(self, job: Job, prompt: Prompt) -> None:
        """Have a job answered, in as many parts as its rule of escalation asks for."""
        start = time.perf_counter()
        try:
            if job.asks_host:
                await self._ask_host(job)
                if job.count:
                    self._put_back(job)
                    return
                prompt = job.prompt
            last = await self._answered(job, prompt)
            if job.goes_on:
                job.goes_on = False
                last = await self._answered(job, job.prompt)
            self._observer.tokens("prompt", job.prompt_tokens)
            self._observer.tokens("implicit", job.implicit_tokens)
            self._observer.tokens("completion", job.completion_tokens)
            self._observer.seconds("decode", time.perf_counter() - start)
            for piece in last:
                job.emit(piece)
        except RequestError as error:
            self._fail(job, error)
        except Exception as error:
            logger.exception("A request failed.", exc_info=error)
            self._fail(job, _failed())
        finally:
            self._tasks.pop(job, None)
            self._report()

    async def _ask_host(self, job: Job) -> None:
        """Find the signals of a question by the host's next token."""
        every = "host_entropy" in cast(Escalation, job.rule).all_signals

        async def ask(engine: RemoteEngine) -> dict[int, float]:
            return await engine.next_token(job.at_once_prompt, -1 if every else 1)

        logs = torch.tensor([*(await self._at_an_engine(ask)).values()], dtype=torch.float64)
        job.signals |= {
            "host_probability": float(logs.max().exp()),
            # Of all tokens, or else not read.
            "host_entropy": float(torch.special.entr(logs.exp()).sum()),
            "question_tokens": len(job.reasoning_prompt),
        }
        job.ask_router()

    def _put_back(self, job: Job) -> None:
        """Have a job wait for its implicit tokens before all others."""
        with self._lock:
            self._waiting.insert(0, job)
        self._arrived.set()

    async def _answered(self, job: Job, prompt: Prompt) -> Sequence[Piece]:
        """Emit a job's answers but for their last pieces, which are returned.

        What a rule may replace is held back until this is decided; nothing is returned for a job that goes on.
        """
        start, emitted = time.perf_counter(), False

        async def ask(engine: RemoteEngine) -> Sequence[Piece]:
            nonlocal emitted
            first, held, last = True, [], {}
            logprobs: list[float] | None = [] if job.held else None
            async for piece in engine.pieces(job, prompt, self._settings(job), logprobs):
                if first:
                    first = False
                    self._observer.seconds("prefill", time.perf_counter() - start)
                if piece.finish_reason is not None:
                    # With the usage, which comes after it.
                    last[piece.index] = piece
                elif job.held:
                    held.append(piece)
                else:
                    emitted = True
                    job.emit(piece)
            if len(last) != job.choices:
                raise EngineDown(f"{engine.url}: {len(last)} of {job.choices} answers")
            if logprobs is not None:
                if not logprobs:
                    raise EngineDown(f"{engine.url}: no log-probabilities")
                job.decide(logprobs)
                if job.goes_on:
                    return []
                for piece in held:
                    job.emit(piece)
            return list(last.values())

        return await self._at_an_engine(ask, lambda: emitted)

    async def _at_an_engine(
        self, ask: Callable[[RemoteEngine], Awaitable[Found]], emitted: Callable[[], bool] = lambda: False
    ) -> Found:
        """Return what the least busy engine answers; others are tried as long as nothing has been emitted."""
        tried, failures = set[RemoteEngine](), list[RequestError]()
        while True:
            engine = min(
                (engine for engine in self._engines if engine not in tried),
                key=lambda engine: (self._avoided.get(engine, 0) > time.monotonic(), engine.busy),
            )
            tried.add(engine)
            try:
                return await ask(engine)
            except EngineDown as error:
                self._avoided[engine] = time.monotonic() + _AVOIDED
                logger.warning("An engine failed: %s", error)
                failures.append(error.error)
                if emitted() or len(tried) == len(self._engines):
                    # That an engine is busy says more than that others are down.
                    raise min(failures, key=lambda failure: failure.status == 502) from error

    def _settings(self, job: Job) -> dict[str, Any]:
        """Return the fields of vLLM's request that say how tokens are chosen.

        What the request leaves out comes from the checkpoint, as in `generate`: vLLM would take it from the host.
        """
        sampling, own = job.sampling, self.front.model.generation_config
        temperature = temperature_of(self.front.model, sampling)
        fields: dict[str, Any] = {
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "seed": sampling.seed,
        }
        if temperature > 0:
            defaults = {"top_p": own.top_p or 1.0, "top_k": own.top_k or 0, "min_p": own.min_p or 0.0}
            fields |= {name: value for name, value in defaults.items() if fields[name] is None}
        penalty = own.repetition_penalty if sampling.repetition_penalty is None else sampling.repetition_penalty
        fields |= {"temperature": temperature, "repetition_penalty": penalty or 1.0, "stop_token_ids": self._ends}
        return {name: value for name, value in fields.items() if value is not None}

    @staticmethod
    def _fail(job: Job, error: RequestError) -> None:
        if not job.cancelled:
            job.emit(error)

    def _report(self) -> None:
        with self._lock:
            waiting = self._number_waiting()
        self._observer.load(waiting, len(self._tasks))

    def _number_waiting(self) -> int:
        """Return the number of jobs that wait to be begun; those between two parts of their work are not counted."""
        return sum(not job.begun for job in self._waiting)

    # The check at start-up

    def check(self) -> None:
        """Compare each engine's next tokens for embeddings with those for the same prompts' token ids.

        Families differ in where they scale word embeddings. Both ways are tried, and the right one is kept.

        Raises:
            ValueError: when an engine cannot be reached, serves another host or answers differently in both ways.
        """
        self._run(self._check())

    async def _check(self) -> None:
        for number, engine in enumerate(self._engines):
            ways = (True, False) if number == 0 and self.front.factor != 1.0 else (self.front.scaled,)
            try:
                for scaled in ways:
                    self.front.scaled = scaled
                    differs = await self._difference(engine)
                    if differs is None:
                        break
                else:
                    raise ValueError(
                        f"engine_url={engine.url!r}: its answer to embeddings differs from that to the same tokens "
                        f"({differs}): start it with `vllm serve HOST --enable-prompt-embeds`, where HOST is the "
                        "checkpoint's host."
                    )
                await self._look_at_signals(engine)
            except (EngineDown, RequestError) as error:
                raise ValueError(f"engine_url={engine.url!r} does not answer ({error}).") from error
        self.positions = min((engine.positions for engine in self._engines if engine.positions), default=None)

    async def _difference(self, engine: RemoteEngine) -> str | None:
        """Return how an engine's log-probabilities for embeddings differ from those for ids; `None` if they do not."""
        for text in _PROBES:
            ids = self.front.tokenizer(text)["input_ids"]
            of_ids, given = [await engine.next_token(prompt, 5) for prompt in (ids, self.front.words(ids))]
            first = max(of_ids, key=lambda token: of_ids[token])
            if first not in given or abs(given[first] - of_ids[first]) > _TOLERANCE:
                found = f"{given[first]:.2f}" if first in given else "less"
                return f"{text!r}: {of_ids[first]:.2f} and {found}"
        return None

    # Signals of escalation

    def signal_problem(self, name: str) -> str | None:
        """Return why the engines do not give a signal of `Escalation`; `None` if they do, or it is none of theirs."""
        return self._problems.get(name)

    async def _look_at_signals(self, engine: RemoteEngine) -> None:
        """Find out which signals an engine's log-probabilities give."""
        ids = self.front.tokenizer(_PROBES[0])["input_ids"]
        greedy, hot = [await engine.next_token(ids, 5, temperature) for temperature in (0.0, 2.0)]
        first = max(greedy, key=lambda token: greedy[token])
        problems: dict[str, str] = {}
        if greedy[first] > 1e-3 or first not in hot or abs(hot[first] - greedy[first]) > _TOLERANCE / 5:
            problem = "the engine's log-probabilities are not the model's own (it was started with --logprobs-mode)"
            names = ("answer_probability", "min_token_probability", "host_probability", "host_entropy")
            problems = dict.fromkeys(names, problem)
        rule = self.front.model.config.escalation
        if rule is not None and "host_entropy" in Escalation.from_dict(rule).all_signals:
            try:
                await engine.next_token(ids, -1)
            except RequestError:
                problem = "the engine tells the probabilities of few tokens only (with --max-logprobs -1, of all)"
                problems["host_entropy"] = problem
        for name, problem in problems.items():
            logger.warning("Escalation by %s is not possible at %s: %s.", name, engine.url, problem)
        self._problems |= problems


def _failed() -> RequestError:
    return RequestError(500, "The server failed; its log has the reason.", code="engine_failed")
