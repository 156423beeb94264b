"""`TransformersEngine`: answers requests in this process, in a batch that they join and leave between steps."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..inference.decoding import decoding_config, is_out_of_memory
from ..inference.prompting import pad_left
from ..inference.settings import makes_implicit_tokens
from ..modeling.offloading_semcot import execution_device
from ..modeling.question_cache_semcot import without_defaults
from ..modeling.thoughts_semcot import word_entropy
from .choosing import Chooser
from .jobs import AnswerText, Job, Piece, RequestError, Sampling, TokenLogprob
from .metrics import Observer
from .running import RunningBatch
from .thoughts import Thought, make_thoughts, no_thoughts

logger = logging.getLogger(__name__)


class Row:
    """One answer of a job that is being decoded."""

    def __init__(self, job: Job, index: int, tokenizer: PreTrainedTokenizerBase, chooser: Chooser):
        self.job, self.index, self.chooser = job, index, chooser
        self.text = AnswerText(tokenizer, job.stops)
        self.reported: list[TokenLogprob] = []
        self.held = job.held
        self.logprobs: list[float] = []
        self.last = self.count = 0
        self.finished = False

    def add(self, token: int, ends: Sequence[int], logprob: TokenLogprob | None) -> None:
        """Add a generated token, and report the text that it makes final."""
        self.last, self.count = token, self.count + 1
        self.job.completion_tokens += 1
        reason = None
        if token in ends:
            reason = "stop"
        else:
            if logprob is not None:
                self.reported.append(logprob)
            if self.text.add(token):
                reason = "stop"
            elif self.count >= self.job.max_new_tokens:
                reason = "length"
        self.finished = reason is not None
        if not self.finished and (self.held or not self.job.streamed):
            return
        if self.held:
            self.job.decide(self.logprobs)
            if self.job.goes_on:
                return
        text = self.text.take(end=self.finished)
        if text or self.finished:
            self.job.emit(Piece(self.index, text, tuple(self.reported), reason))
            self.reported = []


class TransformersEngine:
    """Answers jobs in one thread: those that wait join the running batch between two steps, up to a budget of tokens.

    Args:
        model: a `SemCoTForCausalLM` or any causal LM.
        tokenizer: its tokenizer.
        tokens_per_batch: budget for answers x (longest prompt + implicit tokens + answer limit). A request that is
            larger than it runs alone. Halved when memory is too small for several.
        max_queue: most jobs that wait.
        observer: gets times, tokens and load.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        tokens_per_batch: int = 16384,
        max_queue: int = 256,
        observer: Observer | None = None,
    ):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.tokens_per_batch, self._max_queue, self._observer = tokens_per_batch, max_queue, observer or Observer()
        self._device = execution_device(model.get_input_embeddings())
        self._batch = RunningBatch(cast(PreTrainedModel, getattr(model, "host", model)))
        self._rows: list[Row] = []
        self._plain: set[Sampling] = set()
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        config = decoding_config(model, tokenizer, max_new_tokens=1, temperature=0.0, stop=None)
        self._ends: list[int] = list(cast(list[int] | None, config.eos_token_id) or [])
        self._pad = cast(int, config.pad_token_id)
        self._thread = threading.Thread(target=self._run, name="semcot-engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job, whose pieces are emitted from the engine's thread.

        Raises:
            RequestError: for ids outside the vocabulary; when the queue is full, or the engine has been closed.
        """
        known = self.model.config.get_text_config().vocab_size
        if not job.prompt or min(job.prompt) < 0 or max(job.prompt) >= known:
            raise RequestError(400, f"The prompt must have token ids from 0 to {known - 1}.", "prompt")
        with self._changed:
            if self._closed or not self._thread.is_alive():
                raise RequestError(503, "The server is shutting down.", code="unavailable")
            waiting = self._number_waiting()
            if waiting >= self._max_queue:
                raise RequestError(429, f"{waiting} requests are waiting already: try again later.", code="queue_full")
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Give up a job's place; it emits nothing further once the current step has ended."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
            self._changed.notify()

    def close(self) -> None:
        """End the thread after its current step; open jobs fail."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    # The thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._waiting or self._rows):
                    self._report()
                    self._changed.wait()
                if self._closed:
                    break
                jobs = self._admitted()
            self._report()
            try:
                if jobs:
                    self._start(jobs)
                self._leave()
                if self._rows:
                    self._step()
                    self._leave()
            except Exception as error:  # A failing batch must not end the server.
                self._fail([row.job for row in self._rows], error)
                self._rows = []
                self._batch.keep([])
        self._fail([*(row.job for row in self._rows), *self._waiting], RequestError(503, "The server was stopped."))

    def _report(self) -> None:
        self._observer.load(self._number_waiting(), len(self._rows))

    def _number_waiting(self) -> int:
        """Return the number of jobs that wait to be begun; those between two parts of their work are not counted."""
        with self._changed:
            return sum(not job.begun for job in self._waiting)

    def _admitted(self) -> list[Job]:
        """Take the waiting jobs that fit beside the running ones, in the order of their arrival."""
        running = [row.job for row in self._rows]
        jobs: list[Job] = []
        while self._waiting:
            job = self._waiting[0]
            if not job.cancelled:
                # One that memory was too small for beside others is begun alone.
                if (running or jobs) and job.crowded or jobs and jobs[0].crowded:
                    break
                if not self._batch.joins and (running or jobs and jobs[0].kind != job.kind):
                    break
                rows = len(running) + sum(other.choices for other in jobs) + job.choices
                longest = max(other.longest for other in [*running, *jobs, job])
                if rows > job.choices and rows * longest > self.tokens_per_batch:
                    break
                jobs.append(job)
            self._waiting.popleft()
        return jobs

    def _start(self, jobs: list[Job]) -> None:
        """Compute the prompts of jobs, and choose the first token of each answer."""
        now = time.monotonic()
        for job in jobs:
            if not job.begun:
                self._observer.seconds("queue", now - job.arrived)
                self._observer.tokens("prompt", job.prompt_tokens)
                job.begun = True
        pending, later = _grouped(jobs), list[Job]()
        while pending:
            group, rows = pending.pop(0), len(self._rows)
            try:
                if group[0].asks_host:
                    self._ask_host(group)
                else:
                    self._prefill(group)
                for job in group:
                    job.crowded = False
            except Exception as error:  # The prompt that is to blame must not fail the others.
                full = isinstance(error, RuntimeError) and is_out_of_memory(error)
                if full and (rows or len(group) > 1):
                    self.tokens_per_batch = max(1, self.tokens_per_batch // 2)
                self._rows = self._rows[:rows]
                self._batch.keep(list(range(rows)))
                if len(group) == 1:
                    if full and rows:
                        group[0].crowded = True
                        later += group
                    else:
                        self._fail(group, error)
                    continue
                middle = len(group) // 2
                # The routes of some may have been decided before the failure.
                parts = [part for half in (group[:middle], group[middle:]) for part in _grouped(half)]
                now_on = len(parts) if self._batch.joins else 1
                pending[:0] = parts[:now_on]
                later[:0] = [job for part in parts[now_on:] for job in part]
        self._put_back(later)

    @torch.no_grad()
    def _ask_host(self, jobs: list[Job]) -> None:
        """Find the signals of questions by the host's next tokens; those that it answers at once begin.

        On hosts whose batches none can join, they wait for a batch of their own.
        """
        ids, mask = (part.to(self._device) for part in pad_left([job.at_once_prompt for job in jobs], self._pad))
        start = time.perf_counter()
        outputs = self._generated(ids, mask, no_thoughts(len(jobs)))
        self._observer.seconds("prefill", time.perf_counter() - start)
        logits = outputs.logits[0]
        likely, entropy = logits.softmax(dim=-1, dtype=torch.float32).amax(dim=-1), word_entropy(logits)
        for job, probability, nats in zip(jobs, likely.tolist(), entropy.tolist(), strict=True):
            tokens = len(job.reasoning_prompt)
            job.signals |= {"host_probability": probability, "host_entropy": nats, "question_tokens": tokens}
            job.ask_router()
        rows = [row for row, job in enumerate(jobs) if job.route == "at_once" and self._batch.joins]
        if rows:
            lengths = [len(jobs[row].prompt) for row in rows]
            self._batch.join(outputs.past_key_values, ids.shape[1], lengths, rows)
            self._begin([(jobs[row], 0) for row in rows], logits[rows])
        self._put_back([job for row, job in enumerate(jobs) if row not in rows])

    @torch.no_grad()
    def _prefill(self, jobs: list[Job]) -> None:
        numbers = [number for number, job in enumerate(jobs) for _ in range(job.choices)]
        # Where rows of a cache cannot be chosen, each answer gets a row of its own from the start.
        asked = jobs if self._batch.joins else [jobs[number] for number in numbers]
        ids, mask = (part.to(self._device) for part in pad_left([job.prompt for job in asked], self._pad))
        start = time.perf_counter()
        thoughts = make_thoughts(
            self.model, self.tokenizer, ids, mask, jobs[0].count, [j.wants_thought for j in asked]
        )
        made = time.perf_counter()
        outputs = self._generated(ids, mask, thoughts)
        self._observer.seconds("implicit", made - start)
        self._observer.seconds("prefill", time.perf_counter() - made)
        rows = numbers if self._batch.joins else list(range(len(numbers)))
        lengths = [len(job.prompt) + size for job, size in zip(asked, thoughts.lengths, strict=True)]
        width = ids.shape[1] + (0 if thoughts.embeddings is None else max(thoughts.lengths))
        self._batch.join(outputs.past_key_values, width, [lengths[row] for row in rows], rows)
        new = []
        for place, (number, row) in enumerate(zip(numbers, rows, strict=True)):
            job, index = jobs[number], place - numbers.index(number)
            if job.route != "explicit" and index == 0:
                job.implicit_tokens, job.thought = thoughts.lengths[row], thoughts.texts[row]
                job.signals |= thoughts.signals[row]
                self._observer.tokens("implicit", job.implicit_tokens)
            new.append((job, index))
        self._begin(new, outputs.logits[0][rows])

    def _begin(self, answers: list[tuple[Job, int]], logits: Tensor) -> None:
        """Add a row for each answer, (job, number among the job's), and choose its first token."""
        new = []
        for job, index in answers:
            chooser = Chooser(
                self.model, self.tokenizer, job.prompt, job.sampling, job.max_new_tokens, index, self._plain
            )
            new.append(Row(job, index, self.tokenizer, chooser))
        self._rows += new
        self._choose(new, logits)

    def _generated(self, ids: Tensor, mask: Tensor, thoughts: Thought) -> Any:
        """Return the output of transformers' `generate` for one token: the prompts' cache and next-token logits."""
        config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=1,
            use_cache=True,
            return_dict_in_generate=True,
            output_logits=True,
            pad_token_id=self._pad,
        )
        options: dict[str, Any] = {}
        if thoughts.embeddings is not None:
            options = {"implicit_embeddings": thoughts.embeddings, "implicit_attention_mask": thoughts.mask}
        elif makes_implicit_tokens(self.model):
            options = {"num_implicit_tokens": 0}
        generate = cast(Callable[..., Any], self.model.generate)
        with without_defaults(self.model):
            return generate(input_ids=ids, attention_mask=mask, generation_config=config, **options)

    def _step(self) -> None:
        start = time.perf_counter()
        logits = self._batch.step([row.last for row in self._rows])
        self._choose(self._rows, logits)
        self._observer.seconds("decode", time.perf_counter() - start)

    def _choose(self, rows: Sequence[Row], logits: Tensor) -> None:
        """Choose a token of each unfinished row from next-token logits (rows, vocabulary)."""
        best = logits.argmax(dim=-1).tolist()
        for row, row_logits, likely in zip(rows, logits, best, strict=True):
            if row.finished or row.job.cancelled:
                continue
            try:
                self._extend(row, row_logits, likely)
            except Exception as error:  # The settings that are to blame must not fail the others.
                self._fail([row.job], error)
                row.job.cancelled = True

    def _extend(self, row: Row, logits: Tensor, best: int) -> None:
        """Add a token to a row; see `Chooser.choose`."""
        token, top = row.chooser.choose(logits, best), row.job.top_logprobs
        if row.held:
            row.logprobs.append(float(logits.float().log_softmax(dim=-1)[token]))
        self._observer.tokens("completion", 1)
        row.add(token, self._ends, None if top is None else _logprob(logits, token, top))

    def _leave(self) -> None:
        """Drop the answers that are complete or whose client has left."""
        kept = [number for number, row in enumerate(self._rows) if not (row.finished or row.job.cancelled)]
        if kept and not self._batch.joins:
            return
        self._batch.keep(kept)
        ended = [row.job for row in self._rows if row.finished and row.job.goes_on]
        self._rows = [self._rows[number] for number in kept]
        for job in ended:
            job.goes_on = False
        self._put_back(ended)

    def _put_back(self, jobs: Sequence[Job]) -> None:
        """Have jobs wait before all others."""
        with self._changed:
            self._waiting.extendleft(reversed(jobs))

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        if not isinstance(error, RequestError):
            if isinstance(error, ValueError):
                error = RequestError(400, str(error))
            elif isinstance(error, RuntimeError) and is_out_of_memory(error):
                error = RequestError(503, "Memory is too small for this request: shorten it.", code="out_of_memory")
            else:
                logger.exception("A batch failed.", exc_info=error)
                error = RequestError(500, "The engine failed; the server's log has the reason.", code="engine_failed")
        for job in dict.fromkeys(jobs):
            if not job.cancelled:
                job.emit(error)


def _grouped(jobs: Sequence[Job]) -> list[list[Job]]:
    """Return jobs in groups that can be computed in one batch each."""
    groups: dict[tuple[int, bool], list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.kind, []).append(job)
    return list(groups.values())


def _logprob(logits: Tensor, token: int, top: int) -> TokenLogprob:
    logprobs = logits.float().log_softmax(dim=-1)
    values, ids = logprobs.topk(min(top, len(logprobs)))
    return TokenLogprob(token, float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
