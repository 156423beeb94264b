"""Implicit tokens: the generator's pass over the query, and the projection of its states into the host's space."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.utils import logging

from .configuration_semcot import text_config
from .few_shot_semcot import without_few_shot
from .offloading_semcot import in_memory
from .parts_semcot import first_position
from .splicing_semcot import (
    check_first_ids,
    check_shapes,
    context_of,
    extended_mask,
    generator_queries,
    insertion_columns,
    positions_from_mask,
)
from .thoughts_semcot import SemCoTThoughtsMixin, Thoughts, word_entropy
from .vocabularies_semcot import retokenize
from .weights_semcot import check_adapters

logger = logging.get_logger(__name__)


class SemCoTTokensMixin(SemCoTThoughtsMixin):
    """The methods of `SemCoTForCausalLM` that compute implicit tokens and, for mixtures of words, decode them."""

    # Set by `compile_generator`.
    _compiled_tokens: Callable[..., tuple[Tensor | None, ...]] | None = None

    def compile_generator(self, **options: Any) -> None:
        """Compile the computation of implicit tokens, the pass over the query and all k steps, into one graph.

        This removes Python's overhead, which dominates small generators. Tokens differ by rounding. The first call for
        each kind of input (one query or several, padded or not, each k) waits for the compiler, up to a minute for
        small generators; on a CPU, torch needs a C++ compiler. On a GPU, `mode="reduce-overhead", dynamic=False` also
        captures a CUDA graph for each shape of queries, which removes the time to launch its kernels.
        With thought_length="adaptive", a compiled generator always takes all k steps, and what follows a thought's end
        is left out afterwards; a thought prompt is read again for each question.
        Calls with gradients (training) stay uncompiled. Saved checkpoints and copies of the model are unaffected.

        Args:
            options: arguments of `torch.compile`. Defaults are `dynamic=True` and, on a CPU,
                `options={"cpp_wrapper": True}`, which removes Python from the graph. With `fullgraph=True`, the first
                call raises torch's error if the generator's code does not compile to one graph, or if there are more
                kinds of input than torch's `recompile_limit` (8); without it, these parts run uncompiled.
        """
        chosen = {"dynamic": True, **options}
        if self.projection_device().type == "cpu" and not {"backend", "mode", "options"} & options.keys():
            chosen["options"] = {"cpp_wrapper": True}
        self._compiled_tokens = torch.compile(_tokens, **chosen)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_compiled_tokens": None}

    def implicit_embeddings(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        num_implicit_tokens: int | None = None,
        completion_mask: Tensor | None = None,
        return_mask: bool = False,
    ) -> Any:
        """Compute the implicit tokens Z of prompts (SemCoT, equations of section 3.2).

        Args:
            input_ids: LongTensor (batch, length), prompts with or without the answer prompt at their end.
            attention_mask: (batch, length), padding on either side; all ones if `None`.
            num_implicit_tokens: k; `config.num_implicit_tokens` if `None`.
            completion_mask: (batch, length), 1 on tokens that follow the prompt, which the generator does not read.
            return_mask: whether to return the mask of the tokens, too.

        Returns:
            FloatTensor (batch, k, host hidden size), in the host's embedding space and dtype. With
            thought_length="adaptive", k is the length of the batch's longest thought, and zeros follow shorter ones.
            With `return_mask`, a pair of these and LongTensor (batch, k), 1 where a token is.

        Raises:
            ValueError: as `implicit_thoughts` does.
        """
        thoughts = self.implicit_thoughts(input_ids, attention_mask, num_implicit_tokens, completion_mask)
        tokens, mask = thoughts.embeddings, thoughts.mask
        if not return_mask:
            return tokens
        ones = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        return tokens, ones if mask is None else mask

    def implicit_thoughts(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        num_implicit_tokens: int | None = None,
        completion_mask: Tensor | None = None,
    ) -> Thoughts:
        """Compute the implicit tokens of prompts as `implicit_embeddings` does; return them with how they were made.

        Args:
            input_ids, attention_mask, num_implicit_tokens, completion_mask: as in `implicit_embeddings`.

        Returns:
            `Thoughts`: embeddings, their mask, whether each thought was ended, its words, what share of each mixture
            is on words that the host lacks, and whether the thought was therefore handed over as text.

        Raises:
            ValueError: for k out of range, a prompt without tokens, a mask of another shape, or ids that the host's
                vocabulary lacks.
        """
        count = self._check_count(num_implicit_tokens)
        check_shapes(input_ids, attention_mask)
        check_first_ids(input_ids, None, self.config.get_text_config().vocab_size)
        return self._make_thoughts(*self._queries(input_ids, attention_mask, completion_mask), count, read=True)

    def _queries(
        self, input_ids: Tensor, attention_mask: Tensor | None, completion_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the queries of prompts as `generator_queries` does."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        columns, _ = insertion_columns(input_ids, mask, self.config.answer_prompt_ids or [], completion_mask)
        return generator_queries(input_ids, mask, columns, self._pad_id())

    def _make_tokens(self, ids: Tensor, mask: Tensor | None, count: int) -> tuple[Tensor, Tensor | None]:
        """Return embeddings and mask of `_make_thoughts`."""
        thoughts = self._make_thoughts(ids, mask, count)
        return thoughts.embeddings, thoughts.mask

    def _make_thoughts(
        self, ids: Tensor, mask: Tensor | None, count: int, read: bool = False, sampler: Any = None
    ) -> Thoughts:
        """Compute implicit tokens of queries (batch, length) padded on the left, or with `mask=None` not padded.

        With `read`, words, their shares and the entropy are part of it. With a `CandidateSampler` there are as many
        rows for each query, one after another.
        """
        check_adapters(self, self.host, self.generator)
        if count == 0:
            size, dtype = self.config.get_text_config().hidden_size, self.get_input_embeddings().weight.dtype
            return Thoughts(torch.empty(ids.shape[0], 0, size, device=self.projection_device(), dtype=dtype))
        ids, mask = self._generator_inputs(ids, mask)
        context = context_of(text_config(self.config.generator_config))
        prompt = sum(map(len, self.config.thought_prompt_ids or []))
        if context is not None and prompt + ids.shape[1] + count > context:
            further = f", a thought prompt of {prompt}" if prompt else ""
            raise ValueError(
                f"A query of {ids.shape[1]} tokens{further} and {count} implicit tokens are more than the generator's "
                f"context of {context}: shorten the query."
            )
        if self._compiled_tokens is None or torch.is_grad_enabled() or sampler is not None:
            made: Any = _tokens(self, ids, mask, count, read, sampler)
        else:
            # Slices of wider prompts have strides that would need a graph of their own.
            inputs = (x if x is None else x.clone(memory_format=torch.contiguous_format) for x in (ids, mask))
            made = self._compiled_tokens(self, *inputs, count, read)
            # With captured CUDA graphs (mode="reduce-overhead") the next call overwrites the returned tensors.
            made = [part.clone() if part is not None and part.is_cuda else part for part in made]
        tokens, used, *readings = made
        if used is None:
            return Thoughts(tokens, None, None, None, *readings)
        lengths = used.sum(dim=1)
        longest = int(lengths.max())
        used = used[:, :longest]
        behind = used == 0
        tokens = tokens[:, :longest].masked_fill(behind.to(tokens.device)[..., None], 0)
        lost, words, shares, entropy = (
            part if part is None else part[:, :longest].masked_fill(behind, fill)
            for part, fill in zip(readings, (0, -1, 0, 0), strict=True)
        )
        thoughts = Thoughts(tokens, used, lengths < count, lengths, lost, words, shares, entropy)
        return thoughts if lost is None else self._handed_over_as_text(thoughts, count)

    def _generator_inputs(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return queries and their mask in the generator's token ids, checked and on its device."""
        device, host_words = self.projection_device(), self.get_input_embeddings().weight
        ids, mask = without_few_shot(ids, mask, self.config.few_shot_ids)
        if self.config.thought_prompt_ids is not None:
            ids, mask = self._questions(ids, mask)
        if self.config.separate_generator_tokenizer:
            # Language models that continue in words know no text without its first token.
            starts = self.config.projection == "vocabulary" and self.config.thought_prompt_ids is None
            tokenizers = (self.host_tokenizer, self.generator_tokenizer)
            ids, mask = retokenize(ids, mask, *tokenizers, self.config.question_spaces, starts)
        ids, mask = ids.to(device), mask if mask is None else mask.to(device)
        known = text_config(self.config.generator_config).vocab_size
        # Only checked if the host has more words, since reading the largest id synchronizes with the device.
        if known < host_words.shape[0] and int(ids.max()) >= known:
            raise ValueError(
                f"input_ids holds the id {int(ids.max())}, but the generator knows {known} ids: host and generator "
                "must share a tokenizer, or host_tokenizer= and generator_tokenizer= be passed to "
                "SemCoTForCausalLM.from_host_generator_pretrained."
            )
        return ids, mask

    def generator_states(self, ids: Tensor, mask: Tensor | None, count: int, cache: Cache | None = None) -> Tensor:
        """Return the generator states of the implicit tokens.

        In parallel mode they come from one pass over [query, count x <thought>] (SemCoT, section 3.2). In sequential
        mode the query and one <thought> give the first state, and each further state takes one step with cached keys
        and values, whose input is the `feedback` of the last state (Coconut's recurrence).

        Args:
            ids: (batch, length), queries padded on the left; without the cached columns if there is a cache.
            mask: (batch, cached columns + length); `None` without padding and cache, which spares building masks.
            count: number of tokens, at least 1.
            cache: keys and values of the queries' first columns in the generator; the pass appends to it.

        Returns:
            (batch, count, generator hidden size).

        Raises:
            ValueError: for a sequential generator with recurrent layers, which overwrite their state at each step, if
                gradients are enabled.
        """
        return self._states(ids, mask, count, cache)[0]

    def _states(
        self,
        ids: Tensor,
        mask: Tensor | None,
        count: int,
        cache: Cache | None = None,
        read: Callable[[Tensor], Tensor] | None = None,
        copies: int = 1,
    ) -> tuple[Tensor, Tensor | None]:
        """Return `generator_states`, and with thought_length="adaptive" the mask (batch, k) of what precedes an end.

        With a thought prompt and without a cache, `ids` are questions around which the prompt is put. `read` is called
        with the next-token logits (batch, 1, vocabulary) of each step of a generator that continues in words, so that
        the LM head, a large part of a small generator, runs once for each; what it returns takes their place. A
        generator that continues in words makes `copies` rows of each query, which it reads once.
        """
        if self.config.thought_prompt_ids is not None and cache is None:
            ids, mask, cache = self._prompted(ids, mask)
        query = self.generator.get_input_embeddings()(ids)
        thought = in_memory(self, "thought_embedding").to(query)
        mask = None if mask is None else extended_mask(mask, count)
        if self.config.generator_mode == "sequential":
            thoughts = thought.expand(query.shape[0], 1, -1)
            return self._sequential_states(query, thoughts, mask, count, cache, read, copies)
        embeds = torch.cat([query, thought.expand(query.shape[0], count, -1)], dim=1)
        options: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        if mask is not None:
            positions = positions_from_mask(mask)[:, -embeds.shape[1] :] + first_position(self.generator)
            options |= {"attention_mask": mask, "position_ids": positions}
        states = self.generator(inputs_embeds=embeds, use_cache=cache is not None, **options).last_hidden_state
        start = query.shape[1] + self.config.state_offset
        return states[:, start : start + count], None

    def _sequential_states(
        self,
        query: Tensor,
        thought: Tensor,
        mask: Tensor | None,
        count: int,
        cache: Cache | None,
        read_logits: Callable[[Tensor], Tensor] | None,
        copies: int = 1,
    ) -> tuple[Tensor, Tensor | None]:
        if self.generator._is_stateful and torch.is_grad_enabled():
            raise ValueError(
                f"generator_mode='sequential' cannot be trained with a {self.generator.config.model_type} generator, "
                "whose layers overwrite their state at each step: choose generator_mode='parallel', or another "
                "generator."
            )
        if copies > 1 and self.generator._is_stateful:
            # The state of recurrent layers cannot be repeated.
            query, thought = (part.repeat_interleave(copies, dim=0) for part in (query, thought))
            mask, copies = None if mask is None else mask.repeat_interleave(copies, dim=0), 1
        if mask is None:
            positions = torch.arange(query.shape[1] + count, device=query.device)[None]
        else:
            positions = positions_from_mask(mask)
        read = positions.shape[1] - count - query.shape[1]
        cache = DynamicCache(config=self.generator.config) if cache is None else cache
        compiling = torch.compiler.is_compiling()
        if not self.config.starts_with_thought_token:
            inputs = [query]
        elif compiling:
            # A separate pass over the query lets the compiler drop what its last layer computes beyond keys and
            # values.
            inputs = [query, thought]
        else:
            inputs = [torch.cat([query, thought], dim=1)]
        adaptive, in_words = self.config.thought_length == "adaptive", self.config.projection == "vocabulary"
        states: list[Tensor] = []
        used: list[Tensor] = []
        logits: Any = None
        while len(states) < count:
            if inputs:
                embeds = inputs.pop(0)
            elif logits is None:
                embeds = self.feedback(states[-1])
            else:
                embeds = self._fed_back(logits).to(query.dtype)
            start, read = read, read + embeds.shape[1]
            state = (
                self.generator(
                    inputs_embeds=embeds,
                    attention_mask=None if mask is None else mask[:, :read],
                    position_ids=positions[:, start:read],
                    past_key_values=cache,
                    use_cache=True,
                )
                .last_hidden_state[:, -1:]
                .contiguous()
            )
            if inputs:
                continue
            if copies > 1 and not states:
                state = state.repeat_interleave(copies, dim=0)
                if mask is not None:
                    mask, positions = (part.repeat_interleave(copies, dim=0) for part in (mask, positions))
                cache.batch_repeat_interleave(copies)
            states.append(state)
            if adaptive or (in_words and read_logits is not None):
                logits = self.word_logits(state)
            if read_logits is not None and logits is not None:
                logits = read_logits(logits)
            if adaptive:
                goes_on = ~self.ends_thought(logits)
                used.append(goes_on & used[-1] if used else goes_on)
                if not compiling and not used[-1].any():
                    break
        return torch.cat(states, dim=1), torch.cat(used, dim=1).long() if adaptive else None

    def _check_shape(self, embeddings: Tensor, batch: int, mask: Tensor | None = None) -> None:
        size = self.config.get_text_config().hidden_size
        shape = tuple(getattr(embeddings, "shape", ()))
        if len(shape) != 3 or shape[0] != batch or shape[2] != size:
            raise ValueError(
                f"implicit_embeddings has shape {shape}: must be (batch, k, hidden size) = ({batch}, k, {size})."
            )
        if not embeddings.is_floating_point():
            raise ValueError(f"implicit_embeddings has dtype {embeddings.dtype}: must be floating-point numbers.")
        if mask is not None and tuple(getattr(mask, "shape", ())) != shape[:2]:
            raise ValueError(
                f"implicit_attention_mask has shape {tuple(getattr(mask, 'shape', ()))}: must be that of the tokens, "
                f"(batch, k) = {shape[:2]}."
            )

    @staticmethod
    def _check_mask_alone(embeddings: Tensor | None, mask: Tensor | None) -> None:
        if embeddings is None and mask is not None:
            raise ValueError(
                "implicit_attention_mask belongs to implicit_embeddings, which are None: pass both, as "
                "model.implicit_embeddings(..., return_mask=True) returns them."
            )

    def _pad_id(self) -> int:
        pad = self.config.get_text_config().pad_token_id
        return 0 if pad is None else pad

    def _check_count(self, num_implicit_tokens: int | None) -> int:
        count = self.config.num_implicit_tokens if num_implicit_tokens is None else num_implicit_tokens
        try:
            # NumPy's integers are accepted too.
            whole = -1 if isinstance(count, bool) else range(count).stop
        except TypeError:
            whole = -1
        if whole < 0:
            raise ValueError(f"num_implicit_tokens={count!r}: must be an integer of 0 or more.")
        if whole > self.config.num_implicit_tokens:
            logger.warning_once(
                f"num_implicit_tokens={whole} is more than the {self.config.num_implicit_tokens} this model was "
                "trained with (config.num_implicit_tokens): answers may get worse."
            )
        return whole


def _tokens(
    model: SemCoTTokensMixin, ids: Tensor, mask: Tensor | None, count: int, read: bool = False, sampler: Any = None
) -> tuple[Tensor | None, ...]:
    """Return tokens and mask, the `_lost_share` of a generator of another tokenizer, the most probable words with
    their shares, and the entropy of the words; `None` for what there is not or, but for the first three, was not to
    be `read`.
    """
    tokens: list[Tensor] = []
    readings: tuple[list[Tensor], ...] = ([], [], [], [])
    dtype, host_ids = model.get_input_embeddings().weight.dtype, model.host_word_ids

    def note(logits: Tensor) -> Tensor:
        own, logits = logits, logits if sampler is None else sampler(logits)
        tokens.append(model._host_mixture(logits).to(dtype))
        lost, words, shares, entropies = readings
        with torch.no_grad():
            if host_ids is not None:
                lost.append(model._lost_share(logits, host_ids))
            if host_ids is not None or read:
                word, share = model._most_probable(logits)
                words.append(word)
                shares.append(share)
            if read:
                entropies.append(word_entropy(own))
        return logits

    copies = 1 if sampler is None else sampler.number
    states, used = model._states(ids, mask, count, read=note, copies=copies)
    if not tokens and model.config.projection == "vocabulary":
        note(model.word_logits(states))
    made = torch.cat(tokens, dim=1) if tokens else model.tokens_of(states)
    return made, used, *(torch.cat(parts, dim=1) if parts else None for parts in readings)
