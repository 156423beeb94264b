"""Adapters (LoRA and the like) of peft inside a model: found, and merged into what is saved."""

import copy


def adapted_layers(model):
    """(name, layer) of each layer that has adapters on it; peft itself need not be there to find none."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if hasattr(module, "get_base_layer") and hasattr(module, "merge")
    ]


def merged_layer(layer):
    """A copy of the layer that the adapters stand on, with them merged into its weights."""
    merged = copy.deepcopy(layer)
    merged.merge()
    return merged.get_base_layer()


def merged_state(model, state_dict=None):
    """State dict of `model` with its adapters merged into the layers they stand on; `model` stays as it is."""
    state = dict(model.state_dict() if state_dict is None else state_dict)
    for name, layer in adapted_layers(model):
        state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
        state.update({f"{name}.{key}": value for key, value in merged_layer(layer).state_dict().items()})
    return state
