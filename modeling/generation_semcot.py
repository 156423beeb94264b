"""Generation with implicit tokens, inside transformers' own generation loops.

Users, logits processors, stopping criteria and streamers only ever see text ids. The loops themselves, whose caches
and masks are longer by k, get k filler ids in front of the text; they are taken off again around each of those hooks.
"""

import copy
import math

import torch
from transformers import GenerationMixin, LogitsProcessorList
from transformers.utils import logging

from .splicing_semcot import (
    check_context,
    check_layout,
    check_shapes,
    context_of,
    generator_queries,
    inferred_mask,
    positions_from_mask,
    prompt_layout,
    splice,
)
from .text_view_semcot import TextCandidates, TextProcessors, text_criteria

logger = logging.get_logger(__name__)


class SemCoTGenerationMixin(GenerationMixin):
    """`generate` with implicit tokens; everything else is transformers' GenerationMixin."""

    @torch.no_grad()
    def generate(
        self,
        inputs=None,
        generation_config=None,
        logits_processor=None,
        stopping_criteria=None,
        *,
        num_implicit_tokens=None,
        implicit_embeddings=None,
        **kwargs,
    ):
        """Generate answers with k implicit tokens in the host's input.

        Args:
            inputs: LongTensor (batch, length) of prompts, or `input_ids=` as usual; left-padded batches need
                `attention_mask=`.
            generation_config, logits_processor, stopping_criteria: as in transformers.
            num_implicit_tokens: k; `config.num_implicit_tokens` when `None`; 0 gives the host's own output.
            implicit_embeddings: (batch, k, host hidden size), ready-made tokens used instead of the generator's.
            kwargs: everything that transformers' `generate` takes. `past_key_values` may hold the host's pass over
                the first columns of the prompts, such as a prefix shared by all (`inputs` stay whole, since the
                generator reads all of them), or be a cache that this method returned, to go on from.

        Returns:
            Prompt ids followed by the new ids, without placeholders, or transformers' output objects.

        Raises:
            ValueError: for a bad k, embeddings of a wrong shape or with NaN, ids outside the vocabulary, prompts
                without tokens or too long for the host's or the generator's context, a cache that does not fit, or an
                option that cannot work with implicit tokens.
        """
        if inputs is not None and kwargs.get("input_ids") is not None:
            raise ValueError("inputs and input_ids were both passed: pass one of the two.")
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        count = self._check_tokens_argument(implicit_embeddings, num_implicit_tokens, input_ids)
        cache = kwargs.get("past_key_values")
        # Its first turn holds implicit tokens already: what stands for them has their number only.
        held = _holds_tokens(cache, getattr(generation_config, "is_assistant", False))
        if held:
            count = _held_tokens(cache, num_implicit_tokens, implicit_embeddings)
        hooks = {"logits_processor": logits_processor, "stopping_criteria": stopping_criteria}
        if count == 0:
            return super().generate(input_ids, generation_config, **hooks, **kwargs)
        self._check_options(generation_config, kwargs)
        host_config = self.config.get_text_config()
        mask = self._checked_mask(input_ids, kwargs.pop("attention_mask", None), generation_config, kwargs)
        layout = prompt_layout(input_ids, mask, self.config.answer_prompt_ids)
        check_layout(layout, host_config.vocab_size)
        check_context(layout.longest, count, self._new_tokens(input_ids, kwargs), context_of(host_config))
        columns = layout.columns
        if held:
            columns = _held_columns(cache.implicit_columns, input_ids.shape[0])
            implicit_embeddings = torch.empty(input_ids.shape[0], count, 0, device=input_ids.device)
        else:
            self._check_prefix(cache, columns)
            self._warn_of_missing_answer_prompt(layout.found)
            if implicit_embeddings is None:
                queries = generator_queries(input_ids, mask, layout, self._pad_id())
                implicit_embeddings = self._make_tokens(*queries, count)
            # NaN and infinity stay what they are in a sum, which float16 might not hold.
            if not math.isfinite(implicit_embeddings.sum(dtype=torch.float32)):
                raise ValueError(
                    f"implicit_embeddings (dtype {implicit_embeddings.dtype}) holds NaN or infinity: check the "
                    "embeddings passed, or else the checkpoint's weights and dtype."
                )
        return super().generate(
            input_ids,
            generation_config,
            attention_mask=mask,
            implicit_embeddings=implicit_embeddings,
            implicit_columns=columns,
            **hooks,
            **kwargs,
        )

    def init_continuous_batching(self, *args, **kwargs):
        """transformers' continuous batching, which would leave implicit tokens out: for models without any alone."""
        if self.config.num_implicit_tokens > 0:
            raise ValueError(
                "Continuous batching (generate_batch) feeds ids to the host alone, without implicit tokens: use "
                "generate, or model.host.generate_batch for the host's own answers."
            )
        return super().init_continuous_batching(*args, **kwargs)

    # What the loops are handed

    def _sample(self, input_ids, **kwargs):
        return self._loop("_sample", input_ids, **kwargs)

    def _beam_search(self, input_ids, **kwargs):
        return self._loop("_beam_search", input_ids, **kwargs)

    # Named, `inputs_tensor` is handed over.
    def _assisted_decoding(self, input_ids, inputs_tensor=None, **kwargs):
        return self._loop("_assisted_decoding", input_ids, inputs_tensor=inputs_tensor, **kwargs)

    def _loop(self, name, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        """Run one of transformers' loops on ids that are longer by k fillers.

        The host itself runs it where the loop takes the embeddings of the pass over the prompt, so that a decode step
        is the host's own; the loop reads ids again at each step without a cache, and when assisted.
        """
        tokens, columns = kwargs.get("implicit_embeddings"), kwargs.get("implicit_columns")
        by_host = name != "_assisted_decoding" and kwargs["use_cache"] and not generation_config.is_assistant
        loop = getattr(self.host if by_host else super(), name)
        if tokens is None:
            return loop(
                input_ids,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                generation_config=generation_config,
                **kwargs,
            )
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
            del kwargs["implicit_embeddings"], kwargs["implicit_columns"]
            if size > 0:
                kwargs["inputs_embeds"] = self._spliced_prompt(input_ids, tokens, columns)
        mask, length = kwargs.get("attention_mask"), input_ids.shape[1]
        if mask is None:
            kwargs["position_ids"] = torch.arange(length + count, device=input_ids.device)[None]
            longest = length
        else:
            longest = int(mask.sum(dim=1).max())
            kwargs["attention_mask"] = splice(mask, mask.new_ones(mask.shape[0], count), columns)
            kwargs["position_ids"] = positions_from_mask(kwargs["attention_mask"])
        generation_config.max_length = count + self._length_in_context(
            generation_config.max_length, length, longest, count
        )
        if getattr(generation_config, "_mask_length", None) is not None:
            generation_config._mask_length += count
        outputs = loop(
            torch.cat([input_ids[:, :1].expand(-1, count), input_ids], dim=1),
            logits_processor=TextProcessors(logits_processor, count) if logits_processor else logits_processor,
            stopping_criteria=text_criteria(stopping_criteria, count, generation_config.max_length),
            generation_config=generation_config,
            **kwargs,
        )
        tensor = isinstance(outputs, torch.Tensor)
        for filled in (cache, None if tensor else outputs.past_key_values):
            if filled is not None:
                filled.implicit_count, filled.implicit_columns = count, columns
        if tensor:
            return outputs[:, count:]
        outputs.sequences = outputs.sequences[:, count:]
        return outputs

    def _spliced_prompt(self, text_ids, tokens, columns):
        embeds = self.get_input_embeddings()(text_ids.to(tokens.device))
        return splice(embeds, tokens.to(embeds), columns)

    def _length_in_context(self, max_length, width, longest, count):
        """`max_length` in text tokens, cut to what fits the host's positions beside `count` implicit tokens."""
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

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ):
        tokens = model_kwargs.get("implicit_embeddings")
        if tokens is not None:
            max_cache_length += tokens.shape[1]
        return super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )

    def _get_candidate_generator(self, generation_config, input_ids, logits_processor, model_kwargs, **kwargs):
        tokens = model_kwargs.get("implicit_embeddings")
        if tokens is None:
            return super()._get_candidate_generator(
                generation_config, input_ids, logits_processor=logits_processor, model_kwargs=model_kwargs, **kwargs
            )
        count = tokens.shape[1]
        text_config = copy.copy(generation_config)
        text_config.max_length -= count
        text_kwargs = {key: value for key, value in model_kwargs.items() if not key.startswith("implicit_")}
        if text_kwargs.get("attention_mask") is not None:
            text_kwargs["attention_mask"] = text_kwargs["attention_mask"][:, count:]
        candidates = super()._get_candidate_generator(
            generation_config=text_config,
            input_ids=input_ids[:, count:],
            logits_processor=LogitsProcessorList(logits_processor),
            model_kwargs=text_kwargs,
            **kwargs,
        )
        return TextCandidates(candidates, count)

    def prepare_inputs_for_generation(
        self,
        input_ids,
        next_sequence_length=None,
        past_key_values=None,
        attention_mask=None,
        inputs_embeds=None,
        is_first_iteration=False,
        implicit_embeddings=None,
        implicit_columns=None,
        **kwargs,
    ):
        """The host's own preparation; a pass over the prompt gets its embeddings with the implicit tokens in place."""
        starts = past_key_values is None or past_key_values.get_seq_length() == 0
        if implicit_embeddings is not None and starts:
            text = input_ids[:, implicit_embeddings.shape[1] :]
            inputs_embeds = self._spliced_prompt(text, implicit_embeddings, implicit_columns)
            next_sequence_length, is_first_iteration = None, True
        return self.host.prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )

    # Checks

    def _check_options(self, generation_config, kwargs):
        if getattr(generation_config, "is_assistant", False):
            # Those of the model that it assists.
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

    def _extract_generation_mode_kwargs(self, custom_generate, kwargs, *args):
        # Strategies that transformers fetches from the Hub come by here with their own loop.
        if custom_generate is not None and kwargs.get("implicit_embeddings") is not None:
            raise ValueError(
                "This decoding strategy is a custom_generate of the Hub, whose loop does not know implicit tokens: "
                "choose another one, or pass num_implicit_tokens=0."
            )
        return super()._extract_generation_mode_kwargs(custom_generate, kwargs, *args)

    def _validate_model_kwargs(self, model_kwargs):
        """The host tells what it takes."""
        own = ("implicit_embeddings", "implicit_columns")
        self.host._validate_model_kwargs({name: value for name, value in model_kwargs.items() if name not in own})

    def _supports_default_dynamic_cache(self):
        return self.host._supports_default_dynamic_cache()

    def _check_tokens_argument(self, implicit_embeddings, num_implicit_tokens, input_ids):
        count = self._check_count(num_implicit_tokens)
        if input_ids is None and (implicit_embeddings is not None or count > 0):
            raise ValueError("implicit tokens need input_ids: pass them, or num_implicit_tokens=0 for the host alone.")
        if implicit_embeddings is None:
            return count
        self._check_shape(implicit_embeddings, input_ids.shape[0])
        if num_implicit_tokens not in (None, implicit_embeddings.shape[1]):
            raise ValueError(
                f"num_implicit_tokens={num_implicit_tokens} does not fit implicit_embeddings of shape "
                f"{tuple(implicit_embeddings.shape)}: leave num_implicit_tokens out."
            )
        return implicit_embeddings.shape[1]

    def _checked_mask(self, input_ids, attention_mask, generation_config, kwargs):
        check_shapes(input_ids, attention_mask)
        if attention_mask is None:
            # What the call says goes before what its configuration says, and that before the model's own.
            known = [getattr(config, "__dict__", {}) for config in (generation_config, self.generation_config)]
            pad, end = (
                next((values[name] for values in (kwargs, *known) if values.get(name) is not None), None)
                for name in ("pad_token_id", "eos_token_id")
            )
            return inferred_mask(input_ids, pad, end)
        return attention_mask if attention_mask.dtype == torch.long else (attention_mask != 0).long()

    def _new_tokens(self, input_ids, kwargs):
        """New tokens asked for by name; one at least."""
        if kwargs.get("max_new_tokens") is not None:
            return kwargs["max_new_tokens"]
        length = kwargs.get("max_length")
        return 1 if length is None else max(1, length - input_ids.shape[1])

    def _check_prefix(self, cache, columns):
        """A cache of the prompts' first columns must end before the implicit tokens."""
        cached = 0 if cache is None else int(cache.get_seq_length())
        if cached == 0:
            return
        first = columns if isinstance(columns, int) else int(columns.min())
        if cached > first:
            raise ValueError(
                f"past_key_values holds {cached} columns that this model's generate did not make, but implicit tokens "
                f"go before column {first}: pass a cache of at most the columns before it, one returned by generate, "
                "or num_implicit_tokens=0."
            )

    def _warn_of_missing_answer_prompt(self, found):
        if not found:
            logger.warning_once(
                "Some prompts do not end on the answer prompt this model was trained with (config.answer_prompt_ids); "
                "their implicit tokens go to the prompt's end. The tokenizer's chat template saved with the "
                "checkpoint adds the answer prompt: tokenizer.apply_chat_template(..., add_generation_prompt=True)."
            )


def _holds_tokens(cache, is_assistant):
    """Whether a cache holds the implicit tokens that `generate` put there once.

    Cut back to less, it is a prefix again; but an assistant's is cut by a loop that counts text only.
    """
    cached = int(cache.get_seq_length()) if hasattr(cache, "implicit_columns") else 0
    if cached == 0:
        return False
    columns = cache.implicit_columns
    last = columns if isinstance(columns, int) else int(columns.max())
    return is_assistant or cached >= last + cache.implicit_count


def _held_tokens(cache, num_implicit_tokens, implicit_embeddings):
    """Number of the implicit tokens that a cache holds, checked against what was asked for."""
    if num_implicit_tokens not in (None, cache.implicit_count) or implicit_embeddings is not None:
        raise ValueError(
            f"past_key_values holds {cache.implicit_count} implicit tokens from its first turn: leave "
            "implicit_embeddings and num_implicit_tokens out, or start with a new cache."
        )
    return cache.implicit_count


def _held_columns(columns, batch):
    """Columns of the implicit tokens in a cache, also after `batch_repeat_interleave`."""
    if isinstance(columns, int) or len(columns) == batch:
        return columns
    if batch % len(columns):
        raise ValueError(
            f"past_key_values holds the implicit tokens of {len(columns)} rows, input_ids has {batch}: pass as many."
        )
    return columns.repeat_interleave(batch // len(columns))
