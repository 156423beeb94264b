"""`Service`: from a request of the API to jobs for an engine, with the limits that the server sets."""

import reprlib
import threading
from collections.abc import Callable
from typing import Any, Protocol

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from ..inference.context import candidate_problem
from ..inference.decoding import stop_texts
from ..inference.escalating import escalation_argument
from ..inference.prompting import encode_prompt, prompt_text
from ..inference.settings import answer_prompt_of
from ..modeling.configuration_semcot import text_config
from ..modeling.escalation_semcot import Escalation
from ..modeling.few_shot_semcot import plain_ids
from ..modeling.splicing_semcot import context_of
from .config import ServeConfig
from .jobs import Job, Piece, RequestError
from .protocol import AnswerRequest, ChatRequest, CompletionRequest

# What OpenAI's completions API gives requests without a limit.
COMPLETION_TOKENS = 16

# Values of clients in messages: no longer than this.
_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxlong = 200, 40

Emit = Callable[[Job, Piece | RequestError], None]


class Engine(Protocol):
    """What answers jobs."""

    def submit(self, job: Job) -> None:
        """Queue a job, or raise a RequestError."""

    def cancel(self, job: Job) -> None:
        """Give up a job's place."""

    def close(self) -> None:
        """End; open jobs fail."""


class Service:
    """Makes jobs of requests.

    Args:
        model_config: the model's configuration.
        tokenizer: its tokenizer.
        config: the server's limits.
        makes_tokens: whether the model makes implicit tokens.
        can_be_read: whether these can be read as text.
        signal_problem: called with a signal's name and a number of implicit tokens, why the engine does not know this
            signal of `Escalation`, or `None` if it does; itself `None` for a model that replaces no answers by
            explicit reasoning.
        positions: most positions of a prompt with its answer, where the engine takes fewer than the host has.
        generation_config: of the model, whose limit of new tokens and stop texts requests get that leave theirs out.

    Raises:
        ValueError: for a tokenizer that does not encode the answer prompt as the model was trained with it, and for a
            rule of escalation that the engine cannot follow.
    """

    def __init__(
        self,
        model_config: PreTrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        config: ServeConfig,
        *,
        makes_tokens: bool,
        can_be_read: bool,
        signal_problem: Callable[[str, int], str | None] | None = None,
        positions: int | None = None,
        generation_config: GenerationConfig | None = None,
    ):
        self._positions, self._signal_problem = positions, signal_problem
        self._defaults = GenerationConfig() if generation_config is None else generation_config
        self._model_config, self.tokenizer, self.config = model_config, tokenizer, config
        self._makes_tokens, self._can_be_read = makes_tokens, can_be_read
        self._ends: list[int] = list(getattr(model_config, "answer_prompt_ids", None) or [])
        self._examples: list[int] | None = getattr(model_config, "few_shot_ids", None)
        self._answer_prompt = answer_prompt_of(model_config, tokenizer) if self._ends else ""
        self._escalation = escalation_argument(config.escalate)
        if self._escalation is not None:
            try:
                self._followed(self._escalation, self._tokens())
            except ValueError as error:
                raise ValueError(f"escalate={config.escalate!r}: {error}") from error
        # Fast tokenizers may be used by one thread at a time.
        self._lock = threading.Lock()
        probe = self._chat_prompt([{"role": "user", "content": "What is 2 + 2?"}], 0)
        if self._ends and probe[-len(self._ends) :] != self._ends:
            raise ValueError(
                f"model={config.model!r}: its tokenizer ends a prompt on the ids {probe[-len(self._ends) :]}, but the "
                f"model was trained with {self._ends} (config.answer_prompt_ids): save the model's tokenizer with it."
            )

    def jobs(self, request: AnswerRequest, emit: Emit) -> list[Job]:
        """Return a job for each prompt of a request.

        Raises:
            RequestError: for fields that do not fit the model or the limits.
        """
        if request.model not in (None, self.config.model_name):
            raise self.unknown_model(request.model)
        count, wants_thought = self._implicit(request)
        field = "messages" if isinstance(request, ChatRequest) else "prompt"
        # Before the prompts are encoded, which takes long for many.
        answers = request.choices * (len(request.prompts()) if isinstance(request, CompletionRequest) else 1)
        if answers > self.config.max_choices:
            param, number = ("n" if request.choices > 1 else "prompt"), _SHORT.repr(answers)
            raise RequestError(
                400, f"{param}: {number} answers are more than the {self.config.max_choices} of a request.", param
            )
        prompts = self._prompts(request, count)
        top: int | None
        if isinstance(request, ChatRequest):
            if request.top_logprobs and not request.logprobs:
                raise RequestError(400, "top_logprobs needs logprobs=true.", "top_logprobs")
            top = (request.top_logprobs or 0) if request.logprobs else None
        else:
            assert isinstance(request, CompletionRequest)
            top = request.logprobs
        rule = self._rule(request, prompts, count, field)
        made = []
        for prompt in prompts:
            job = Job(
                prompt,
                lambda event: None,
                count=count,
                max_new_tokens=self._limit(request, prompt, count, field),
                choices=request.choices,
                sampling=request.sampling(),
                stops=tuple(stop_texts(self._defaults)) if request.stop is None else request.stops,
                top_logprobs=top,
                wants_thought=wants_thought,
                streamed=bool(request.stream),
                rule=rule,
            )
            if rule is not None:
                job.at_once_prompt = plain_ids(prompt, self._examples)
                job.reasoning_prompt = job.at_once_prompt[: len(job.at_once_prompt) - len(self._ends)]
                room = self._contexts(0)[0]
                left = rule.max_reasoning_tokens if room is None else room - len(job.reasoning_prompt)
                # A client's limit holds for the answer that it gets, whichever way this is made.
                most = request.asked_tokens() or self.config.max_answer_tokens
                job.reasoning_tokens = min(rule.max_reasoning_tokens, most, left)
            job.emit = _bound(emit, job)
            made.append(job)
        return made

    def unknown_model(self, name: str | None) -> RequestError:
        """Return the error for a model of another name than the server's."""
        text = f"model={_SHORT.repr(name)} is not served here: use {self.config.model_name!r}."
        return RequestError(404, text, "model", "model_not_found")

    def _tokens(self) -> int:
        return int(getattr(self._model_config, "num_implicit_tokens", 0)) if self._makes_tokens else 0

    def _implicit(self, request: AnswerRequest) -> tuple[int, bool]:
        asked = request.implicit_tokens
        default = self._tokens()
        if asked is None:
            return default, False
        if not self._makes_tokens and asked != 0:
            raise RequestError(
                400, f"implicit_tokens={asked!r}: this model makes none: leave the field out.", "implicit_tokens"
            )
        if asked == "text":
            if not self._can_be_read:
                raise RequestError(
                    400,
                    "implicit_tokens='text': this model's implicit tokens are no words, which only "
                    "projection='vocabulary' makes, and it has no step decoder that reads them: ask for a number.",
                    "implicit_tokens",
                )
            return default, True
        return int(asked), False

    def _rule(self, request: AnswerRequest, prompts: list[list[int]], count: int, field: str) -> Escalation | None:
        """Return when the answers are replaced by explicit reasoning."""
        ends = self._ends
        asked, problem = request.escalation, None
        if request.choices > 1:
            problem = f"n={request.choices} answers cannot be asked for with it: leave one of the two out."
        elif ends and any(len(ids) <= len(ends) or ids[-len(ends) :] != ends for ids in prompts):
            problem = f"{field} must end on the answer prompt {self._answer_prompt!r}, without which the host reasons."
        if asked is None and problem is None and count > 0:
            # The server's own rule is for these requests only.
            asked = self._escalation
        if asked is None or asked is False:
            return None
        if problem is not None:
            raise RequestError(400, f"escalation: {problem}", "escalation")
        try:
            return self._followed(asked, count)
        except ValueError as error:
            raise RequestError(400, f"escalation: {error}", "escalation") from error

    def _followed(self, asked: bool | float, count: int) -> Escalation:
        """Return the rule that is asked for, for answers with `count` implicit tokens.

        Raises:
            ValueError: if the engine cannot follow it.
        """
        if self._signal_problem is None or not self._ends:
            raise ValueError("this server does not escalate: leave it out, or serve a SemCoT checkpoint.")
        rule = Escalation.of(asked, self._model_config.escalation)
        for name in rule.all_signals:
            problem = self._signal_problem(name, count)
            if problem is not None:
                raise ValueError(
                    f"the checkpoint's rule goes by the signal {name!r}, but {problem}: calibrate it with other "
                    "--signals."
                )
        return rule

    def _prompts(self, request: AnswerRequest, count: int) -> list[list[int]]:
        if isinstance(request, ChatRequest):
            try:
                return [self._chat_prompt([message.plain() for message in request.messages], count)]
            except Exception as error:  # Templates raise errors of many kinds.
                raise RequestError(
                    400, f"messages: the model's chat template does not take them ({error}).", "messages"
                ) from error
        assert isinstance(request, CompletionRequest)
        found = []
        for prompt in request.prompts():
            with self._lock:
                ids = list(self.tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else prompt
            if not ids:
                raise RequestError(400, "prompt: must have at least one token.", "prompt")
            found.append(ids)
        if not found:
            raise RequestError(400, "prompt: must hold a text or token ids.", "prompt")
        size = self._model_config.get_text_config().vocab_size
        if any(not 0 <= token < size for ids in found for token in ids):
            raise RequestError(400, f"prompt: token ids must lie from 0 to {size - 1}.", "prompt")
        return found

    def _chat_prompt(self, messages: list[dict[str, str]], count: int) -> list[int]:
        with self._lock:
            # Worked examples show thoughts, which the host alone has none of.
            text = prompt_text(self.tokenizer, messages, few_shot=count > 0)
            return encode_prompt(self.tokenizer, text.removesuffix(self._answer_prompt) + self._answer_prompt)

    def _limit(self, request: AnswerRequest, prompt: list[int], count: int, field: str) -> int:
        """Return the most new tokens of an answer."""
        if len(prompt) > self.config.max_prompt_tokens:
            raise RequestError(
                400,
                f"{field}: {len(prompt)} tokens are more than the {self.config.max_prompt_tokens} of a prompt.",
                field,
                "context_length_exceeded",
            )
        asked, chat = request.asked_tokens(), isinstance(request, ChatRequest)
        given = (name for name in ("max_completion_tokens", "max_tokens") if getattr(request, name, None) is not None)
        param = next(given, "max_tokens" if asked is None else "generation_config")
        if asked is not None and not 1 <= asked <= self.config.max_answer_tokens:
            problem = f"{_SHORT.repr(asked)} new tokens must lie from 1 to {self.config.max_answer_tokens}."
            raise RequestError(400, f"{param}: {problem}", param)
        default = self._defaults.max_new_tokens or (self.config.max_answer_tokens if chat else COMPLETION_TOKENS)
        new = asked or min(default, self.config.max_answer_tokens)
        room, generator_room = self._contexts(count)
        left = None if room is None else room - len(prompt) - count
        if left is not None and (left < 1 or asked is not None and asked > left):
            wanted = f" and {asked} new tokens" if asked is not None else ""
            raise RequestError(
                400,
                f"{field}: a prompt of {len(prompt)} tokens, {count} implicit tokens{wanted} are more than the "
                f"context of {room}: shorten the prompt or lower {param}.",
                field if left < 1 else param,
                "context_length_exceeded",
            )
        shown = sum(map(len, getattr(self._model_config, "thought_prompt_ids", None) or []))
        question = 0 if generator_room is None else len(plain_ids(prompt, self._examples)) - len(self._ends)
        if generator_room is not None and shown + question + count > generator_room:
            raise RequestError(
                400,
                f"{field}: a prompt of {len(prompt)} tokens and {count} implicit tokens are more than the generator's "
                f"context of {generator_room}: shorten it, or ask for implicit_tokens=0.",
                field,
                "context_length_exceeded",
            )
        unread = candidate_problem(self._model_config, prompt, count)
        if unread is not None:
            text = f"{field}: {unread}: shorten it, or ask for implicit_tokens=0."
            raise RequestError(400, text, field, "context_length_exceeded")
        return new if left is None else min(new, left)

    def _contexts(self, count: int) -> tuple[int | None, int | None]:
        """Return the positions of the host and, where it reads the prompts' own ids, of the generator."""
        config: Any = self._model_config
        reads_ids = count > 0 and not getattr(config, "separate_generator_tokenizer", True)
        generator = getattr(config, "generator_config", None) if reads_ids else None
        own = context_of(config.get_text_config())
        room = min((size for size in (own, self._positions) if size is not None), default=None)
        return room, generator and context_of(text_config(generator))


def _bound(emit: Emit, job: Job) -> Callable[[Piece | RequestError], None]:
    return lambda event: emit(job, event)
