"""Offloaded weights (accelerate's `cpu_offload`, device maps with "cpu" or "disk"), read outside of forward passes.

Accelerate keeps such weights outside the model, whose parameters have no data (device "meta"), and puts them in place
during the forward of the module that they belong to.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.hub import convert_file_size_to_int


def in_memory(module: nn.Module, name: str = "weight") -> Tensor:
    """Return a module's own parameter or, if it is offloaded, its value on the device where the module computes."""
    value = getattr(module, name)
    if not value.is_meta:
        return value
    hook = _offloading_hook(module)
    return value if hook is None else hook.weights_map[name].to(value.dtype).to(execution_device(module, name))


def execution_device(module: nn.Module, name: str = "weight") -> torch.device:
    """Return the device of a module's own parameter, or the one to which it is brought if it is offloaded."""
    value, hook = getattr(module, name), _offloading_hook(module)
    if not value.is_meta or hook is None or hook.execution_device is None:
        return value.device
    return torch.device(hook.execution_device)


def read_parameter(model: nn.Module, name: str, value: Tensor) -> Tensor:
    """Return the value of a parameter or buffer of a model, read from where it is offloaded.

    Args:
        model: the model.
        name: name of the parameter in the model.
        value: the parameter; it is returned if it is in memory, or no hook keeps its value.
    """
    # Layers that torch quantized have entries that are no tensors.
    kept = _keeper(model, name) if getattr(value, "is_meta", False) else None
    return value if kept is None else kept[0].weights_map[kept[1]].to(value.dtype)


def has_value(model: nn.Module, name: str, value: Tensor) -> bool:
    """Return whether a parameter of a model is in memory, or where it is offloaded; nothing is read."""
    return not value.is_meta or _keeper(model, name) is not None


def read_state(model: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of `model` with its offloaded weights in memory; tied ones are one tensor, as they were."""
    found = {name: read_parameter(model, name, value) for name, value in state_dict.items()}
    for path, module in (
        model.named_modules() if any(getattr(value, "is_meta", False) for value in state_dict.values()) else ()
    ):
        tied: Any = getattr(module, "_tied_weights_keys", None)
        for names in tied.items() if isinstance(tied, dict) else ():
            target, source = (f"{path}.{name}" if path else name for name in names)
            if target in found and source in found and torch.equal(found[target], found[source]):
                found[target] = found[source]
    return found


def whole_device_map(model: PreTrainedModel, host: PreTrainedModel) -> dict[str, Any] | None:
    """Return the device map of a model and its host, which were loaded apart; `None` if neither has one."""
    maps = [getattr(part, "hf_device_map", None) for part in (model, host)]
    if maps == [None, None]:
        return None
    own, of_host = (
        {"": _place(part.device)} if places is None else places
        for places, part in zip(maps, (model, host), strict=True)
    )
    own = {name: device for name, device in own.items() if name.partition(".")[0] != "host"}
    return {**own, **{f"host.{name}" if name else "host": device for name, device in of_host.items()}}


def memory_left(model: PreTrainedModel, max_memory: dict[int | str, int | str]) -> dict[int | str, int | str]:
    """Return what a loaded model leaves of `max_memory` (bytes by device, as for `from_pretrained`) for another."""
    places = getattr(model, "hf_device_map", {})
    left: dict[int | str, int | str] = {place: convert_file_size_to_int(size) for place, size in max_memory.items()}
    for name, value in model.named_parameters():
        parts = name.split(".")
        prefixes = (".".join(parts[:depth]) for depth in range(len(parts), -1, -1))
        place = next((places[prefix] for prefix in prefixes if prefix in places), value.device)
        key = "disk" if place == "disk" else _place(torch.device(place))
        if key in left:
            left[key] = max(0, int(left[key]) - value.numel() * value.element_size())
    return left


def check_targets(model: nn.Module, adapters: Mapping[str, Any]) -> None:
    """Raise ValueError if adapters would change modules whose weights are offloaded, where peft adds no values.

    Args:
        model: the model.
        adapters: the configuration of peft's adapters.
    """
    offloaded = _offloaded_targets(model, adapters)
    if offloaded:
        raise ValueError(
            f"The adapters are for {len(offloaded)} modules whose weights are offloaded, such as {offloaded[0]!r}: "
            "peft would add layers without values. Load the model with its adapters in memory (without device_map, or "
            "with the adapted part on a device), save it, which merges them, and load that folder with offloading."
        )


def _offloaded_targets(model: nn.Module, adapters: Mapping[str, Any]) -> list[str]:
    """Return the names of a model's modules that adapters would change, and whose weights are offloaded."""
    targets = adapters.get("target_modules")
    named = [*(adapters.get("modules_to_save") or []), *(adapters.get("target_parameters") or [])]
    pattern = None
    if isinstance(targets, str) or targets is None:
        # Without targets, peft has those of the model's type, which may be any; a single name is an expression too.
        pattern = ".*" if targets in (None, "all-linear") else targets
    else:
        named += targets
    found = []
    for name, module in model.named_modules():
        own = [name, *(f"{name}.{key}" for key, _ in module.named_parameters(recurse=False))]
        wanted = any(f".{one}".endswith(f".{other}") for one in own for other in named)
        if pattern is not None and re.fullmatch(pattern, name):
            wanted = True
        if wanted and any(value.is_meta for value in module.parameters(recurse=bool(name))):
            found.append(name)
    return found


def _place(device: torch.device) -> str | int:
    """Return a device as device maps write it: the number of an accelerator, or "cpu"."""
    return device.type if device.index is None or device.type == "cpu" else device.index


def _keeper(model: nn.Module, name: str) -> tuple[Any, str] | None:
    """Return the hook that keeps a parameter of a model, and the parameter's name there; `None` without one."""
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        hook, key = _offloading_hook(model.get_submodule(".".join(parts[:depth]))), ".".join(parts[depth:])
        # The hook of a module above may know the weight or not; asking its map for a name would read the weight.
        if hook is not None and (depth == len(parts) - 1 or _full_name(hook, key) in list(hook.weights_map)):
            return hook, key
    return None


def _full_name(hook: Any, key: str) -> str:
    """Return the name by which a hook's map lists a weight, which is that in the whole model."""
    return f"{getattr(hook.weights_map, 'prefix', '')}{key}"


def _offloading_hook(module: nn.Module) -> Any:
    """Return the hook of accelerate that keeps weights of a module; `None` without one."""
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))
    return next((part for part in hooks if getattr(part, "weights_map", None) is not None), None)
