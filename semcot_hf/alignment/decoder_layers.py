"""Parts of a decoder: some of its layers only, entered or left where one likes, on the decoder's own parameters."""

import copy

import torch
from torch import nn


def backbone_of(model):
    """The stack without LM head inside `model`: `LlamaModel` of `LlamaForCausalLM`, the host's of a SemCoT model."""
    while model.base_model is not model:
        model = model.base_model
    return model


def run_from(backbone, first_layer, states, attention_mask):
    """Last hidden states of `backbone`, entered at `first_layer` with `states` (batch, tokens, hidden)."""
    view = layers_view(backbone, first_layer, None, states=states)
    return view(inputs_embeds=states, attention_mask=attention_mask, use_cache=False).last_hidden_state


@torch.no_grad()
def states_before(backbone, layer, input_ids, attention_mask):
    """`hidden_states[layer]` of tokenized texts, (batch, tokens, hidden); no later layer is run."""
    view = layers_view(backbone, 0, layer + 1)
    _, layers = layer_list(view)
    layers[-1] = _StopsHere(layers[-1])
    was_training = view.training
    try:
        view.eval()(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    except _Stopped as stopped:
        return stopped.states
    finally:
        view.train(was_training)


def layers_view(backbone, start, stop, states=None):
    """Shallow copy of `backbone` that has its layers [start:stop] alone, sharing all parameters with it."""
    name, layers = layer_list(backbone)
    kept = list(layers)[start:stop]
    if states is not None:
        kept[0] = _EntersHere(kept[0], states)
    return _with_layers(backbone, name, kept, _sliced_config(backbone.config, len(layers), slice(start, stop)))


def only_layers(backbone, start):
    """Shallow copy of `backbone` that has nothing but its layers from `start` on, under their own numbers."""
    name, layers = layer_list(backbone)
    kept = [layer if index >= start else nn.Identity() for index, layer in enumerate(layers)]
    view = parent = _with_layers(backbone, name, kept, backbone.config)
    for part in name.split("."):
        parent._modules = {part: parent._modules[part]}
        parent = parent._modules[part]
    return view


def _with_layers(backbone, name, layers, config):
    view = parent = _shallow_copy(backbone, config)
    *path, leaf = name.split(".")
    for part in path:
        parent._modules[part] = parent = _shallow_copy(parent._modules[part], config)
    training = parent._modules[leaf].training
    parent._modules[leaf] = nn.ModuleList(layers)
    parent._modules[leaf].training = training
    return view


def _shallow_copy(module, config):
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    twin.config = config
    return twin


def _sliced_config(config, num_layers, kept):
    config = copy.deepcopy(config)
    for key, value in list(vars(config).items()):
        if "layer" in key and isinstance(value, list | tuple) and len(value) == num_layers:
            setattr(config, key, value[kept])
    config.num_hidden_layers = len(range(num_layers)[kept])
    return config


def layer_list(backbone):
    """Name and `ModuleList` of the decoder layers."""
    count = backbone.config.num_hidden_layers
    for name, module in backbone.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise ValueError(
        f"host: {type(backbone).__name__} has no list of its {count} layers, from which an encoder could be cut. "
        "Use a decoder-only language model of transformers."
    )


class _EntersHere(nn.Module):
    """A decoder layer that reads given states, whatever its model made of its input before (positions, scaling)."""

    def __init__(self, layer, states):
        super().__init__()
        self.layer = layer
        self.states = states
        # transformers models look a layer's kind of attention up on the layer.
        if hasattr(layer, "attention_type"):
            self.attention_type = layer.attention_type

    def forward(self, hidden_states, *args, **kwargs):
        return self.layer(self.states.to(hidden_states.dtype), *args, **kwargs)


class _Stopped(Exception):
    """Carries the states that reached a layer out of the model's forward."""

    def __init__(self, states):
        super().__init__()
        self.states = states


class _StopsHere(nn.Module):
    """Stands for a decoder layer and ends the forward there."""

    def __init__(self, layer):
        super().__init__()
        if hasattr(layer, "attention_type"):
            self.attention_type = layer.attention_type

    def forward(self, hidden_states, *args, **kwargs):
        raise _Stopped(hidden_states)
