"""How the generator makes implicit tokens: in parallel (SemCoT) or one after another (sequential)."""

import torch
from transformers import DynamicCache

from .splicing_semcot import positions_from_mask


def parallel_states(generator, thought_embedding, input_ids, attention_mask, count, offset=0):
    """Generator states of `count` implicit tokens from one pass over [query, count x <thought>] (SemCoT, section 3.2).

    Args:
        generator: backbone whose forward takes `inputs_embeds` and returns `last_hidden_state`.
        thought_embedding: (generator hidden size,), the input embedding of <thought>.
        input_ids: (batch, length), queries padded on the left.
        attention_mask: (batch, length), or `None` where nothing is padding, which spares the backbone its masks.
        count: number of tokens, at least 1.
        offset: 0 for the states at the <thought> positions, -1 for those one position earlier.

    Returns:
        (batch, count, generator hidden size).
    """
    query = generator.get_input_embeddings()(input_ids)
    thoughts = thought_embedding.to(query.dtype).expand(query.shape[0], count, -1)
    masks = {}
    if attention_mask is not None:
        mask = _longer(attention_mask, count)
        masks = {"attention_mask": mask, "position_ids": positions_from_mask(mask)}
    embeds = torch.cat([query, thoughts], dim=1)
    states = generator(inputs_embeds=embeds, use_cache=False, **masks).last_hidden_state
    start = query.shape[1] + offset
    return states[:, start : start + count]


def sequential_states(generator, thought_embedding, input_ids, attention_mask, count, feedback):
    """Generator states of `count` implicit tokens, each fed back as the next input embedding (Coconut's recurrence).

    The query and one <thought> give the first state; every further state is one cached step, whose input is
    `feedback` of the last state (batch, 1, size). The other arguments and the result are those of `parallel_states`.

    Raises:
        ValueError: with gradients, for a backbone whose layers keep a state, which is overwritten from step to step.
    """
    if generator._is_stateful and torch.is_grad_enabled():
        raise ValueError(
            f"generator_mode='sequential' cannot be trained with a {generator.config.model_type} generator, whose "
            "layers overwrite their state at each step: choose generator_mode='parallel', or another generator."
        )
    query = generator.get_input_embeddings()(input_ids)
    thought = thought_embedding.to(query.dtype).expand(query.shape[0], 1, -1)
    if attention_mask is None:
        mask, positions = None, torch.arange(query.shape[1] + count, device=query.device)[None]
    else:
        mask = _longer(attention_mask, count)
        positions = positions_from_mask(mask)
    cache = DynamicCache(config=generator.config)
    # Compiled, a pass over the query alone computes its keys and values only: the compiler leaves out what its last
    # layer makes of them.
    inputs = [query, thought] if torch.compiler.is_compiling() else [torch.cat([query, thought], dim=1)]
    states, read = [], 0
    while len(states) < count:
        embeds = inputs.pop(0) if inputs else feedback(states[-1])
        start, read = read, read + embeds.shape[1]
        state = generator(
            inputs_embeds=embeds,
            attention_mask=None if mask is None else mask[:, :read],
            position_ids=positions[:, start:read],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1:]
        if not inputs:
            states.append(state)
    return torch.cat(states, dim=1)


def _longer(attention_mask, count):
    return torch.cat([attention_mask, attention_mask.new_ones(attention_mask.shape[0], count)], dim=1)
