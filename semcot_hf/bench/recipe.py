"""The recipe of a task for SemCoT (soft words): how its generator is made from the given one."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Recipe:
    """Settings of SemCoT (soft words); the recipe of each task was chosen on validation questions (NOTES.md).

    Args:
        tokens: k; that of the other methods when `None`.
        layers: layers that the generator keeps, counted from 0; all when `None` (`keep_layers`).
        mode, projection: of the generator; see `SemCoTConfig`.
        step_weight: weight of the step decoder's loss.
        thought: word whose last token's embedding initializes <thought>; the mean of all embeddings when `None`.
        words: length of the generator's training on one-word-a-step reasoning (the rows' `words`, or condensed
            reasoning) before distillation, as a multiple of the step budget; 0 skips it.
    """

    tokens: int | None = None
    layers: tuple[int, ...] | None = None
    mode: str = "sequential"
    projection: str = "linear"
    step_weight: float = 1.0
    thought: str | None = None
    words: float = 0.0


def faded(progress: float, span: tuple[float, float]) -> float:
    """Return the share of a training aid that is withdrawn at `progress`: 0 before `span`, 1 after it, linear within.

    Args:
        progress: share of the training that is done, in [0, 1).
        span: the progress at which fading begins and ends.

    >>> [round(faded(progress, (0.3, 0.8)), 2) for progress in (0.0, 0.3, 0.55, 0.8, 0.99)]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    begin, end = span
    return min(1.0, max(0.0, (progress - begin) / (end - begin)))


def keep_layers(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """Drop the other layers of a causal LM in place, for a lighter model to train further (arXiv 2004.03844).

    Args:
        model: of any family that keeps its layers in one `ModuleList`.
        layers: indices of the layers to keep, ascending, from 0.

    Returns:
        `model`, with its configuration updated.

    Raises:
        ValueError: for indices out of range or not ascending, or a model with several stacks of layers.
    """
    config = model.config.get_text_config()
    count, layers = config.num_hidden_layers, list(layers)
    if not layers or layers != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= count:
        raise ValueError(f"layers={layers}: pass ascending indices from 0 to {count - 1}, one for each layer to keep.")
    stacks = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    if len(stacks) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(stacks)} lists of {count} layers, so it is unclear which one to cut: "
            "pass layers=None, or a decoder with one list."
        )
    parent, name, stack = stacks[0]
    kept = nn.ModuleList(stack[index] for index in layers)
    setattr(parent, name, kept)
    for index, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010 (nn.Module declares no such attribute)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[index] for index in layers]
    config.num_hidden_layers = len(layers)
    return model
