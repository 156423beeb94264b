"""What the methods with latents in the host's input share: prompts, thinking step by step, losses and generation."""

import copy

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache

from ...inference.prompting import pad_left
from ...modeling.splicing_semcot import positions_from_mask
from .token_rows import pad_right


def continuation_loss(host, embeds, mask, ids, labels_mask, cache=None):
    """Mean cross-entropy of the tokens `ids`, which follow `embeds` (SFT's loss, on the continuation only).

    Args:
        host: causal LM.
        embeds: (batch, n, hidden), n >= 1 embeddings in front of the continuation that are not in `cache`.
        mask: (batch, cached + n), 1 on real positions.
        ids, labels_mask: (batch, length), the continuation, padded on the right.
        cache: keys and values of all that stands before `embeds`.

    Returns:
        The loss, and the host's output over `embeds` and continuation.
    """
    text = host.get_input_embeddings()(ids)
    full = torch.cat([mask, labels_mask], dim=1)
    inputs = torch.cat([embeds.to(text.dtype), text], dim=1)
    length = inputs.shape[1]
    output = host(
        inputs_embeds=inputs,
        attention_mask=full,
        position_ids=positions_from_mask(full)[:, -length:],
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=ids.shape[1] + 1,
        output_hidden_states=True,
    )
    labels = ids.masked_fill(labels_mask == 0, -100)
    loss = F.cross_entropy(output.logits[:, :-1].float().flatten(0, 1), labels.flatten(), ignore_index=-100)
    return loss, output


class LatentModel(nn.Module):
    """A host whose prompt is followed by k latents, which stand right before the answer prompt.

    This class feeds the host's last hidden state back as the next input embedding (Coconut, arXiv 2412.06769);
    methods override `feed` or `think`. For evaluation it looks like a SemCoT model: `generate`, `implicit_embeddings`,
    and `config.num_implicit_tokens`, so that the same controls apply to it.

    Args:
        host: causal LM, trained with the method.
        answer_prompt_ids: ids with which each prompt ends at generation.
        num_latents: k.
    """

    def __init__(self, host, answer_prompt_ids, num_latents):
        super().__init__()
        self.host = host
        self.config = copy.deepcopy(host.config)
        self.config.update({"num_implicit_tokens": num_latents, "answer_prompt_ids": list(answer_prompt_ids)})
        self.pad_token_id = host.config.pad_token_id or 0

    @property
    def generation_config(self):
        return self.host.generation_config

    @generation_config.setter
    def generation_config(self, value):
        self.host.generation_config = value

    @property
    def device(self):
        return self.host.device

    def get_input_embeddings(self):
        return self.host.get_input_embeddings()

    def feed(self, state):
        """The next input embedding made of the last hidden state, both (batch, hidden)."""
        return state

    def think(self, ids, mask, count):
        """Run the host over the questions and then over latents, one at a time.

        Args:
            ids, mask: (batch, length), questions padded on the left.
            count: k, at least 1.

        Returns:
            latents (batch, k, hidden), and the cache of the questions and the latents that were read already: the
            last one is read together with what follows it. `None` where nothing was.
        """
        cache, latents = DynamicCache(config=self.host.config), []
        inputs, where = {"input_ids": ids}, positions_from_mask(mask)
        for _ in range(count):
            state = self.host.base_model(
                **inputs, attention_mask=mask, position_ids=where, past_key_values=cache, use_cache=True
            ).last_hidden_state[:, -1]
            latents.append(self.feed(state))
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
            inputs, where = {"inputs_embeds": latents[-1][:, None]}, positions_from_mask(mask)[:, -1:]
        return torch.stack(latents, dim=1), cache

    def latent_loss(self, prompts, continuations, count):
        """Cross-entropy of continuations behind k latents; returns loss, latents and the host's output.

        Args:
            prompts, continuations: lists of id lists.
            count: k; with 0 the continuation follows the question.
        """
        ids, mask = (part.to(self.device) for part in pad_left(prompts, self.pad_token_id))
        text, text_mask = pad_right(continuations, self.pad_token_id, self.device)
        embeds, latents, cache = self.get_input_embeddings()(ids), None, None
        if count:
            latents, cache = self.think(ids, mask, count)
            embeds = torch.cat([embeds, latents.to(embeds)], dim=1)
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], count)], dim=1)
        unread = embeds[:, 0 if cache is None else cache.get_seq_length() :]
        loss, output = continuation_loss(self.host, unread, mask, text, text_mask, cache)
        return loss, latents, output

    @torch.no_grad()
    def implicit_embeddings(self, input_ids, attention_mask=None, num_implicit_tokens=None):
        """Latents (batch, k, hidden) of prompts that end on the answer prompt, padded on the left."""
        count = self.config.num_implicit_tokens if num_implicit_tokens is None else num_implicit_tokens
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        end = input_ids.shape[1] - len(self.config.answer_prompt_ids)
        return self.think(input_ids[:, :end], mask[:, :end], count)[0]

    @torch.no_grad()
    def generate(
        self, input_ids, attention_mask=None, num_implicit_tokens=None, implicit_embeddings=None, **generate_kwargs
    ):
        """transformers' `generate`, with latents before the answer prompt on which all prompts end.

        Args:
            input_ids, attention_mask: (batch, length), padded on the left.
            num_implicit_tokens: k; 0 answers without latents, as the host alone.
            implicit_embeddings: (batch, k, hidden), read instead of the model's own latents (for controls).

        Returns:
            Ids of prompts and answers (batch, length + new tokens).
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if num_implicit_tokens == 0:
            return self.host.generate(input_ids=input_ids, attention_mask=mask, **generate_kwargs)
        count = self.config.num_implicit_tokens if num_implicit_tokens is None else num_implicit_tokens
        end, cache = input_ids.shape[1] - len(self.config.answer_prompt_ids), None
        if implicit_embeddings is None:
            implicit_embeddings, cache = self.think(input_ids[:, :end], mask[:, :end], count)
        embeds = self.get_input_embeddings()(input_ids)
        latents = implicit_embeddings.to(embeds)
        ones = mask.new_ones(mask.shape[0], latents.shape[1])
        new = self.host.generate(
            inputs_embeds=torch.cat([embeds[:, :end], latents, embeds[:, end:]], dim=1),
            attention_mask=torch.cat([mask[:, :end], ones, mask[:, end:]], dim=1),
            past_key_values=cache,
            **generate_kwargs,
        )
        return torch.cat([input_ids, new], dim=1)
