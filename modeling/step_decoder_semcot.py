"""SIM-CoT's step decoder: reads implicit tokens back as the text of their reasoning steps."""

import torch
from torch import nn


def step_decoding_loss(decoder, latents, step_input_ids, step_attention_mask):
    """Mean over supervised steps' tokens of CE(decoder([z_k; step_k]), step_k) (SIM-CoT, arXiv 2509.20317).

    Args:
        decoder: causal LM; latents: (batch, k, decoder hidden size), one per step, in its embedding space.
        step_input_ids: (batch, k, length), steps padded on the right, end-of-sequence token included.
        step_attention_mask: (batch, k, length); a row of zeros leaves its token unsupervised.

    Returns:
        Scalar; 0 when no step is supervised.
    """
    used = step_attention_mask.bool().any(dim=-1)
    ids, mask = step_input_ids[used], step_attention_mask[used]
    if ids.shape[0] == 0:
        return latents.sum() * 0.0
    text = decoder.get_input_embeddings()(ids[:, :-1])
    embeds = torch.cat([latents[used][:, None].to(text.dtype), text], dim=1)
    logits = decoder(inputs_embeds=embeds, attention_mask=torch.cat([mask[:, :1], mask[:, :-1]], dim=1)).logits
    labels = ids.masked_fill(mask == 0, -100)
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
