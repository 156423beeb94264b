"""Generation with implicit tokens, inside transformers' own generation loops.

Users, logits processors, stopping criteria and streamers see text ids only. Caches and masks are longer by k columns,
so the loops run on ids with k filler ids before the text, which are removed again for each of those hooks.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.utils import logging

from .answer_recorder_semcot import recorder_first
from .candidates_semcot import SemCoTCandidatesMixin
from .few_shot_semcot import few_shot_prefix
from .given_caches_semcot import check_cropped, check_prefix, held_rows, held_tokens, holds_tokens, slots_behind
from .offloading_semcot import execution_device
from .question_cache_semcot import can_share, prefix_cache
from .splicing_semcot import (
    Slots,
    asked_tokens,
    check_context,
    check_first_ids,
    check_gaps,
    check_layout,
    check_shapes,
    context_of,
    generator_queries,
    inferred_mask,
    packed,
    prompt_layout,
    splice,
    spliced_mask,
)
from .text_view_semcot import TextCandidates, TextProcessors, text_criteria

logger = logging.get_logger(__name__)

# Settings by which a prompt is read whole, or its columns are returned, and their usual values.
_WHOLE = {
    "use_cache": True,
    "cache_implementation": None,
    "prefill_chunk_size": None,
    "num_beams": 1,
    "num_return_sequences": 1,
    "assistant_model": None,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "output_attentions": False,
    "output_hidden_states": False,
}
# What `generate` hands to the loops beside the host's own arguments.
OWN_ARGUMENTS = ("implicit_embeddings", "implicit_columns", "implicit_unused", "implicit_start")


class SemCoTGenerationMixin(GenerationMixin, SemCoTCandidatesMixin):
    """`generate` with implicit tokens; everything else is transformers' GenerationMixin."""

    @property
    def _transformers(self) -> Any:
        """Return transformers' own methods; they annotate `self` by a protocol that mypy does not find fulfilled."""
        return super()

    @torch.no_grad()
    def generate(  # type: ignore[override]  # further arguments are keyword-only
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        *,
        num_implicit_tokens: int | None = None,
        implicit_embeddings: Tensor | None = None,
        implicit_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate answers with k implicit tokens in the host's input.

        Args:
            inputs: LongTensor (batch, length) of prompts, or `input_ids=`; batches padded on the left need
                `attention_mask=`.
            generation_config, logits_processor, stopping_criteria: as in transformers.
            num_implicit_tokens: k; `config.num_implicit_tokens` if `None`; 0 gives the host's own output for the
                prompts as they are, worked examples included.
            implicit_embeddings: (batch, k, host hidden size), used instead of the generator's tokens.
            implicit_attention_mask: (batch, k), 1 where `implicit_embeddings` holds a token; all ones if `None`.
            kwargs: all other arguments of transformers' `generate`. `past_key_values` is either the host's cache of
                the first columns of the prompts, such as a shared prefix (`inputs` stay whole, since the generator
                reads all of them), or a cache that this method returned, to continue from.

        Returns:
            Prompt ids followed by the new ids, without fillers, or transformers' output objects.

        Raises:
            ValueError: for a bad k, embeddings of a wrong shape or with NaN, ids outside the vocabulary, prompts
                without tokens or beyond the host's or the generator's context, a cache that does not fit, or an
                option that does not work with implicit tokens.
        """
        if inputs is not None and kwargs.get("input_ids") is not None:
            raise ValueError("inputs and input_ids were both passed: pass one of the two.")
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        count = self._check_tokens_argument(
            implicit_embeddings, num_implicit_tokens, input_ids, implicit_attention_mask
        )
        cache: Any = kwargs.get("past_key_values")
        # A cache of an earlier turn contains its implicit tokens; a zero-width placeholder keeps their count.
        held = holds_tokens(cache, getattr(generation_config, "is_assistant", False))
        if held:
            count = held_tokens(cache, num_implicit_tokens, implicit_embeddings)
        hooks = {"logits_processor": logits_processor, "stopping_criteria": stopping_criteria}
        if count == 0:
            check_first_ids(input_ids, cache, self.config.get_text_config().vocab_size)
            return self._transformers.generate(input_ids, generation_config, **hooks, **kwargs)
        self._check_options(generation_config, kwargs)
        host_config = self.config.get_text_config()
        mask = self._checked_mask(input_ids, kwargs.pop("attention_mask", None), generation_config, kwargs)
        layout = prompt_layout(input_ids, mask, self.config.answer_prompt_ids or [])
        check_layout(layout, host_config.vocab_size)
        if layout.gaps:
            check_gaps(mask, host_config, self._is_stateful)
        check_context(layout.longest, count, asked_tokens(input_ids, kwargs), context_of(host_config))
        columns, slots = layout.columns, None
        if held:
            columns = held_rows(cache.implicit_columns, input_ids.shape[0])
            slots = getattr(cache, "implicit_slots", None)
            slots = slots and slots._replace(unused=held_rows(slots.unused, input_ids.shape[0]))
            implicit_embeddings = torch.empty(input_ids.shape[0], count, 0, device=input_ids.device)
        else:
            check_prefix(cache, columns)
            check_cropped(cache)
            if not layout.found:
                logger.warning_once(
                    "Some prompts do not end on the answer prompt this model was trained with "
                    "(config.answer_prompt_ids); their implicit tokens go to the prompt's end. The tokenizer's chat "
                    "template saved with the checkpoint adds the answer prompt: "
                    "tokenizer.apply_chat_template(..., add_generation_prompt=True)."
                )
            if implicit_embeddings is None:
                queries = generator_queries(input_ids, mask, columns, self._pad_id(), layout.extent)
                implicit_embeddings, implicit_attention_mask = self._make_tokens(*queries, count)
            implicit_embeddings, slots = packed(implicit_embeddings, implicit_attention_mask)
            slots = slots and slots_behind(cache, slots)
            if cache is None and not (layout.gaps or layout.behind):
                cache = self._few_shot_cache(input_ids, mask, slots, generation_config, kwargs)
                kwargs |= {} if cache is None else {"past_key_values": cache}
            # NaN and infinity survive the sum, which could overflow in float16.
            if not math.isfinite(implicit_embeddings.sum(dtype=torch.float32)):
                raise ValueError(
                    f"implicit_embeddings (dtype {implicit_embeddings.dtype}) holds NaN or infinity: check the "
                    "embeddings passed, or else the checkpoint's weights and dtype."
                )
        tokens = {"implicit_embeddings": implicit_embeddings, "implicit_columns": columns}
        if slots is not None:
            tokens |= {"implicit_unused": slots.unused, "implicit_start": slots.start}
        options = {**kwargs, **hooks, **tokens, "attention_mask": mask}
        return self._transformers.generate(input_ids, generation_config, **options)

    def _few_shot_cache(
        self,
        ids: Tensor,
        mask: Tensor,
        slots: Slots | None,
        generation_config: GenerationConfig | None,
        kwargs: dict[str, Any],
    ) -> Cache | None:
        """Return the host's keys and values of the first columns of prompts, those of the worked examples in all rows.

        They are computed once. `None` where prompts have none, or are to be read whole.
        """
        if (
            not self.config.few_shot_ids
            or not can_share(self.host)
            or getattr(generation_config, "is_assistant", False)
        ):
            return None
        known = [kwargs, *(getattr(config, "__dict__", {}) for config in (generation_config, self.generation_config))]
        for name, usual in _WHOLE.items():
            if next((given[name] for given in known if given.get(name) is not None), usual) != usual:
                return None
        prefix = few_shot_prefix(ids, mask, self.config.few_shot_ids)
        if not prefix:
            return None
        device = execution_device(self.get_input_embeddings())
        cache = self._cache_of_prompt("host", torch.tensor([prefix], device=device))
        # Slots that a row does not use are padding before its text.
        padding = (mask == 0).sum(dim=1) + (0 if slots is None else slots.unused.to(mask.device))
        return prefix_cache(cache, padding, self.host)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Start transformers' continuous batching, which works only for models without implicit tokens."""
        if self.config.num_implicit_tokens > 0:
            raise ValueError(
                "Continuous batching (generate_batch) feeds ids to the host alone, without implicit tokens: use "
                "generate, or model.host.generate_batch for the host's own answers."
            )
        return super().init_continuous_batching(*args, **kwargs)

    # The loops and what they receive

    def _sample(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._loop("_sample", input_ids, *args, **kwargs)

    def _beam_search(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._loop("_beam_search", input_ids, *args, **kwargs)

    # transformers passes `inputs_tensor` to methods that name it.
    def _assisted_decoding(
        self, input_ids: Tensor, *args: Any, inputs_tensor: Tensor | None = None, **kwargs: Any
    ) -> Any:
        return self._loop("_assisted_decoding", input_ids, *args, inputs_tensor=inputs_tensor, **kwargs)

    def _loop(
        self,
        name: str,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> Any:
        """Run one of transformers' loops on ids with k fillers before the text.

        The host runs it itself where the loop accepts the embeddings of the prompt's pass, so that a decoding step is
        the host's own. Loops without a cache and assisted ones read ids again at each step.
        """
        tokens, columns, slots = _tokens_in(kwargs)
        logits_processor = recorder_first(logits_processor, generation_config)
        by_host = name != "_assisted_decoding" and kwargs["use_cache"] and not generation_config.is_assistant
        loop = getattr(self.host if by_host else self._transformers, name)
        if generation_config.assistant_early_exit is not None:
            raise ValueError(
                f"assistant_early_exit={generation_config.assistant_early_exit} cannot be used with a SemCoT model, "
                "which has no backbone of its own that could stop early: leave it out."
            )
        if tokens is None or columns is None:
            return loop(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
        count, size = tokens.shape[1:]
        if generation_config.prefill_chunk_size is not None:
            raise ValueError(
                f"prefill_chunk_size={generation_config.prefill_chunk_size} cannot be used with implicit tokens: "
                "leave it out, or pass num_implicit_tokens=0."
            )
        cache = kwargs.get("past_key_values")
        filled = cache is not None and cache.get_seq_length() > 0
        if filled and not by_host and (size > 0 or not kwargs["use_cache"]):
            other = "assisted decoding" if kwargs["use_cache"] else "use_cache=False"
            raise ValueError(
                f"past_key_values that holds columns already cannot be used with {other}: leave one of the two out."
            )
        if by_host:
            kwargs = {name: value for name, value in kwargs.items() if name not in OWN_ARGUMENTS}
            if size > 0:
                kwargs["inputs_embeds"] = self._spliced_prompt(input_ids, tokens, columns, slots)
        mask, length = kwargs.get("attention_mask"), input_ids.shape[1]
        if mask is None and slots is not None:
            mask = torch.ones_like(input_ids)
        if mask is None:
            kwargs["position_ids"] = torch.arange(length + count, device=input_ids.device)[None]
            longest = length
        else:
            longest = int(mask.sum(dim=1).max())
            kwargs["attention_mask"], kwargs["position_ids"] = spliced_mask(mask, count, columns, slots)
        max_length = count + self._length_in_context(generation_config.max_length, length, longest, count)
        generation_config.max_length = max_length
        if getattr(generation_config, "_mask_length", None) is not None:
            generation_config._mask_length += count
        outputs = loop(
            torch.cat([input_ids[:, :1].expand(-1, count), input_ids], dim=1),
            TextProcessors(logits_processor, count) if logits_processor else logits_processor,
            text_criteria(stopping_criteria, count, max_length),
            generation_config,
            **kwargs,
        )
        is_tensor = isinstance(outputs, Tensor)
        for filled in (cache, None if is_tensor else outputs.past_key_values):
            if filled is not None:
                filled.implicit_count, filled.implicit_columns, filled.implicit_slots = count, columns, slots
        if is_tensor:
            return outputs[:, count:]
        outputs.sequences = outputs.sequences[:, count:]
        return outputs

    def _spliced_prompt(self, text_ids: Tensor, tokens: Tensor, columns: int | Tensor, slots: Slots | None) -> Tensor:
        embeds = self.get_input_embeddings()(text_ids.to(tokens.device))
        return splice(embeds, tokens.to(embeds), columns, slots)

    def _length_in_context(self, max_length: int, width: int, longest: int, count: int) -> int:
        """Return `max_length` in text tokens, limited to what the host's context holds beside the implicit tokens."""
        context = context_of(self.config.get_text_config())
        if context is None:
            return max_length
        room = context - count - longest
        if max_length - width > room:
            logger.warning_once(
                f"The generation config asks for {max_length - width} new tokens; only {room} fit the host's context "
                f"of {context}, and generation ends there."
            )
        return min(max_length, width + room)

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> Any:
        *others, length = args
        tokens = model_kwargs.get("implicit_embeddings")
        length += 0 if tokens is None else tokens.shape[1]
        return self._transformers._prepare_cache_for_generation(generation_config, model_kwargs, *others, length)

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        # transformers passes all arguments by keyword.
        tokens = kwargs["model_kwargs"].get("implicit_embeddings")
        if tokens is None:
            return self._transformers._get_candidate_generator(*args, **kwargs)
        count = tokens.shape[1]
        config = copy.copy(kwargs["generation_config"])
        config.max_length -= count
        options = {key: value for key, value in kwargs["model_kwargs"].items() if not key.startswith("implicit_")}
        if options.get("attention_mask") is not None:
            options["attention_mask"] = options["attention_mask"][:, count:]
        kwargs |= {"input_ids": kwargs["input_ids"][:, count:], "generation_config": config, "model_kwargs": options}
        kwargs["logits_processor"] = LogitsProcessorList(kwargs["logits_processor"])
        return TextCandidates(self._transformers._get_candidate_generator(*args, **kwargs), count)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        implicit_embeddings: Tensor | None = None,
        implicit_columns: int | Tensor | None = None,
        implicit_unused: Tensor | None = None,
        implicit_start: int = 0,
        **kwargs: Any,
    ) -> Any:
        """Prepare inputs as the host does; the pass over the prompt gets embeddings with the implicit tokens."""
        starts = past_key_values is None or past_key_values.get_seq_length() == 0
        if implicit_embeddings is not None and implicit_columns is not None and starts:
            text = input_ids[:, implicit_embeddings.shape[1] :]
            slots = None if implicit_unused is None else Slots(implicit_unused, implicit_start)
            inputs_embeds = self._spliced_prompt(text, implicit_embeddings, implicit_columns, slots)
            next_sequence_length, is_first_iteration = None, True
        host: Any = self.host
        return host.prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )

    # Checks

    def _check_options(self, generation_config: GenerationConfig | None, kwargs: dict[str, Any]) -> None:
        if getattr(generation_config, "is_assistant", False):
            # These belong to the model that is assisted.
            kwargs.pop("position_ids", None)
        for name in ("inputs_embeds", "custom_generate", "position_ids", "token_type_ids"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{name} cannot be used with implicit tokens, which need input_ids and transformers' own loops: "
                    "leave it out, or pass num_implicit_tokens=0."
                )
        if "paged" in (kwargs.get("cache_implementation"), getattr(generation_config, "cache_implementation", None)):
            raise ValueError(
                "cache_implementation='paged' feeds ids to the host alone, without implicit tokens: leave it out, or "
                "pass num_implicit_tokens=0."
            )

    def _extract_generation_mode_kwargs(self, custom_generate: Any, kwargs: dict[str, Any], *args: Any) -> Any:
        # Strategies that transformers loads from the Hub pass here, with a loop of their own.
        if custom_generate is not None and kwargs.get("implicit_embeddings") is not None:
            raise ValueError(
                "This decoding strategy is a custom_generate of the Hub, whose loop does not know implicit tokens: "
                "choose another one, or pass num_implicit_tokens=0."
            )
        return super()._extract_generation_mode_kwargs(custom_generate, kwargs, *args)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """Validate all but this model's own arguments by the host's forward."""
        host: Any = self.host
        host._validate_model_kwargs({name: value for name, value in model_kwargs.items() if name not in OWN_ARGUMENTS})

    def _supports_default_dynamic_cache(self) -> bool:  # type: ignore[override]  # depends on the instance's host
        host: Any = self.host
        return host._supports_default_dynamic_cache()

    def _check_tokens_argument(
        self,
        implicit_embeddings: Tensor | None,
        num_implicit_tokens: int | None,
        input_ids: Tensor | None,
        mask: Tensor | None,
    ) -> int:
        count = self._check_count(num_implicit_tokens)
        if input_ids is None and (implicit_embeddings is not None or count > 0):
            raise ValueError("implicit tokens need input_ids: pass them, or num_implicit_tokens=0 for the host alone.")
        if implicit_embeddings is None or input_ids is None:
            self._check_mask_alone(implicit_embeddings, mask)
            return count
        self._check_shape(implicit_embeddings, input_ids.shape[0], mask)
        if num_implicit_tokens not in (None, implicit_embeddings.shape[1]):
            raise ValueError(
                f"num_implicit_tokens={num_implicit_tokens} does not fit implicit_embeddings of shape "
                f"{tuple(implicit_embeddings.shape)}: leave num_implicit_tokens out."
            )
        return implicit_embeddings.shape[1]

    def _checked_mask(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        generation_config: GenerationConfig | None,
        kwargs: dict[str, Any],
    ) -> Tensor:
        check_shapes(input_ids, attention_mask)
        if attention_mask is not None:
            return attention_mask if attention_mask.dtype == torch.long else (attention_mask != 0).long()
        # The call's arguments take precedence over its configuration, and that over the model's own.
        known = [kwargs, *(getattr(config, "__dict__", {}) for config in (generation_config, self.generation_config))]
        pad, end = (
            next((values[name] for values in known if values.get(name) is not None), None)
            for name in ("pad_token_id", "eos_token_id")
        )
        return inferred_mask(input_ids, pad, end)


def _tokens_in(kwargs: dict[str, Any]) -> tuple[Any, Any, Slots | None]:
    """Return the implicit tokens among the arguments of a loop: embeddings, columns and slots."""
    unused = kwargs.get("implicit_unused")
    slots = None if unused is None else Slots(unused, kwargs["implicit_start"])
    return kwargs.get("implicit_embeddings"), kwargs.get("implicit_columns"), slots
