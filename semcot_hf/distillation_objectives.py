"""What stage 2's objectives compare: f of the implicit tokens, and the host behind its explicit chain of thought."""

import torch

from .encoder import alignment_layers, encode_hidden_states, load_alignment_encoder


def frozen_encoder(encoder, args, hidden_size):
    """The alignment encoder (SentenceTransformer, id or path) that `args` ask for, frozen; `None` where they do not.

    Args:
        hidden_size: the host's, of which the encoder was cut out.

    Raises:
        ValueError: where one is needed and not given, given and not needed, or of another host's width.
    """
    if args.alpha == 0:
        return None
    if args.alignment_view == "mean_pooled":
        if encoder is not None:
            raise ValueError(
                "alignment_view='mean_pooled' compares without an encoder: leave alignment_encoder out, or choose "
                "alignment_view='embedding' or 'hidden_state'."
            )
        return None
    if encoder is None:
        raise ValueError(
            f"alpha={args.alpha} needs alignment_encoder, which stage 1 makes: pass it, set alpha=0 for no alignment, "
            "or alignment_view='mean_pooled' for one without an encoder."
        )
    encoder = load_alignment_encoder(encoder)
    width = encoder[0].model.config.get_text_config().hidden_size
    if width != hidden_size:
        raise ValueError(
            f"alignment_encoder reads states of size {width}, and the host has hidden_size={hidden_size}: pass the "
            "encoder that stage 1 has cut out of this host."
        )
    return encoder.requires_grad_(False).eval()


def embed_tokens(outputs, encoder, view):
    """f of the implicit tokens, through the encoder's input or at the layer its text states are taken from.

    Args:
        outputs: `SemCoTCausalLMOutput`, with the host's hidden states for the view "hidden_state".
        encoder: f; `None` takes the tokens' mean.
        view: `SemCoTDistillationConfig.alignment_view`.

    Returns:
        (batch, dim), differentiable in the tokens.
    """
    tokens = outputs.implicit_embeddings
    if encoder is None:
        return tokens.float().mean(dim=1)
    mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    dtype = next(encoder.parameters()).dtype
    if view == "embedding":
        features = {"inputs_embeds": tokens.to(dtype), "attention_mask": mask}
        return encoder(features)["sentence_embedding"]
    layer, _ = alignment_layers(encoder)
    columns = outputs.implicit_columns[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
    states = outputs.hidden_states[layer]
    states = states.gather(1, columns[..., None].expand(-1, -1, states.shape[-1]))
    return encode_hidden_states(encoder, states.to(dtype), mask)


@torch.no_grad()
def explicit_reasoning(host, input_ids, attention_mask, width, with_states):
    """The frozen host behind its explicit chain of thought, at the same answer tokens.

    Args:
        input_ids, attention_mask: (batch, length), question, reasoning and answer, padded on the left.
        width: answer tokens; the logits are those from one position before them on.
        with_states: whether the output holds hidden states.
    """
    positions = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)
    return host(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=positions,
        logits_to_keep=width + 1,
        output_hidden_states=with_states,
        use_cache=False,
    )
