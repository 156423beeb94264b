"""Views of a decoder with some of its layers, sliced configurations included, on the decoder's own parameters."""

import copy
from typing import Any, NoReturn, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..modeling.configuration_semcot import SemCoTConfig


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the stack without LM head: `LlamaModel` of `LlamaForCausalLM`, the host's of a SemCoT model."""
    if model.config.model_type == SemCoTConfig.model_type:
        model = cast(PreTrainedModel, model.host)
    while model.base_model is not model:
        model = cast(PreTrainedModel, model.base_model)
    return model


def run_from(
    backbone: PreTrainedModel, first_layer: int, states: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Return the last hidden states of `backbone` when `first_layer` reads `states`, (batch, tokens, hidden)."""
    view = layers_view(backbone, first_layer, None, states=states)
    return view(inputs_embeds=states, attention_mask=attention_mask, use_cache=False).last_hidden_state


@torch.no_grad()
def states_before(
    backbone: PreTrainedModel, layer: int, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Return `hidden_states[layer]` of tokenized texts, (batch, tokens, hidden); no later layer is run."""
    view = layers_view(backbone, 0, layer + 1)
    _, layers = layer_list(view)
    layers[-1] = _LastLayer(layers[-1])
    was_training = view.training
    try:
        view.eval()(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    except _Stopped as stopped:
        return stopped.states
    finally:
        view.train(was_training)
    raise RuntimeError(f"{type(backbone).__name__} did not run its layer {layer}.")


def layers_view(
    backbone: PreTrainedModel, start: int, stop: int | None, states: torch.Tensor | None = None
) -> PreTrainedModel:
    """Return a shallow copy of `backbone` with only its layers [start:stop], which shares all parameters with it.

    Args:
        states: input of the first of these layers, instead of what the model computes before it.
    """
    name, layers = layer_list(backbone)
    kept = list(layers)[start:stop]
    if states is not None:
        kept[0] = _FirstLayer(kept[0], states)
    return _with_layers(backbone, name, kept, _sliced_config(backbone.config, len(layers), slice(start, stop)))


def only_layers(backbone: PreTrainedModel, start: int) -> PreTrainedModel:
    """Return a shallow copy of `backbone` that has nothing but its layers from `start` on, with their own numbers."""
    name, layers = layer_list(backbone)
    kept = [layer if index >= start else nn.Identity() for index, layer in enumerate(layers)]
    view: PreTrainedModel = _with_layers(backbone, name, kept, backbone.config)
    parent: Any = view
    for part in name.split("."):
        parent._modules = {part: parent._modules[part]}
        parent = parent._modules[part]
    return view


def layer_list(backbone: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the name and the `ModuleList` of the decoder layers.

    Raises:
        ValueError: for a model without such a list.
    """
    count = backbone.config.num_hidden_layers
    for name, module in backbone.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise ValueError(
        f"host: {type(backbone).__name__} has no list of its {count} layers, from which an encoder could be cut. "
        "Use a decoder-only language model of transformers."
    )


def _with_layers(
    backbone: PreTrainedModel, name: str, layers: list[nn.Module], config: PreTrainedConfig
) -> PreTrainedModel:
    view = _shallow_copy(backbone, config)
    parent: Any = view
    *path, leaf = name.split(".")
    for part in path:
        parent._modules[part] = parent = _shallow_copy(parent._modules[part], config)
    training = parent._modules[leaf].training
    parent._modules[leaf] = nn.ModuleList(layers)
    parent._modules[leaf].training = training
    return view


def _shallow_copy(module: Any, config: PreTrainedConfig) -> Any:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    twin.config = config
    return twin


def _sliced_config(config: PreTrainedConfig, num_layers: int, kept: slice) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    for key, value in list(vars(config).items()):
        if "layer" in key and isinstance(value, list | tuple) and len(value) == num_layers:
            setattr(config, key, value[kept])
    config.num_hidden_layers = len(range(num_layers)[kept])
    return config


class _Replacement(nn.Module):
    """Replaces a decoder layer; transformers models look up a layer's kind of attention on the layer."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        if hasattr(layer, "attention_type"):
            self.attention_type = layer.attention_type


class _FirstLayer(_Replacement):
    """A decoder layer that reads given states, instead of its model's input with positions and scaling."""

    def __init__(self, layer: nn.Module, states: torch.Tensor):
        super().__init__(layer)
        self.layer = layer
        self.states = states

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.layer(self.states.to(hidden_states.dtype), *args, **kwargs)


class _LastLayer(_Replacement):
    """Ends the model's forward before the layer that it replaces."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        raise _Stopped(hidden_states)


class _Stopped(Exception):
    """Carries the states that reached a layer out of the model's forward."""

    def __init__(self, states: torch.Tensor):
        super().__init__()
        self.states = states
