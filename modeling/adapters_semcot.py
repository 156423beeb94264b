"""Adapters (LoRA and the like) of peft inside a model: found, and merged into what is saved."""

import copy


def adapted_layers(model):
    """(name, layer) of each layer that has adapters on it or a trained copy beside it (peft's `modules_to_save`).

    peft itself need not be there to find none.
    """
    found = []
    for name, module in model.named_modules():
        adapted = hasattr(module, "get_base_layer") and hasattr(module, "merge")
        if (adapted or _is_wrapper(module)) and not any(name.startswith(f"{outer}.") for outer, _ in found):
            found.append((name, module))
    return found


def merged_layer(layer):
    """A copy of the layer that the adapters stand on, with them merged into it; or the trained copy in use."""
    if _is_wrapper(layer) and not hasattr(layer, "token_adapter"):
        active = [] if layer.disable_adapters else layer.active_adapters
        return layer.modules_to_save[active[0]] if active else layer.original_module
    merged = copy.deepcopy(getattr(layer, "token_adapter", layer))
    merged.merge()
    return merged.get_base_layer()


def merged_state(model, state_dict=None):
    """State dict of `model` with its adapters merged into the layers they stand on; `model` stays as it is."""
    state = dict(model.state_dict() if state_dict is None else state_dict)
    for name, layer in adapted_layers(model):
        state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
        state.update({f"{name}.{key}": value for key, value in merged_layer(layer).state_dict().items()})
    return state


def _is_wrapper(module):
    """Whether it is peft's stand-in for a layer that is trained itself, or of which some rows are."""
    return hasattr(module, "original_module") and hasattr(module, "active_adapters")
