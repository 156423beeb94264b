"""Generation with implicit tokens, inside transformers' own generation loops.

Users, logits processors, stopping criteria and streamers only ever see text ids. The loops themselves, whose caches
and masks are longer by k, get k filler ids in front of the text; they are taken off again around each of those hooks.
"""

import copy

import torch
from transformers import GenerationMixin, LogitsProcessorList
from transformers.utils import logging

from .splicing_semcot import insertion_columns, positions_from_mask, splice
from .text_view_semcot import TextCandidates, TextProcessors, text_criteria

logger = logging.get_logger(__name__)


class SemCoTGenerationMixin(GenerationMixin):
    """`generate` with implicit tokens; everything else is transformers' GenerationMixin."""

    @torch.no_grad()
    def generate(
        self, inputs=None, generation_config=None, *, num_implicit_tokens=None, implicit_embeddings=None, **kwargs
    ):
        """Generate answers with k implicit tokens in the host's input.

        Args:
            inputs: LongTensor (batch, length) of prompts, or `input_ids=` as usual; left-padded batches need
                `attention_mask=`.
            generation_config: as in transformers.
            num_implicit_tokens: k; `config.num_implicit_tokens` when `None`; 0 gives the host's own output.
            implicit_embeddings: (batch, k, host hidden size), ready-made tokens used instead of the generator's.
            kwargs: everything that transformers' `generate` takes.

        Returns:
            Prompt ids followed by the new ids, without placeholders, or transformers' output objects.

        Raises:
            ValueError: for a bad k, embeddings of a wrong shape or with NaN, ids outside the vocabulary, prompts
                without tokens or too long for the host's context, or an option that cannot work with implicit
                tokens.
        """
        if inputs is not None and kwargs.get("input_ids") is not None:
            raise ValueError("inputs and input_ids were both passed: pass one of the two.")
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        count = self._check_tokens_argument(implicit_embeddings, num_implicit_tokens, input_ids)
        if count == 0:
            return super().generate(input_ids, generation_config, **kwargs)
        self._check_prompt(input_ids, kwargs)
        mask = kwargs.pop("attention_mask", None)
        if mask is None:
            mask = self._mask_of(input_ids, generation_config)
        self._check_context(mask, count, kwargs)
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            return self._continue(input_ids, mask, generation_config, kwargs)
        columns, found = insertion_columns(input_ids, mask, self.config.answer_prompt_ids)
        self._warn_of_missing_answer_prompt(found)
        if implicit_embeddings is None:
            implicit_embeddings = self._make_tokens(input_ids, mask, columns, count)
        if not torch.isfinite(implicit_embeddings).all():
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
            **kwargs,
        )

    def _continue(self, input_ids, mask, generation_config, kwargs):
        """Go on from a returned cache, whose first turn holds its implicit tokens already."""
        cache = kwargs["past_key_values"]
        columns = getattr(cache, "implicit_columns", None)
        if columns is None:
            raise ValueError(
                "past_key_values holds a prefix that this model's generate did not make, so it is not known where "
                "its implicit tokens stand: pass a cache returned by generate, or num_implicit_tokens=0."
            )
        filler = torch.empty(input_ids.shape[0], cache.implicit_count, 0, device=input_ids.device)
        return super().generate(
            input_ids,
            generation_config,
            attention_mask=mask,
            implicit_embeddings=filler,
            implicit_columns=columns,
            **kwargs,
        )

    # What the loops are handed

    def _sample(self, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        return self._loop(super()._sample, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)

    def _beam_search(self, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        return self._loop(
            super()._beam_search, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs
        )

    def _assisted_decoding(
        self, input_ids, logits_processor, stopping_criteria, generation_config, inputs_tensor=None, **kwargs
    ):
        return self._loop(
            super()._assisted_decoding,
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            inputs_tensor=inputs_tensor,
            **kwargs,
        )

    def _loop(self, loop, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        tokens, columns = kwargs.get("implicit_embeddings"), kwargs.get("implicit_columns")
        if tokens is None:
            return loop(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
        count = tokens.shape[1]
        if generation_config.prefill_chunk_size is not None:
            raise ValueError(
                f"prefill_chunk_size={generation_config.prefill_chunk_size} cannot be used with implicit tokens: "
                "leave it out, or pass num_implicit_tokens=0."
            )
        mask = kwargs.get("attention_mask")
        text_mask = torch.ones_like(input_ids) if mask is None else mask
        longer_mask = splice(text_mask, text_mask.new_ones(text_mask.shape[0], count), columns)
        kwargs["position_ids"] = positions_from_mask(longer_mask)
        kwargs["attention_mask"] = None if mask is None else longer_mask
        generation_config.max_length = self._length_in_context(generation_config.max_length, text_mask, count)
        generation_config.max_length += count
        if getattr(generation_config, "_mask_length", None) is not None:
            generation_config._mask_length += count
        outputs = loop(
            torch.cat([input_ids[:, :1].expand(-1, count), input_ids], dim=1),
            logits_processor=TextProcessors(logits_processor, count),
            stopping_criteria=text_criteria(stopping_criteria, count, generation_config.max_length),
            generation_config=generation_config,
            **kwargs,
        )
        if isinstance(outputs, torch.Tensor):
            return outputs[:, count:]
        outputs.sequences = outputs.sequences[:, count:]
        if outputs.past_key_values is not None:
            outputs.past_key_values.implicit_count = count
            outputs.past_key_values.implicit_columns = columns
        return outputs

    def _length_in_context(self, max_length, mask, count):
        """`max_length` in text tokens, cut to what fits the host's positions beside `count` implicit tokens."""
        context, width = self._context(), mask.shape[1]
        if context is None:
            return max_length
        room = context - count - int(mask.sum(dim=1).max())
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
            embeds = self.get_input_embeddings()(text)
            inputs_embeds = splice(embeds, implicit_embeddings.to(embeds), implicit_columns)
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

    def _check_prompt(self, input_ids, kwargs):
        if kwargs.get("inputs_embeds") is not None:
            raise ValueError(
                "inputs_embeds cannot be used with implicit tokens, whose generator reads ids: pass input_ids, or "
                "num_implicit_tokens=0."
            )
        if input_ids.dim() != 2 or input_ids.shape[1] == 0:
            raise ValueError(
                f"input_ids has shape {tuple(input_ids.shape)}: must be (batch, length) with at least one token."
            )
        size = self.config.get_text_config().vocab_size
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= size:
            raise ValueError(f"input_ids holds ids from {low} to {high}: must lie within 0 and {size - 1}.")
        mask = kwargs.get("attention_mask")
        if mask is None:
            return
        if mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)}: must be that of input_ids, {tuple(input_ids.shape)}."
            )
        if not bool((mask != 0).any(dim=1).all()):
            raise ValueError("attention_mask has a row of padding only: every prompt needs at least one token.")

    def _check_context(self, mask, count, kwargs):
        """Prompt, implicit tokens and the new tokens asked for by name must fit the host's positions."""
        context = self._context()
        if context is None:
            return
        length, new = int(mask.sum(dim=1).max()), 1
        if kwargs.get("max_new_tokens") is not None:
            new = kwargs["max_new_tokens"]
        elif kwargs.get("max_length") is not None:
            new = max(1, kwargs["max_length"] - mask.shape[1])
        if length + count + new > context:
            raise ValueError(
                f"A prompt of {length} tokens, {count} implicit tokens and {new} new tokens are more than the host's "
                f"context of {context}: shorten the prompt or lower max_new_tokens."
            )

    def _context(self):
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    def _mask_of(self, input_ids, generation_config):
        """The mask that transformers infers: pad ids count as padding where pad and end of sequence differ."""
        config = generation_config or self.generation_config
        pad, eos = config.pad_token_id, config.eos_token_id
        ends = [eos] if isinstance(eos, int) else (eos or [])
        if pad is None or pad in ends:
            return torch.ones_like(input_ids)
        return (input_ids != pad).long()

    def _warn_of_missing_answer_prompt(self, found):
        if not bool(found.all()):
            logger.warning_once(
                "Some prompts do not end on the answer prompt this model was trained with (config.answer_prompt_ids); "
                "their implicit tokens go to the prompt's end. The tokenizer's chat template saved with the "
                "checkpoint adds the answer prompt: tokenizer.apply_chat_template(..., add_generation_prompt=True)."
            )
