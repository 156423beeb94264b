"""SemCoTForCausalLM: a frozen host LLM whose input is extended by implicit chain-of-thought tokens."""

from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .escalated_generation_semcot import SemCoTEscalationMixin
from .loading_semcot import SemCoTLoadingMixin
from .question_cache_semcot import cacheable_columns, fill_question_cache
from .reading_semcot import SemCoTReadingMixin
from .splicing_semcot import (
    Slots,
    check_first_ids,
    check_gaps,
    check_shapes,
    generator_queries,
    insertion_columns,
    packed,
    splice,
    spliced_columns,
    spliced_mask,
)
from .weights_semcot import check_adapters, is_part
from .word_loss_semcot import SemCoTWordLossMixin

# Most logits of the step decoder that are in memory at once: half a GB in float32.
_LOGITS_AT_ONCE = 2**27


@dataclass
class SemCoTCausalLMOutput(CausalLMOutputWithPast):
    """Output of `SemCoTForCausalLM.forward`.

    `logits` and `loss` refer to text tokens only: logits[:, i] predicts text token i + 1, also if implicit tokens
    stand between the two. `hidden_states` and `attentions` include the implicit positions.

    Args:
        implicit_embeddings: (batch, k, host hidden size), the implicit tokens Z in the host's input.
        implicit_columns: (batch,), the column before which each row's tokens were inserted.
        implicit_attention_mask: (batch, k), 1 where `implicit_embeddings` holds a token; each row's tokens are its
            last ones. `None` if all of them are tokens.
        step_loss: scalar, mean cross-entropy of the step decoder, if `step_input_ids` were given.
        thought_loss: scalar, mean cross-entropy of the generator's words, if `thought_input_ids` were given.
    """

    implicit_embeddings: Tensor | None = None
    implicit_columns: Tensor | None = None
    implicit_attention_mask: Tensor | None = None
    step_loss: Tensor | None = None
    thought_loss: Tensor | None = None


class SemCoTForCausalLM(SemCoTLoadingMixin, SemCoTEscalationMixin, SemCoTReadingMixin, SemCoTWordLossMixin):
    """A frozen host LLM with an attached implicit-token generator (SemCoT, arXiv 2510.24940).

    The generator reads the query once and computes k embeddings Z = projection(states) of the host's hidden size. They
    are inserted into the host's input between the query and the answer prompt, and the host answers directly.

    Args:
        config: the configuration.
        host: the host causal LM; if `None`, it is built from `config.host_config` with random weights.
        generator: the generator's backbone (no LM head); if `None`, it is built from `config.generator_config`.
        build_host: `False` leaves the host out until `attach_host`, as loading the attached layout does.
    """

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        completion_mask: Tensor | None = None,
        implicit_embeddings: Tensor | None = None,
        implicit_attention_mask: Tensor | None = None,
        num_implicit_tokens: int | None = None,
        step_input_ids: Tensor | None = None,
        step_attention_mask: Tensor | None = None,
        thought_input_ids: Tensor | None = None,
        thought_targets: Tensor | None = None,
        use_question_cache: bool = False,
        question_cache: Cache | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the host, with implicit tokens if the prompt's end is known.

        The prompt's end follows from `completion_mask`, or else from `labels` that mask the prompt by -100. Without
        either, implicit tokens must be requested (`num_implicit_tokens`, `implicit_embeddings`), and the whole input
        is prompt. In all other cases (log-likelihoods of plain text, labels of which a row has no prompt, decoding
        steps), and with `num_implicit_tokens=0`, this is the host's own forward pass.

        Args:
            input_ids, attention_mask: (batch, length), padding on either side.
            labels: (batch, length), -100 at tokens without loss; `shift_labels` replaces them in the loss if a
                trainer has shifted them already.
            logits_to_keep: number of last text positions whose logits are returned, or a LongTensor of positions; 0
                for all.
            completion_mask: (batch, length), 1 on the completion's tokens.
            implicit_embeddings: (batch, k, host hidden size), used instead of the generator's tokens.
            implicit_attention_mask: (batch, k), 1 where `implicit_embeddings` holds a token; all ones if `None`.
            num_implicit_tokens: k; `config.num_implicit_tokens` if `None`.
            step_input_ids, step_attention_mask: (batch, k, step length), the text of each token's reasoning step for
                the step decoder; steps whose mask is all zeros are not supervised.
            thought_input_ids, thought_targets: (batch, words), words in the generator's ids that it learns to write
                after each query, padded on the right; -100 where a word has no loss. Without `labels` only the
                generator runs, and the output is its loss; with them, both losses are returned.
            use_question_cache: compute the host's keys and values of the questions first, without gradient. Loss and
                gradients are the same, in less time and memory; `hidden_states` and `implicit_columns` then begin
                after the cached columns. Has no effect unless `logits_to_keep` is a number above 0, nor for hosts
                with recurrent layers (such as Mamba), whose states pass no gradient on.
            question_cache: with `use_question_cache`, the keys and values of this batch's questions if they are known
                already, such as from an earlier epoch; the forward pass appends to it.
            kwargs: further arguments of the host's forward pass.

        Returns:
            `SemCoTCausalLMOutput` with implicit tokens, else the host's output.

        Raises:
            ValueError: for implicit tokens together with cached, embedded or badly shaped input, and for adapters
                without values, which peft adds to offloaded modules.
        """
        check_adapters(self, self.host, self.generator)
        for name in ("output_attentions", "output_hidden_states"):
            if getattr(self.config, name):
                kwargs.setdefault(name, True)
        check_first_ids(input_ids, past_key_values, self.config.get_text_config().vocab_size)
        if completion_mask is None and labels is not None and inputs_embeds is None:
            completion_mask = _completion_of(labels, attention_mask)
        thought_loss = None
        if thought_input_ids is not None:
            thought_loss = self._thought_loss(
                input_ids, attention_mask, completion_mask, thought_input_ids, thought_targets
            )
            if labels is None:
                return SemCoTCausalLMOutput(loss=thought_loss, thought_loss=thought_loss)
        wanted = num_implicit_tokens is not None or implicit_embeddings is not None or completion_mask is not None
        if not wanted or (implicit_embeddings is None and self._check_count(num_implicit_tokens) == 0):
            return self.host(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                labels=labels,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )
        others = (position_ids, past_key_values, kwargs.get("token_type_ids"))
        if input_ids is None or any(value is not None for value in others):
            raise ValueError(
                "implicit tokens need input_ids, and take neither position_ids, past_key_values nor token_type_ids: "
                "pass input_ids and attention_mask, or num_implicit_tokens=0 for the host alone."
            )
        check_shapes(input_ids, attention_mask)
        if labels is not None and not isinstance(logits_to_keep, int):
            raise ValueError("logits_to_keep is a tensor of positions, which labels cannot follow: pass a number.")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if attention_mask is not None:
            check_gaps(mask, self.config.get_text_config(), self._is_stateful)
        columns, _ = insertion_columns(input_ids, mask, self.config.answer_prompt_ids or [], completion_mask)
        if implicit_embeddings is None:
            queries = generator_queries(input_ids, mask, columns, self._pad_id())
            self._check_mask_alone(implicit_embeddings, implicit_attention_mask)
            made = self._make_tokens(*queries, self._check_count(num_implicit_tokens))
            implicit_embeddings, implicit_attention_mask = made
        else:
            self._check_shape(implicit_embeddings, input_ids.shape[0], implicit_attention_mask)
        implicit_embeddings, slots = packed(implicit_embeddings, implicit_attention_mask)
        count, length = implicit_embeddings.shape[1], input_ids.shape[1]
        loss_kwargs = {name: kwargs.pop(name) for name in ("num_items_in_batch", "shift_labels") if name in kwargs}
        kept = logits_to_keep if isinstance(logits_to_keep, int) else 0
        # From the last token before the implicit ones on, logits of text and host positions correspond one to one.
        aligned = 0 < kept <= length - int(columns.max()) + 1
        cached = cacheable_columns(columns, length, kept) if use_question_cache and not self._is_stateful else 0
        if slots is not None and cached:
            # Unused slots inside a sliding window, which counts columns, would narrow it.
            cached = 0 if any(DynamicCache(config=self.config.get_text_config()).is_sliding) else cached
            slots = slots._replace(start=cached)
        embeds, mask, position_ids = self.splice_inputs(input_ids, mask, implicit_embeddings, columns, slots)
        if cached:
            use_cache = True
            question = (embeds[:, :cached], mask[:, :cached], position_ids[:, :cached])
            past_key_values = fill_question_cache(self.host, *question, question_cache)
            embeds, position_ids, columns = embeds[:, cached:], position_ids[:, cached:], columns - cached
            slots = slots and slots._replace(start=0)
        outputs = self.host(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=kept + (0 if aligned else count) if kept > 0 else 0,
            **kwargs,
        )
        logits = outputs.logits
        if not aligned:
            cut = embeds.shape[1] - logits.shape[1]
            logits = _text_logits(logits, columns - cut, count, slots)
        if not isinstance(logits_to_keep, int):
            logits = logits[:, logits_to_keep]
        loss = step_loss = None
        if labels is not None:
            if loss_kwargs.get("shift_labels") is not None:
                loss_kwargs["shift_labels"] = loss_kwargs["shift_labels"][:, -logits.shape[1] :].contiguous()
            loss = self.host.loss_function(
                logits=logits, labels=labels[:, -logits.shape[1] :], vocab_size=logits.shape[-1], **loss_kwargs
            )
        if step_input_ids is not None:
            if self.step_decoder is None or self.step_projection is None or step_attention_mask is None:
                raise ValueError("step_input_ids need step_attention_mask and a step decoder: call add_step_decoder.")
            latents = self.step_projection(implicit_embeddings.to(self.step_projection.weight.dtype))
            step_loss = step_decoding_loss(self.step_decoder, latents, step_input_ids, step_attention_mask)
        return SemCoTCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=None if cached else outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            implicit_embeddings=implicit_embeddings,
            implicit_columns=columns,
            implicit_attention_mask=None if slots is None else slots.mask(count),
            step_loss=step_loss,
            thought_loss=thought_loss,
        )

    def splice_inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        implicit_embeddings: Tensor,
        columns: Tensor,
        slots: Slots | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the host's inputs with implicit tokens: embeddings (batch, length + k, size), mask and positions."""
        embeds = self.get_input_embeddings()(input_ids)
        embeds = splice(embeds, implicit_embeddings.to(embeds.dtype).to(embeds.device), columns, slots)
        return embeds, *spliced_mask(attention_mask, implicit_embeddings.shape[1], columns, slots)


# `generate` reads the signature four times a call; building it takes as long as a small layer's pass.
SemCoTForCausalLM.forward.__signature__ = signature(SemCoTForCausalLM.forward)


def _completion_of(labels: Tensor, attention_mask: Tensor | None) -> Tensor | None:
    """Return the mask of the labelled tokens, or `None` if a row has no prompt before them."""
    labelled = labels != -100
    prompt = labelled.cumsum(dim=1) == 0
    if attention_mask is not None and attention_mask.shape == labelled.shape:
        prompt = prompt & attention_mask.bool()
    has_prompt = prompt.any(dim=1)
    return labelled.long() if bool(has_prompt.all()) else None


def _text_logits(logits: Tensor, columns: Tensor, count: int, slots: Slots | None = None) -> Tensor:
    """Select the logits (batch, length, vocabulary) that predict the token after each text position.

    Up to the last prompt token before the implicit ones these are the position's own. From there on they are `count`
    positions later, since the last implicit token predicts the text after it.
    """
    source = spliced_columns(logits.shape[1] - count, count, columns.to(logits.device) - 1, slots)
    return logits.gather(1, source[..., None].expand(-1, -1, logits.shape[-1]))


def step_decoding_loss(
    decoder: PreTrainedModel, latents: Tensor, step_input_ids: Tensor, step_attention_mask: Tensor
) -> Tensor:
    """Return the mean over supervised steps' tokens of CE(decoder([z_k; step_k]), step_k) (SIM-CoT, arXiv 2509.20317).

    With a large vocabulary the logits of all steps, in float32 with their gradients, are many times the decoder. Steps
    of like length are therefore read together, and where that takes several calls, each is computed again for its
    gradients.

    Args:
        decoder: a causal LM.
        latents: (batch, k, decoder hidden size), one per step, in the decoder's embedding space.
        step_input_ids: (batch, k, length), steps padded on the right, end-of-sequence token included.
        step_attention_mask: (batch, k, length); steps whose mask is all zeros are not supervised.

    Returns:
        Scalar; 0 if no step is supervised.
    """
    used = step_attention_mask.bool().any(dim=-1)
    ids, mask, first = step_input_ids[used], step_attention_mask[used], latents[used]
    if len(ids) == 0:
        return latents.sum() * 0.0
    lengths = mask.sum(dim=1)
    rest, groups = lengths.argsort(descending=True), []
    # Processes must call a decoder that is divided among them equally often.
    divided = any(map(is_part, decoder.parameters()))
    while len(rest):
        logits = int(lengths[rest[0]]) * decoder.config.get_text_config().vocab_size
        size = len(rest) if divided else max(1, _LOGITS_AT_ONCE // logits)
        groups.append(rest[:size])
        rest = rest[size:]
    losses = []
    for rows in groups:
        width = int(lengths[rows[0]])
        group = (decoder, first[rows], ids[rows, :width], mask[rows, :width])
        again = len(groups) > 1 and torch.is_grad_enabled()
        losses.append(checkpoint(_steps_loss, *group, use_reentrant=False) if again else _steps_loss(*group))
    return torch.stack(losses).sum() / lengths.sum()


def _steps_loss(decoder: PreTrainedModel, latents: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the sum over the tokens of steps (rows, length) of their cross-entropy behind latents (rows, size)."""
    text = decoder.get_input_embeddings()(ids[:, :-1])
    embeds = torch.cat([latents[:, None].to(text.dtype), text], dim=1)
    logits = decoder(inputs_embeds=embeds, attention_mask=torch.cat([mask[:, :1], mask[:, :-1]], dim=1)).logits
    labels = ids.masked_fill(mask == 0, -100)
    logits, targets = logits.float().flatten(0, 1), labels.flatten()
    return nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
