"""One call of `generate` with escalation: its rows, their routes, and the caches that these share."""

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, LogitsProcessorList
from transformers.cache_utils import DynamicLayer
from transformers.utils import ModelOutput, logging

from .answer_recorder_semcot import AnswerRecorder, HeldStreamer, used_ids
from .escalation_semcot import ANSWER_SIGNALS, ROUTER_SIGNALS, SIGNALS, Escalation
from .few_shot_semcot import without_few_shot
from .generation_semcot import SemCoTGenerationMixin
from .given_caches_semcot import holds_tokens
from .offloading_semcot import execution_device
from .question_cache_semcot import can_share, cut_cache, hidden_settings
from .splicing_semcot import (
    Slots,
    asked_tokens,
    check_context,
    check_layout,
    context_of,
    positions_from_mask,
    prompt_layout,
)
from .thoughts_semcot import Thoughts, single_words, word_entropy

logger = logging.get_logger(__name__)


@dataclass
class SemCoTEscalatedOutput(ModelOutput):
    """Output of `generate` with `escalation` and `return_dict_in_generate=True`.

    Args:
        sequences: LongTensor (batch, length), prompts followed by the new ids, padded on the right.
        confidence: FloatTensor (batch,), from 0 to 1, that the implicit answer is right; or the router's where it
            decided.
        route: "at_once", "implicit" or "explicit" for each row: what answered it.
        signals: FloatTensor (batch,) by name; NaN where the route left them out.
        thoughts: the known fields of `Thoughts` by name, of the rows that got an implicit answer; `None` without them.
    """

    sequences: Tensor | None = None
    confidence: Tensor | None = None
    route: list[str] | None = None
    signals: dict[str, Tensor] | None = None
    thoughts: dict[str, Tensor] | None = None


class _Prompts(NamedTuple):
    """Prompts (rows, length), the column of their answer prompts, and a cache of their first columns."""

    ids: Tensor
    mask: Tensor
    column: int
    cache: Cache | None = None


def _without_examples(prompts: _Prompts, few_shot_ids: list[int] | None) -> _Prompts:
    """Return prompts without the worked examples, which show thoughts, for answers without implicit tokens."""
    ids, mask = without_few_shot(prompts.ids, prompts.mask, few_shot_ids)
    if ids is prompts.ids:
        return prompts
    mask = torch.ones_like(ids) if mask is None else mask
    return _Prompts(ids, mask, prompts.column - prompts.ids.shape[1] + ids.shape[1])


class EscalatedCall:
    """One call of `generate` with escalation.

    Args:
        model: the model.
        rule: the rule.
        ids: prompts (batch, length).
        generation_config, hooks, options: further arguments of `generate`.
        provided: signals of the caller.
    """

    def __init__(
        self,
        model: Any,
        rule: Escalation,
        ids: Tensor | None,
        generation_config: GenerationConfig | None,
        hooks: dict[str, Any],
        options: dict[str, Any],
        provided: dict[str, Any],
    ):
        self.model, self.rule, self.hooks, self.provided = model, rule, hooks, provided
        self.config, self.options = generation_config, dict(options)
        self.returns_dict = bool(self._setting("return_dict_in_generate"))
        if ids is None:
            raise ValueError("escalation needs input_ids: pass them, or leave escalation out.")
        self._check_options()
        self.streamer = self.options.pop("streamer", None)
        self.given = {
            name: self.options.pop(name, None) for name in ("implicit_embeddings", "implicit_attention_mask")
        }
        if self.streamer is not None and len(ids) > 1:
            raise ValueError(f"streamer with {len(ids)} prompts: escalation streams one prompt at a time.")
        mask = model._checked_mask(ids, self.options.pop("attention_mask", None), generation_config, self.options)
        answer_prompt = list(model.config.answer_prompt_ids or [])
        if not answer_prompt:
            raise ValueError(
                "escalation needs a host that reasons in words where its prompt lacks the answer prompt, but this "
                "model has none (config.answer_prompt_ids is empty): leave escalation out."
            )
        layout = prompt_layout(ids, mask, answer_prompt)
        check_layout(layout, model.config.get_text_config().vocab_size)
        if not layout.found or not isinstance(layout.columns, int):
            raise ValueError(
                "escalation needs prompts that end on the answer prompt this model was trained with "
                f"(config.answer_prompt_ids={answer_prompt}), without which the host reasons in words, but some do "
                "not: render them by tokenizer.apply_chat_template(..., add_generation_prompt=True)."
            )
        if layout.shortest <= len(answer_prompt):
            raise ValueError("input_ids has a row without a token before the answer prompt: every prompt needs one.")
        # A cache of the caller's is not changed. Where columns cannot be copied, the prompts are read again.
        self.shares = can_share(model.host) and self._setting("use_cache") is not False
        self.shares &= self._setting("cache_implementation") in (None, "dynamic")
        self.prompts = _Prompts(ids, mask, layout.columns, self._given_cache(ids, layout.columns))
        # For answers without implicit tokens.
        self.plain = _without_examples(self.prompts, model.config.few_shot_ids)
        # Of each route: implicit tokens are counted once they are made, and reasoning needs less than is asked for.
        longest = int(self.plain.mask.sum(dim=1).max())
        check_context(longest, 0, asked_tokens(ids, self.options), context_of(model.config.get_text_config()))
        self.all_rows = torch.arange(len(ids), device=ids.device)
        self._check_signals()
        self.signals: dict[str, Tensor] = {}
        self.thoughts: dict[str, Tensor] | None = None
        self.confidence = torch.full((len(ids),), torch.nan, dtype=torch.float64, device=ids.device)
        without = self.given["implicit_embeddings"] is None and not model._check_count(
            self.options.get("num_implicit_tokens")
        )
        self.route = ["at_once" if without else "implicit"] * len(ids)
        self.new: list[list[int]] = [[] for _ in ids]
        self.pad = model._pad_id()

    def run(self) -> Any:
        """Return what `generate` returns."""
        left = self._routed()
        if len(left):
            self._answer_implicitly(left)
        width = max(map(len, self.new))
        rows = [row + [self.pad] * (width - len(row)) for row in self.new]
        ids = self.prompts.ids
        sequences = torch.cat([ids, torch.tensor(rows, dtype=ids.dtype, device=ids.device)], dim=1)
        if not self.returns_dict:
            return sequences
        return SemCoTEscalatedOutput(sequences, self.confidence.float(), self.route, self.signals, self.thoughts)

    # Routes

    def _routed(self) -> Tensor:
        """Answer the rows that the router decides; return the others."""
        rule, names = self.rule, {*self.rule.signals, *(self.rule.router or {}).get("signals", ())}
        if names & {*ROUTER_SIGNALS} - {*self.provided}:
            self._read_questions()
        for name in names & {*ROUTER_SIGNALS} & {*self.provided}:
            self._put(name, self.all_rows, self._provided(name, self.prompts, None))
        if rule.router is None:
            return self.all_rows
        chosen, sure = rule.routed(self.signals)
        rows = chosen.nonzero()[:, 0]
        if len(rows):
            self.confidence[rows] = sure[rows].to(self.confidence)
            self._finish(rows, rule.router["sends"], self.plain)
        return (~chosen).nonzero()[:, 0]

    def _answer_implicitly(self, rows: Tensor) -> None:
        """Answer rows with implicit tokens, and have the host reason about those whose confidence is low."""
        prompts = self._part(self.prompts, rows)
        implicit, thoughts = self._implicit(prompts, rows)
        recorder = AnswerRecorder()
        # Only what is asked for holds the keys and values longer than the call.
        made, new = self._generate(prompts, recorder, **implicit, return_dict_in_generate=True)
        logs = recorder.answers(made.sequences[:, prompts.ids.shape[1] :], new)
        self._put("answer_probability", rows, torch.stack([row.mean() for row in logs]).exp())
        self._put("min_token_probability", rows, torch.stack([row.min() for row in logs]).exp())
        if thoughts is not None and thoughts.ended is not None:
            self._put("thought_ended", rows, thoughts.ended)
        entropy = None if thoughts is None else thoughts.mean_entropy()
        if entropy is not None:
            self._put("thought_entropy", rows, entropy)
        if "agreement" in self.rule.signals and "agreement" not in self.provided:
            with single_words(self.model):
                _, hard = self._generate(prompts, AnswerRecorder(records=False))
            self._put("agreement", rows, torch.tensor([a == b for a, b in zip(new, hard, strict=True)]))
        for name in {*self.rule.signals} & {*ANSWER_SIGNALS} & {*self.provided}:
            values = self._provided(name, prompts, thoughts)
            self._put(name, rows, values[rows.to(values.device)] if len(values) == len(self.all_rows) else values)
        sure = self.rule.confidence({name: values[rows] for name, values in self.signals.items()})
        self.confidence[rows] = sure.to(self.confidence)
        for row, ids in zip(rows.tolist(), new, strict=True):
            self.new[row] = ids
        unsure = (sure < self.rule.threshold).nonzero()[:, 0].to(rows.device)
        if len(unsure):
            if self.plain.ids is self.prompts.ids:
                question = prompts._replace(cache=self._question_cache(made, prompts, unsure))
                question = self._part(question, unsure, cached=True)
            else:
                question = self._part(self.plain, rows[unsure])
            self._finish(rows[unsure], "explicit", question, whole=False)
        elif self.streamer is not None:
            streamed = HeldStreamer(self.streamer, self.prompts.ids)
            for token in self.new[0]:
                streamed.put(torch.tensor([token]))
            streamed.end()

    def _finish(self, rows: Tensor, route: str, prompts: _Prompts, whole: bool = True) -> None:
        """Generate the final answers of rows without implicit tokens.

        Args:
            rows: LongTensor (rows,), whose route this is.
            route: "at_once", or "explicit" for reasoning.
            prompts: those of the rows, or of all rows if `whole`.
        """
        prompts = self._part(prompts, rows) if whole else prompts
        limits: list[int | None] = [None] * len(rows)
        if route == "explicit":
            ids, mask = (part[:, : prompts.column] for part in prompts[:2])
            cache = prompts.cache
            if cache is not None and int(cache.get_seq_length()) >= prompts.column:
                columns = torch.arange(prompts.column - 1, device=ids.device).expand(len(ids), -1)
                cache = cut_cache(cache, torch.arange(len(ids)), columns, self.model.host)
            prompts = prompts._replace(ids=ids, mask=mask, cache=cache)
            limits = list(self._reasoning_tokens(mask))
        # Rows of one limit are generated together, so that long prompts do not shorten the answers to others.
        for limit in dict.fromkeys(limits):
            alike = torch.tensor([row for row, own in enumerate(limits) if own == limit], device=rows.device)
            changes: dict[str, Any] = {"num_implicit_tokens": 0}
            if limit is not None:
                changes["max_new_tokens"] = limit
            if self.streamer is not None:
                changes["streamer"] = HeldStreamer(self.streamer, self.prompts.ids, skip=True)
            _, new = self._generate(self._part(prompts, alike), AnswerRecorder(records=False), **changes)
            for row, answer in zip(rows[alike].tolist(), new, strict=True):
                self.new[row], self.route[row] = answer, route

    def _reasoning_tokens(self, mask: Tensor) -> list[int]:
        """Return the most new tokens of each row's explicit reasoning, limited to what the host's context holds."""
        asked, context = self.rule.max_reasoning_tokens, context_of(self.model.config.get_text_config())
        if context is None:
            return [asked] * len(mask)
        rooms = (context - mask.sum(dim=1)).tolist()
        if min(rooms) < asked:
            logger.warning_once(
                f"max_reasoning_tokens={asked} is more than the {min(rooms)} that fit the host's context of {context} "
                "beside a prompt; reasoning ends there."
            )
        return [min(room, asked) for room in rooms]

    # What the rows are generated from

    def _generate(self, prompts: _Prompts, recorder: AnswerRecorder, **changes: Any) -> tuple[Any, list[list[int]]]:
        """Run `generate` without escalation; return its output and each row's new ids, without padding."""
        options: dict[str, Any] = {"return_dict_in_generate": False, **self.options, **changes}
        config = self.config
        if "max_new_tokens" in changes:
            options.pop("max_length", None)
        if config is not None:
            # transformers deprecates single settings beside a configuration.
            config = copy.deepcopy(config)
            if "max_new_tokens" in changes:
                config.max_length = None
            for name in {"return_dict_in_generate", *changes} & {*vars(config)}:
                setattr(config, name, options.pop(name))
        processors = LogitsProcessorList([*(self.hooks["logits_processor"] or ()), recorder])
        cache = prompts.cache
        if cache is not None:
            # The loops append to it.
            columns = torch.arange(int(cache.get_seq_length()), device=prompts.ids.device)
            rows = torch.arange(len(prompts.ids), device=prompts.ids.device)
            options["past_key_values"] = cut_cache(cache, rows, columns.expand(len(rows), -1), self.model.host)
            options.pop("cache_implementation", None)
            if config is not None:
                config.cache_implementation = None
        with nullcontext() if cache is None else hidden_settings(self.model, "cache_implementation"):
            made = SemCoTGenerationMixin.generate(
                self.model,
                prompts.ids,
                config,
                processors,
                self.hooks["stopping_criteria"],
                attention_mask=prompts.mask,
                **options,
            )
        self.pad = self.pad if recorder.pad is None else recorder.pad
        sequences = made if isinstance(made, Tensor) else made.sequences
        return made, [used_ids(row, recorder) for row in sequences[:, prompts.ids.shape[1] :].tolist()]

    def _implicit(self, prompts: _Prompts, rows: Tensor) -> tuple[dict[str, Any], Thoughts | None]:
        """Return the arguments of `generate` for the rows' implicit tokens, and how these were made if it is known."""
        if self.given["implicit_embeddings"] is not None:
            return {k: part if part is None else part[rows.to(part.device)] for k, part in self.given.items()}, None
        model, count = self.model, self.model._check_count(self.options.get("num_implicit_tokens"))
        if count == 0:
            return {}, None
        thoughts = model._make_thoughts(*model._queries(prompts.ids, prompts.mask), count, read=True)
        tokens = {"implicit_embeddings": thoughts.embeddings, "implicit_attention_mask": thoughts.mask}
        self.thoughts = {name: part for name, part in thoughts._asdict().items() if part is not None}
        # Thoughts of adaptive length are shorter than the limit that was asked for.
        return {**tokens, "num_implicit_tokens": None}, thoughts

    def _part(self, prompts: _Prompts, rows: Tensor, cached: bool = False) -> _Prompts:
        """Return the prompts of some rows, without the columns that are padding in all of them.

        Args:
            cached: whether the cache is of these rows and columns already.
        """
        ids, mask, column, cache = prompts
        if len(rows) == len(ids):
            return prompts
        ids, mask = ids[rows], mask[rows]
        first = int(mask.amax(dim=0).argmax())
        if cache is not None and not cached:
            columns = torch.arange(first, max(first, int(cache.get_seq_length())), device=ids.device)
            cache = cut_cache(cache, rows, columns.expand(len(rows), -1), self.model.host) if len(columns) else None
        return _Prompts(ids[:, first:], mask[:, first:], column - first, cache)

    def _question_cache(self, made: Any, prompts: _Prompts, rows: Tensor) -> Cache | None:
        """Return the host's keys and values of the questions of rows, but for their last column.

        They are those that the implicit answers began with: question and implicit tokens are read by a causal host, so
        that the question's do not depend on what follows. Unused slots of shorter thoughts stand before the text.
        """
        cache = made.past_key_values
        if not self.shares or cache is None:
            return None
        first = 0 if len(rows) == len(prompts.ids) else int(prompts.mask[rows].amax(dim=0).argmax())
        columns = torch.arange(first, prompts.column - 1, device=rows.device).expand(len(rows), -1)
        slots: Slots | None = getattr(cache, "implicit_slots", None)
        if slots is not None:
            unused = slots.unused.to(rows.device)[rows][:, None]
            columns = torch.where(columns < slots.start, columns, columns + unused)
        return cut_cache(cache, rows, columns, self.model.host) if columns.shape[1] else None

    def _read_questions(self) -> None:
        """Find the signals of the questions, and keep the host's keys and values of the prompts."""
        ids, mask, column, cache = self.plain
        host: Any = self.model.host
        read = 0 if cache is None else int(cache.get_seq_length())
        known = {} if not self.shares else {"use_cache": True, "past_key_values": cache}
        device = execution_device(self.model.get_input_embeddings())
        out = host(
            input_ids=ids[:, read:].to(device),
            attention_mask=mask.to(device),
            position_ids=positions_from_mask(mask)[:, read:].to(device),
            logits_to_keep=1,
            **(known or {"use_cache": False}),
        )
        logits = out.logits[:, -1]
        self._put("host_probability", self.all_rows, logits.softmax(dim=-1, dtype=torch.float32).amax(dim=-1))
        self._put("host_entropy", self.all_rows, word_entropy(logits))
        self._put("question_tokens", self.all_rows, mask[:, :column].sum(dim=1))
        if known and out.past_key_values is not None and column > 1:
            # The implicit tokens go between its columns and the answer prompt.
            columns = torch.arange(column, device=ids.device).expand(len(ids), -1)
            plain = self.plain._replace(cache=cut_cache(out.past_key_values, self.all_rows, columns, host))
            self.prompts = plain if self.plain.ids is self.prompts.ids else self.prompts
            self.plain = plain

    def _given_cache(self, ids: Tensor, column: int) -> Cache | None:
        """Return a copy of the caller's cache of the prompts' first columns, where there is one that can be copied."""
        cache = self.options.pop("past_key_values", None)
        if cache is None or int(cache.get_seq_length()) == 0:
            return None
        read = int(cache.get_seq_length())
        if holds_tokens(cache, False) or read > column:
            raise ValueError(
                f"past_key_values holds {read} columns of an earlier turn or of the answer prompt: escalation reads "
                f"each prompt anew; leave past_key_values out, or pass a cache of at most the first {column} columns."
            )
        if not self.shares or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return None
        columns = torch.arange(min(read, column - 1), device=ids.device).expand(len(ids), -1)
        return cut_cache(cache, torch.arange(len(ids), device=ids.device), columns, self.model.host)

    # Signals and options

    def _put(self, name: str, rows: Tensor, values: Tensor) -> None:
        """Set a signal of some rows."""
        if values.dim() != 1 or len(values) != len(rows):
            raise ValueError(f"escalation_signals has {name!r} of shape {tuple(values.shape)}: must be (batch,).")
        empty = torch.full((len(self.all_rows),), torch.nan, device=self.all_rows.device)
        self.signals.setdefault(name, empty)[rows] = values.to(empty)

    def _provided(self, name: str, prompts: _Prompts, thoughts: Thoughts | None) -> Tensor:
        value = self.provided[name]
        if isinstance(value, Tensor) or not callable(value):
            return torch.as_tensor(value)
        if thoughts is None:
            raise ValueError(
                f"escalation_signals has a function for {name!r}, which gets the model's thoughts, but there are "
                "none: pass a tensor (batch,)."
            )
        return value(prompts.ids, prompts.mask, thoughts)

    def _setting(self, name: str) -> Any:
        """Return a setting of generation: that of the call, of its configuration, or else the model's own."""
        known = [
            self.options,
            *(getattr(config, "__dict__", {}) for config in (self.config, self.model.generation_config)),
        ]
        return next((values[name] for values in known if values.get(name) is not None), None)

    def _check_options(self) -> None:
        for name in ("num_beams", "num_return_sequences"):
            if (value := self._setting(name)) not in (None, 1):
                raise ValueError(
                    f"{name}={value} cannot be used with escalation, which makes one answer: leave it out."
                )
        for name in ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "custom_generate"):
            if self._setting(name) is not None:
                raise ValueError(
                    f"{name} cannot be used with escalation, whose answers need plain decoding: leave it out."
                )
        for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
            if self._setting(name):
                raise ValueError(
                    f"{name}=True cannot be used with escalation, whose rows go different ways: leave it out."
                )

    def _check_signals(self) -> None:
        tokens, mask = self.given["implicit_embeddings"], self.given["implicit_attention_mask"]
        given = tokens is not None
        self.model._check_mask_alone(tokens, mask)
        if tokens is not None:
            self.model._check_shape(tokens, len(self.prompts.ids), mask)
        unknown = [str(name) for name in self.provided if name not in SIGNALS]
        if unknown:
            raise ValueError(f"escalation_signals has {', '.join(unknown)}: it may have {', '.join(SIGNALS)}.")
        for name in self.rule.signals:
            if name in self.provided:
                continue
            problem = self.model.signal_problem(name, None if given else self.options.get("num_implicit_tokens"))
            if problem is None and given and name in ("agreement", "thought_entropy", "thought_ended"):
                problem = "implicit_embeddings were passed, of which it is not known how they were made"
            if problem is not None:
                raise ValueError(
                    f"escalation goes by the signal {name!r}, but {problem}: pass "
                    f"escalation_signals={{{name!r}: ...}}, or a rule on other signals."
                )
