"""What SemCoT (soft words) may do otherwise than SemCoT as in the paper, and the layers that its generator keeps."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Recipe:
    """How SemCoT (soft words) makes its tokens; a task's own was chosen on validation questions (NOTES.md).

    Args:
        tokens: k; that of the other methods when `None`.
        layers: those that its generator keeps, counted from 0; all when `None` (`keep_layers`).
        mode, projection: of the generator; see `SemCoTConfig`.
        step_weight: weight of the step decoder.
        thought: word whose last token's embedding <thought> starts from; the mean of all when `None`.
        words: steps, for each one of the budget, in which the generator learns to reason in one word a step (the rows'
            `words` or condensed reasoning) before it is distilled; 0 for a generator as it is.
    """

    tokens: int | None = None
    layers: tuple[int, ...] | None = None
    mode: str = "sequential"
    projection: str = "linear"
    step_weight: float = 1.0
    thought: str | None = None
    words: float = 0.0


def keep_layers(model: nn.Module, layers: Sequence[int]) -> nn.Module:
    """Drop the other layers of a causal LM, in place, for a lighter one to train on (arXiv 2004.03844).

    Args:
        model: of any family that keeps its layers in one `ModuleList`.
        layers: numbers of the kept ones, rising, from 0.

    Returns:
        `model`, whose configuration tells the layers that are left.

    Raises:
        ValueError: for layers that it does not have or that do not rise, or a model of several stacks of layers.
    """
    config = model.config.get_text_config()
    count, layers = config.num_hidden_layers, list(layers)
    if not layers or layers != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= count:
        raise ValueError(f"layers={layers}: pass rising numbers from 0 to {count - 1}, one for each layer to keep.")
    stacks = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == count
    ]
    if len(stacks) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(stacks)} lists of {count} layers, so that it is open which to cut: pass "
            "layers=None, or a decoder with one list."
        )
    parent, name = stacks[0]
    kept = nn.ModuleList(getattr(parent, name)[index] for index in layers)
    setattr(parent, name, kept)
    for index, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    types = getattr(config, "layer_types", None)
    if types is not None:
        config.layer_types = [types[index] for index in layers]
    config.num_hidden_layers = len(layers)
    return model
