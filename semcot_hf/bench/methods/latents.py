"""Latents in the host's input: the base class of methods that have them, its losses, generation and training."""

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ...inference.prompting import pad_left
from ...modeling.parts_semcot import make_head_read_new_tensors
from ...modeling.splicing_semcot import positions_from_mask
from ...training.adapters import merge_adapters
from .token_rows import BenchRow, pad_right, tokenize_rows
from .training import Stage, Trained, TrainingSetup, count_trainable, fit


def word_embeddings(model: PreTrainedModel) -> Tensor:
    """Return the table of word embeddings (vocabulary, hidden)."""
    return cast(Tensor, model.get_input_embeddings().weight)


def scale_of_states(host: PreTrainedModel) -> float:
    """Return the size of word embeddings relative to the host's last hidden states.

    Hidden states are several times larger than word embeddings, and a transformer hardly changes an input of that size
    in its residual stream (`SemCoTPreTrainedModel.match_scales`).
    """
    table = word_embeddings(host).detach()
    words = table[None, : min(64, len(table))]
    with torch.no_grad():
        states = host.base_model(inputs_embeds=words, use_cache=False).last_hidden_state
    return (words.float().pow(2).mean().sqrt() / states.float().pow(2).mean().sqrt()).item()


def continuation_loss(
    host: PreTrainedModel, embeds: Tensor, mask: Tensor, ids: Tensor, labels_mask: Tensor, cache: Cache | None = None
) -> tuple[Tensor, CausalLMOutputWithPast]:
    """Compute the mean cross-entropy of the tokens `ids` behind `embeds`.

    Args:
        host: causal LM.
        embeds: (batch, n, hidden), n >= 1 embeddings before the continuation that are not in `cache`.
        mask: (batch, cached + n), 1 on real positions.
        ids, labels_mask: (batch, length), the continuation, padded on the right.
        cache: keys and values of everything before `embeds`.

    Returns:
        The loss, and the host's output over `embeds` and continuation.
    """
    text = host.get_input_embeddings()(ids)
    full = torch.cat([mask, labels_mask], dim=1)
    inputs = torch.cat([embeds.to(text.dtype), text], dim=1)
    output = host(
        inputs_embeds=inputs,
        attention_mask=full,
        position_ids=positions_from_mask(full)[:, -inputs.shape[1] :],
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=ids.shape[1] + 1,
        output_hidden_states=True,
    )
    labels = ids.masked_fill(labels_mask == 0, -100)
    loss = F.cross_entropy(output.logits[:, :-1].float().flatten(0, 1), labels.flatten(), ignore_index=-100)
    return loss, output


class LatentModel(nn.Module):
    """A host with k latents between the question and the answer prompt.

    This class feeds the host's last hidden state back as the next input embedding (Coconut, arXiv 2412.06769);
    methods override `feed` or `think`, and define `losses`. It has the interface of a SemCoT model that evaluation
    needs (`generate`, `implicit_embeddings`, `config.num_implicit_tokens`), so that the same controls apply.

    Args:
        host: causal LM, trained with the method.
        answer_prompt_ids: ids at the end of each prompt at generation.
        num_latents: k.
    """

    def __init__(self, host: PreTrainedModel, answer_prompt_ids: Sequence[int], num_latents: int) -> None:
        super().__init__()
        self.host = host
        # Some methods train adapters of a frozen host.
        make_head_read_new_tensors(host)
        self.config = copy.deepcopy(host.config)
        self.config.update({"num_implicit_tokens": num_latents, "answer_prompt_ids": list(answer_prompt_ids)})
        self.pad_token_id = host.config.pad_token_id or 0

    @property
    def generation_config(self) -> GenerationConfig:
        """The host's generation defaults."""
        return self.host.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        self.host.generation_config = value

    @property
    def device(self) -> torch.device:
        """The host's device."""
        return self.host.device

    def get_input_embeddings(self) -> nn.Module:
        """Return the host's word embeddings."""
        return self.host.get_input_embeddings()

    def feed(self, state: Tensor) -> Tensor:
        """Return the next input embedding for the last hidden state, both (batch, hidden)."""
        return state

    def think(self, ids: Tensor, mask: Tensor, count: int) -> tuple[Tensor, Cache | None]:
        """Run the host over the questions and then over latents, one at a time.

        Args:
            ids, mask: (batch, length), questions padded on the left.
            count: k, at least 1.

        Returns:
            The latents (batch, k, hidden), and the cache of the questions and of all latents but the last, which is
            processed together with what follows it; `None` where the host did not run.
        """
        cache, latents = DynamicCache(config=self.host.config), []
        inputs, positions = {"input_ids": ids}, positions_from_mask(mask)
        for _ in range(count):
            state = self.host.base_model(
                **inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ).last_hidden_state[:, -1]
            latents.append(self.feed(state))
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            inputs, positions = {"inputs_embeds": latents[-1][:, None]}, positions_from_mask(mask)[:, -1:]
        return torch.stack(latents, dim=1), cache

    def latent_loss(
        self, prompts: Sequence[list[int]], continuations: Sequence[list[int]], count: int
    ) -> tuple[Tensor, Tensor | None, CausalLMOutputWithPast]:
        """Compute the cross-entropy of continuations behind k latents.

        Args:
            prompts, continuations: token ids.
            count: k; with 0 the continuation follows the question.

        Returns:
            The loss, the latents (batch, k, hidden) or `None`, and the host's output.
        """
        ids, mask = (part.to(self.device) for part in pad_left(prompts, self.pad_token_id))
        text, text_mask = pad_right(continuations, self.pad_token_id, self.device)
        embeds, latents, cache = self.get_input_embeddings()(ids), None, None
        if count:
            latents, cache = self.think(ids, mask, count)
            embeds = torch.cat([embeds, latents.to(embeds)], dim=1)
            mask = torch.cat([mask, mask.new_ones(len(mask), count)], dim=1)
        unread = embeds[:, 0 if cache is None else cache.get_seq_length() :]
        loss, output = continuation_loss(self.host, unread, mask, text, text_mask, cache)
        return loss, latents, output

    def losses(self, rows: Sequence[BenchRow], progress: float) -> tuple[Tensor, Tensor | None]:
        """Return the method's loss at a progress in [0, 1), and the latents (batch, count, hidden), if any."""
        raise NotImplementedError

    def forward(self, rows: Sequence[BenchRow], progress: float) -> Tensor:
        """Return the method's loss."""
        return self.losses(rows, progress)[0]

    def _parts(self, input_ids: Tensor, attention_mask: Tensor | None, count: int | None) -> tuple[Tensor, int, int]:
        """Return the attention mask, the number of latents, and the length of the prompts without answer prompt."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        count = self.config.num_implicit_tokens if count is None else count
        return mask, count, input_ids.shape[1] - len(self.config.answer_prompt_ids)

    @torch.no_grad()
    def implicit_embeddings(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, num_implicit_tokens: int | None = None
    ) -> Tensor:
        """Return the latents (batch, k, hidden) of prompts that end on the answer prompt, padded on the left."""
        mask, count, end = self._parts(input_ids, attention_mask, num_implicit_tokens)
        return self.think(input_ids[:, :end], mask[:, :end], count)[0]

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        num_implicit_tokens: int | None = None,
        implicit_embeddings: Tensor | None = None,
        **generate_kwargs: Any,
    ) -> Tensor:
        """Generate with latents before the answer prompt, on which all prompts end.

        Args:
            input_ids, attention_mask: (batch, length), padded on the left.
            num_implicit_tokens: k; 0 answers without latents, as the host alone.
            implicit_embeddings: (batch, k, hidden), used instead of the model's own latents (for controls).
            generate_kwargs: see transformers' `generate`.

        Returns:
            Ids of prompts and answers (batch, length + new tokens).
        """
        mask, count, end = self._parts(input_ids, attention_mask, num_implicit_tokens)
        # The type of PreTrainedModel has no `generate`.
        host: Any = self.host
        if num_implicit_tokens == 0:
            return host.generate(input_ids=input_ids, attention_mask=mask, **generate_kwargs)
        cache = None
        if implicit_embeddings is None:
            implicit_embeddings, cache = self.think(input_ids[:, :end], mask[:, :end], count)
        embeds = self.get_input_embeddings()(input_ids)
        latents = implicit_embeddings.to(embeds)
        ones = mask.new_ones(len(mask), latents.shape[1])
        new = host.generate(
            inputs_embeds=torch.cat([embeds[:, :end], latents, embeds[:, end:]], dim=1),
            attention_mask=torch.cat([mask[:, :end], ones, mask[:, end:]], dim=1),
            past_key_values=cache,
            **generate_kwargs,
        )
        return torch.cat([input_ids, new], dim=1)


def train_latents(
    model: LatentModel,
    setup: TrainingSetup,
    module: nn.Module | None = None,
    stage: Stage | None = None,
    **arguments: Any,
) -> Trained:
    """Train a model with latents, or a module around it, on the setup's questions, and merge its adapters.

    Afterwards the host has its precision again.

    Args:
        model: answers after the training.
        setup: see `fit`.
        module: the trained module with the method's loss; `model` itself when `None`.
        stage, arguments: see `fit`.
    """
    module, dtype = module or model, model.host.dtype
    history = fit(module, tokenize_rows(setup.tokenizer, setup.train_rows), setup, stage, **arguments)
    trainable = count_trainable(module)
    merge_adapters(model)
    cast(nn.Module, model.host).to(dtype)
    return Trained(model, "semcot", trainable, **history)
