"""`Answerer`: from questions to answers, for evaluation, `semcot generate`, lm-eval, condensing and the bench."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.candidates_semcot import candidates
from ..modeling.offloading_semcot import execution_device
from ..modeling.question_cache_semcot import hidden_settings
from ..modeling.thoughts_semcot import Thoughts, single_words
from .batches import batch_within, plan_batches
from .context import Context
from .decoding import (
    NO_PENALTIES,
    decoding_config,
    greedy_defaults,
    is_out_of_memory,
    seeded,
    stop_texts,
    synchronized_time,
    used_tokens,
)
from .escalating import SignalFunction, answers_by_rule, longest_answer, rule_of
from .prompting import Query, encode_prompts, pad_left, with_instruction
from .settings import (
    IMPLICIT_METHODS,
    TEXT_METHODS,
    THOUGHT_LIMIT,
    THOUGHT_METHODS,
    AnswerSettings,
    answer_prompt_of,
    check_method,
    makes_implicit_tokens,
    reports_thoughts,
    thinks_in_words,
    with_overrides,
)
from .shared_prefix import SharedPrefix, find_shared_prefix
from .thoughts import thought_fields
from .word_methods import WordMethod, WrittenThought, written_thought

Prompts = Sequence[Sequence[int]]
# Embeddings (questions, k, host hidden size), or a pair of these and their mask (questions, k).
EmbeddingsFor = Callable[[list[int]], torch.Tensor | tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Args:
        output: the new text without special tokens.
        new_tokens: number of generated tokens, the end-of-sequence token included, and with them the thought that
            the answering model has written itself ("condensed", "generator").
        seconds: wall time of the batch divided by its number of questions.
        finished: whether the model ended the answer, before a limit of new tokens or the end of the context.
        implicit_tokens: number of implicit tokens where it differs from question to question, else `None`.
        thought_ended: whether the thought was ended before the limit; `True` for thoughts of fixed length.
        thought: the words of the thought, where it has words and they are kept.
        thought_tokens: the number of their tokens.
        lost_probability: (mean, largest) share of a token's mixture that is on words that the host lacks, for a
            generator of another tokenizer that thinks in words; else `None`.
        thought_as_text: whether so much was lost that the thought was handed over as text.
        confidence, route: of "escalated", or where signals are asked for: see `SemCoTEscalatedOutput`.
        signals: by name, those that the route has; `None` where they are not known.
    """

    output: str
    new_tokens: int
    seconds: float
    finished: bool
    implicit_tokens: int | None = None
    thought_ended: bool = True
    thought: str | None = None
    thought_tokens: int | None = None
    lost_probability: tuple[float, float] | None = None
    thought_as_text: bool = False
    confidence: float | None = None
    route: str | None = None
    signals: dict[str, float] | None = None


class Answerer:
    """Answers questions by one method, in batches padded on the left; the model is put into evaluation mode.

    Args:
        model: a `SemCoTForCausalLM` or any causal LM.
        tokenizer: its tokenizer.
        settings: see `AnswerSettings`.
        tokens_per_batch: budget for questions x (longest prompt + implicit tokens + `max_new_tokens`); `None` sets
            none. It is halved for good whenever memory is too small for a batch.

    Attributes:
        method, num_implicit_tokens, answer_prompt, chat, stop: what the settings mean for this model and tokenizer;
            `num_implicit_tokens` is 0 for methods without a limit of their thoughts.
        keeps_thoughts: whether answers with implicit tokens that are mixtures of words carry these words.
        extra: most tokens that a prompt gets in addition, implicit and new ones.
        halvings: how often memory was too small.
        prefix: the `SharedPrefix` that batches start from, or `None`; see `share_prefix`.
        host_columns: prompt columns, padding included, that the host has computed.
        rule: the `Escalation` of "escalated" or of signals, or `None`.
        signal_functions: of signals that the model does not compute itself; see `generate`'s `escalation_signals`.

    Raises:
        ValueError: for a method that the model does not have, or settings that do not fit method, model or tokenizer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: AnswerSettings | None = None,
        *,
        tokens_per_batch: int | None = None,
    ):
        self.model, self.tokenizer, self.tokens_per_batch = model, tokenizer, tokens_per_batch
        self.settings = settings = settings or AnswerSettings()
        self.method = check_method(model, settings)
        count = settings.num_implicit_tokens
        limited = self.method not in ("no_cot", "cot", "generator_no_cot")
        if not limited and count is not None:
            raise ValueError(
                f"num_implicit_tokens={count} needs a method with implicit tokens or a thought, such as "
                f"method='semcot', got method={self.method!r}: leave it out."
            )
        if count is None:
            count = getattr(model.config, "num_implicit_tokens", 0) if limited else 0
            count = max(count, THOUGHT_LIMIT) if self.method == "condensed" else count
        self.num_implicit_tokens: int = count
        if settings.chat and not tokenizer.chat_template:
            raise ValueError("chat=True needs a tokenizer with a chat template: pass chat=False, or set a template.")
        self.chat = bool(tokenizer.chat_template) if settings.chat is None else settings.chat
        prompt = settings.answer_prompt
        self.answer_prompt = answer_prompt_of(model.config, tokenizer, self.chat) if prompt is None else prompt
        self.stop = None if self.chat else settings.stop
        # For a small host, setting the mode of all modules takes as long as one layer; reading it is faster.
        if any(module.training for module in model.modules()):
            model.eval()
        self.device = execution_device(model.get_input_embeddings())
        self.rule = rule_of(model, settings, self.method)
        self.signal_functions: dict[str, SignalFunction] = {}
        reasons = self.method == "cot"
        self.limit = settings.reasoning_limit if reasons else settings.max_new_tokens
        own_limit = reasons and settings.max_reasoning_tokens is not None
        self._limit_name = "max_reasoning_tokens" if own_limit else "max_new_tokens"
        self.extra = self.num_implicit_tokens + longest_answer(self.rule, self.limit)
        self.halvings = self.host_columns = 0
        self.prefix: SharedPrefix | None = None
        self.keeps_thoughts = False
        self._ends: list[int] = list(getattr(model.config, "answer_prompt_ids", []))
        self._context = Context(
            model.config,
            self.method,
            self.num_implicit_tokens,
            self.limit,
            self._limit_name,
            len(self._ends),
            settings.num_candidates,
        )
        self._config = decoding_config(
            model,
            tokenizer,
            max_new_tokens=self.limit,
            temperature=settings.temperature,
            stop=self.stop,
        )
        self._by_words: WordMethod | None = None
        if self.method in TEXT_METHODS:
            self._by_words = WordMethod(
                model,
                tokenizer,
                method=self.method,
                settings=settings,
                limit=count,
                answer_prompt=self.answer_prompt,
                chat=self.chat,
                stop=self.stop,
            )
            self._config = self._by_words.config

    def prompts(self, queries: Iterable[Query]) -> Iterator[list[int]]:
        """Yield the token ids of each question's prompt; a question may be a list of chat messages.

        Raises:
            ValueError: when the prompts do not end with the answer prompt that the model was trained with.
        """
        if self._by_words is not None and self.method == "condensed":
            yield from self._by_words.prompts(queries)
            return
        ends = [] if self.method == "cot" else self._ends
        if self.method == "cot" and self.settings.cot_instruction:
            queries = (with_instruction(query, self.settings.cot_instruction) for query in queries)
        encoded = encode_prompts(
            self.tokenizer,
            queries,
            method=self.method,
            answer_prompt=self.answer_prompt,
            few_shot=self.settings.few_shot,
            chat=self.chat,
        )
        for number, prompt in enumerate(encoded):
            if number == 0 and ends and prompt[-len(ends) :] != ends:
                raise ValueError(
                    f"answer_prompt={self.answer_prompt!r} ends a prompt on the ids {prompt[-len(ends) :]}, but "
                    f"this model was trained with {ends} (config.answer_prompt_ids): pass the text that gives them."
                )
            yield prompt

    def think_until(self, ends: Iterable[int]) -> None:
        """Also end answers on the tokens `ends`, and penalize no repetition: the answers are thoughts in words."""
        known = cast(list[int], self._config.eos_token_id or [])
        self._config.update(eos_token_id=list(dict.fromkeys([*known, *ends])), **NO_PENALTIES)

    def context_problem(self, prompt: Sequence[int]) -> str | None:
        """Return why a prompt (token ids) exceeds the context, or `None` when it fits; see `Context`."""
        return self._context.problem(prompt)

    def share_prefix(self, prompts: Prompts) -> None:
        """Run the beginning that all `prompts` share through the host; all batches from then on start from it.

        Models whose cache cannot be reused, prompts that share little, and methods that write or read thoughts as text
        are answered without.
        """
        if self._by_words is not None:
            return
        # Implicit tokens stand before the answer prompt, which the prefix must not reach into.
        self.prefix = find_shared_prefix(self.model, prompts, behind=max(1, len(self._ends)))
        self.host_columns += len(self.prefix) if self.prefix else 0

    def parts(
        self,
        prompts: Prompts,
        indices: Sequence[int],
        *,
        implicit_embeddings_for: EmbeddingsFor | None = None,
        seed: int | None = None,
    ) -> Iterator[tuple[list[int], list[Answer]]]:
        """Yield (consecutive part of the indices, their answers), with as many prompts at once as fit the budget.

        Prompts that leave less of the context than the limit of new tokens are answered apart from others, whose
        answers they would shorten.

        Args:
            prompts: token ids.
            indices: the prompts to answer.
            implicit_embeddings_for: returns the implicit embeddings (len(indices), k, host hidden size) of the prompts
                at given indices, in place of the model's own, or a pair of these and their mask (len(indices), k).
            seed: of the sampling; torch's own generator when `None`.

        Raises:
            ValueError: when memory is too small for a single question, a prompt leaves nothing of the context for its
                answer, or the method has no implicit tokens.
        """
        if implicit_embeddings_for is not None and self.method not in IMPLICIT_METHODS:
            raise ValueError(f"implicit embeddings need method='semcot', got method={self.method!r}.")
        lengths, done = [len(prompts[index]) for index in indices], 0
        rooms = [self._context.room_for_answer(prompts[index]) for index in indices]
        for index, room in zip(indices, rooms, strict=True):
            if room < 1:
                raise ValueError(f"question {index}: {self.context_problem(prompts[index])}.")
        while done < len(indices):
            size = batch_within(lengths, self.extra, self.tokens_per_batch, done)
            size = next((n for n in range(1, size) if rooms[done + n] != rooms[done]), size)
            part = list(indices[done : done + size])
            try:
                answers = self._answer([prompts[i] for i in part], self._implicit(part, implicit_embeddings_for), seed)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise ValueError(
                        f"memory is too small for a single question of {lengths[done]} tokens with "
                        f"{self._limit_name}={self.limit}: lower {self._limit_name}, load the model in a smaller "
                        f"dtype, or use a larger device ({error})."
                    ) from error
            else:
                yield part, answers
                done += size
                continue
            # After the handler, because the exception holds the failed batch's tensors.
            self.halvings += 1
            self.tokens_per_batch = size * (max(lengths[done : done + size]) + self.extra) // 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def batches(
        self, prompts: Prompts, batches: Iterable[list[int]], **options: Any
    ) -> Iterator[tuple[list[int], list[Answer]]]:
        """Yield (indices, answers) of each of `batches`, whose size memory may split; the options are `parts`'."""
        for batch in batches:
            yield batch, [answer for _, part in self.parts(prompts, batch, **options) for answer in part]

    def answers(
        self,
        queries: Iterable[Query],
        *,
        batch_size: int = 64,
        implicit_embeddings_for: EmbeddingsFor | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Return one answer per question, in their order; few-shot examples are read once for all questions.

        Args:
            queries: texts or lists of chat messages.
            batch_size: questions at once.
            implicit_embeddings_for: see `parts`.
            progress: called with the number of questions of each finished batch.
        """
        prompts = list(self.prompts(queries))
        if self.settings.few_shot:
            self.share_prefix(prompts)
        found: dict[int, Answer] = {}
        plan = plan_batches([len(prompt) for prompt in prompts], batch_size)
        for indices, answers in self.batches(prompts, plan, implicit_embeddings_for=implicit_embeddings_for):
            found.update(zip(indices, answers, strict=True))
            if progress is not None:
                progress(len(indices))
        return [found[index] for index in range(len(prompts))]

    def _implicit(self, indices: list[int], implicit_embeddings_for: EmbeddingsFor | None) -> dict[str, Any]:
        """Return the arguments of `generate` that decide these prompts' implicit tokens."""
        if implicit_embeddings_for is not None:
            made = implicit_embeddings_for(indices)
            if isinstance(made, torch.Tensor):
                return {"implicit_embeddings": made.to(self.device)}
            names = ("implicit_embeddings", "implicit_attention_mask")
            return dict(zip(names, (part.to(self.device) for part in made), strict=True))
        return {"num_implicit_tokens": self.num_implicit_tokens} if makes_implicit_tokens(self.model) else {}

    def _answer(self, prompts: Prompts, implicit: dict[str, Any], seed: int | None) -> list[Answer]:
        """Answer the prompts of one batch, which leave the same room for new tokens."""
        config, stop = self._config, self.stop
        room = self._context.room_for_answer(prompts[0])
        if room < self.limit:
            config = copy.deepcopy(config)
            config.max_new_tokens = room
        pad, ends = cast(int, config.pad_token_id), cast(list[int], config.eos_token_id or [])
        tokenizer = self.tokenizer if self._by_words is None else self._by_words.tokenizer
        options = {"tokenizer": tokenizer}
        writer = self.model if self._by_words is None else self._by_words.lm
        greedy = not self.settings.temperature
        number = self.settings.num_candidates
        start = synchronized_time(self.device)
        with (
            nullcontext() if number is None or self.method not in THOUGHT_METHODS else candidates(self.model, number),
            greedy_defaults(writer) if greedy else nullcontext(),
            nullcontext() if greedy or seed is None else seeded(seed, self.device),
        ):
            if self._by_words is None:
                new, told = self._generate(prompts, config, implicit, options)
                thoughts: list[WrittenThought | None] = [None] * len(new)
            else:
                new, thoughts = self._by_words.answer(prompts, **options)
                told = [{} for _ in new]
        seconds = (synchronized_time(self.device) - start) / len(prompts)
        words = [own.pop("words", None) for own in told]
        if self.keeps_thoughts and self.method in IMPLICIT_METHODS and thinks_in_words(self.model):
            thoughts = [None if said is None else self._said(said) for said in words]
        answers = []
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        # Stop texts of the checkpoint may be special tokens.
        own_stops = stop_texts(writer.generation_config)
        vocabulary = tokenizer.get_vocab() if own_stops else {}
        stops = [end for end in own_stops if vocabulary.get(end) not in ends]
        wholes = tokenizer.batch_decode(new) if stops else texts
        for prompt, tokens, text, whole, own, thought in zip(prompts, new, texts, wholes, told, thoughts, strict=True):
            stopped = stop is not None and stop in text or any(end in whole for end in stops)
            if self.rule is not None:
                # What pads the shorter rows may be an end-of-sequence token.
                reasoning = self.rule.max_reasoning_tokens if own["route"] == "explicit" else None
                tokens = tokens[: self._context.room_for_answer(prompt, reasoning)]
            used = used_tokens(tokens, ends, pad, stopped)
            finished = stopped or tokens[used - 1] in ends
            text = text.partition(stop)[0] if stop else text
            if thought is not None:
                used += thought.written
                ended = own.get("thought_ended", True) and thought.ended
                own |= {"thought": thought.text, "thought_tokens": thought.tokens, "thought_ended": ended}
            answers.append(Answer(text, used, seconds, finished, **own))
        return answers

    def _generate(
        self, prompts: Prompts, config: GenerationConfig, implicit: dict[str, Any], options: dict[str, Any]
    ) -> tuple[list[list[int]], list[dict[str, Any]]]:
        """Run the model's own `generate`; return the new ids, and what each `Answer` says of its implicit tokens."""
        ids, mask = pad_left(prompts, cast(int, config.pad_token_id))
        limit, hard = self.num_implicit_tokens, self.method == "semcot_hard"
        thoughts: Thoughts | None = None
        if self.rule is not None:
            if self.prefix is not None:
                implicit = {**implicit, "past_key_values": self.prefix.cache([len(prompt) for prompt in prompts])}
            batch: dict[str, Any] = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
            batch |= {"generation_config": config, "escalation_signals": self.signal_functions, **options}
            self.host_columns += ids.shape[0] * (ids.shape[1] - (len(self.prefix) if self.prefix else 0))
            return answers_by_rule(self.model, self.rule, limit, {**batch, **implicit})
        with (
            single_words(self.model) if hard else nullcontext(),
            nullcontext() if self.prefix is None else hidden_settings(self.model, "cache_implementation"),
        ):
            if limit and reports_thoughts(self.model) and "implicit_embeddings" not in implicit:
                del implicit["num_implicit_tokens"]
                with torch.no_grad():
                    think = cast(Callable[..., Thoughts], self.model.implicit_thoughts)
                    thoughts = think(ids.to(self.device), mask.to(self.device), limit)
                implicit["implicit_embeddings"] = thoughts.embeddings
                if thoughts.mask is not None:
                    implicit["implicit_attention_mask"] = thoughts.mask
            if self.prefix is not None:
                implicit = {**implicit, "past_key_values": self.prefix.cache([len(prompt) for prompt in prompts])}
            sequences = cast(Callable[..., torch.Tensor], self.model.generate)(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                generation_config=config,
                **implicit,
                **options,
            )
        self.host_columns += ids.shape[0] * (ids.shape[1] - (len(self.prefix) if self.prefix else 0))
        new = sequences[:, ids.shape[1] :].tolist()
        return new, thought_fields(thoughts, implicit.get("implicit_attention_mask"), len(new), limit)

    def _said(self, words: list[int]) -> WrittenThought:
        """Return the thought of these words."""
        separate = self.model.config.separate_generator_tokenizer
        return written_thought(cast(Any, self.model).words_tokenizer() if separate else self.tokenizer, words)


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    queries: Sequence[Query],
    settings: AnswerSettings | None = None,
    *,
    batch_size: int = 64,
    implicit_embeddings_for: EmbeddingsFor | None = None,
    progress: Callable[[int], None] | None = None,
    **overrides: Any,
) -> list[Answer]:
    """Answer `queries` in batches padded on the left; see `Answerer` and its `answers` for the other arguments.

    Args:
        settings: see `AnswerSettings`.
        implicit_embeddings_for: for "semcot", returns the embeddings (len(indices), k, host hidden size) of the
            queries at given indices, in place of the model's own.
        overrides: fields of `AnswerSettings`, such as `method`, `max_new_tokens` and `few_shot`.

    Raises:
        TypeError: for an override that is not a field.
        ValueError: for settings that do not fit the model; when memory is too small for one question.
    """
    answerer = Answerer(model, tokenizer, with_overrides(settings or AnswerSettings(), overrides))
    return answerer.answers(
        queries, batch_size=batch_size, implicit_embeddings_for=implicit_embeddings_for, progress=progress
    )
