"""Weights as they are saved and compared: merged adapters, and the fingerprint that tells hosts apart."""

import copy
import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .offloading_semcot import has_value, read_parameter, read_state

# Values of each weight that enter a fingerprint: at least this many, evenly spaced.
SAMPLES = 256
# Values of each weight that enter its state: looked at in each call that uses keys and values of earlier ones.
FEW_SAMPLES = 16
# Numbers of 64 bits whose sum enters the digest of all values.
BLOCK = 64
# Casts between these round values to 8 bits of precision at most.
WIDE_DTYPES = {"float64", "float32", "bfloat16"}


def adapted_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return (name, layer) of each layer with peft adapters or a trained copy (peft's `modules_to_save`).

    Works without peft installed.
    """
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        adapted = hasattr(module, "get_base_layer") and hasattr(module, "merge")
        if (adapted or _is_wrapper(module)) and not any(name.startswith(f"{outer}.") for outer, _ in found):
            found.append((name, module))
    return found


def check_adapters(model: nn.Module, *parts: nn.Module | None) -> None:
    """Raise ValueError if a model has adapters without values, which peft adds to modules with offloaded weights.

    Args:
        model: the model; its layers are searched, at each call, only if it, or one of its parts, has a hook of
            accelerate and adapters. A model that was compiled before it was adapted is not checked.
        parts: those of its modules that are models themselves.
    """
    known = [vars(part) for part in (model, *parts) if part is not None]
    if not any("_hf_hook" in names for names in known) or not any("peft_config" in names for names in known):
        return
    weights = {
        f"{name}.{key}": value for name, layer in adapted_layers(model) for key, value in layer.named_parameters()
    }
    lost = [name for name, value in weights.items() if not has_value(model, name, value)]
    if lost:
        raise ValueError(
            f"{len(lost)} weights of adapters have no values, such as {lost[0]!r}: peft gives them none in modules "
            "whose weights are offloaded. Load the model in memory, add or load the adapters there, save it, which "
            "merges them, and load that folder with offloading."
        )


def merged_layer(layer: Any) -> nn.Module:
    """Return a copy of an adapted layer's base with the adapters merged, or the trained copy that is in use."""
    if _is_wrapper(layer) and not hasattr(layer, "token_adapter"):
        active = [] if layer.disable_adapters else layer.active_adapters
        return layer.modules_to_save[active[0]] if active else layer.original_module
    merged = copy.deepcopy(getattr(layer, "token_adapter", layer))
    merged.merge()
    return merged.get_base_layer()


def merged_state(model: nn.Module, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the state dict of `model` with its adapters merged, and offloaded weights; `model` stays unchanged."""
    state = read_state(model, model.state_dict() if state_dict is None else state_dict)
    for name, layer in adapted_layers(model):
        if not any(key.startswith(f"{name}.") for key in state):
            continue
        state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
        state.update({f"{name}.{key}": value for key, value in merged_layer(layer).state_dict().items()})
    return state


def shares_weights(first: nn.Module | None, second: nn.Module | None) -> bool:
    """Return whether two models have a weight in common, so that training one changes the other."""
    if first is None or second is None:
        return False
    # Offloaded weights have no storage, but may be the same parameters.
    if {id(value) for value in first.parameters()} & {id(value) for value in second.parameters()}:
        return True
    places = [{_place(value) for value in part.parameters()} for part in (first, second)]
    # Weights without storage, such as those on meta, are at 0.
    return bool((places[0] & places[1]) - {0})


def is_part(value: Any) -> bool:
    """Return whether a process holds a part of a weight only, by DeepSpeed ZeRO-3, FSDP or tensor parallelism."""
    return hasattr(value, "ds_id") or hasattr(value, "_fsdp_flattened") or hasattr(value, "to_local")


def whole_shape(value: Any) -> tuple[int, ...]:
    """Return the shape of a weight, of which this process may hold a part."""
    return tuple(getattr(value, "ds_shape", value.shape))


def _place(value: Any) -> int:
    """Return where the values of a weight are in memory, or those that this process holds; 0 for none."""
    try:
        return (value.to_local() if hasattr(value, "to_local") else value).untyped_storage().data_ptr()
    except RuntimeError:
        # A tensor that is made of others, as torchao and quanto quantize weights, has no storage of its own.
        return 0


def is_quantized(model: Any) -> bool:
    """Return whether a model's weights are quantized.

    A GGUF file that was unpacked at loading keeps transformers' flag, but has ordinary weights. Weights that torchao
    or quanto replaced in place, without transformers' flag, are tensors that are made of others.
    """
    if any(hasattr(value, "__tensor_flatten__") and not is_part(value) for value in model.parameters()):
        return True
    if not is_flagged(model):
        return False
    config = getattr(model.config, "quantization_config", None)
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    return method != "gguf" or not all(value.is_floating_point() for value in model.parameters())


def is_packed(model: Any) -> bool:
    """Return whether some of a model's weights are kept in the blocks of the GGUF file that it was loaded from."""
    return getattr(model, "quantization_method", None) == "gguf" and any(
        value.dtype == torch.uint8 for value in model.parameters()
    )


def is_flagged(model: Any) -> bool:
    """Return whether transformers quantized a model, or parts of it, while it was loaded."""
    return bool(getattr(model, "is_quantized", False) or getattr(model.config, "_is_quantized", False))


def loads_quantized(model: Any) -> bool:
    """Return whether a model was loaded from weights that are stored quantized, so that a loader gets the same."""
    return bool(getattr(getattr(model, "hf_quantizer", None), "pre_quantized", False))


class Fingerprint(NamedTuple):
    """What tells the weights of a model apart from others.

    Args:
        text: as in `weights_fingerprint`.
        ordered: a digest in which names and order of the weights count as well; it compares a model with itself.
    """

    text: str
    ordered: str


def weights_fingerprint(model: Any) -> str | None:
    """Return a short text by which the weights of two models can be compared; adapters of peft do not count.

    It has five parts, joined by "-": the dtypes, and digests of evenly spaced values of each weight, of these values
    in bfloat16, of their signs, and of all values. Parts three and four stay the same when the model is cast. Names
    and order of the weights do not count, since they change between versions of transformers. Weights that are packed
    as in their GGUF file count by their bytes, and the first part tells how many they are ("packed14").

    Returns:
        The fingerprint; `None` if weights are quantized otherwise, sharded over processes, or on no device (meta).
    """
    found = fingerprint(model)
    return None if found is None else found.text


def fingerprint(model: Any) -> Fingerprint | None:
    """Return the fingerprint of a model's weights; `None` as in `weights_fingerprint`."""
    return None if is_quantized(model) and not is_packed(model) else fingerprint_of(_base_parameters(model))


@torch.no_grad()
def fingerprint_of(weights: Iterable[tuple[str, Tensor]]) -> Fingerprint | None:
    """Return the fingerprint of (name, value) of weights; `None` as in `weights_fingerprint`."""
    dtypes: set[str] = set()
    packed = 0
    digests: list[set[bytes]] = [set(), set(), set(), set()]
    ordered = hashlib.sha256()
    for name, value in weights:
        plain = type(value) in (nn.Parameter, Tensor) and not is_part(value)
        if not plain or value.is_meta or not (value.is_floating_point() or value.dtype == torch.uint8):
            return None
        flat = value.detach().reshape(-1)
        chosen = flat[:: max(1, flat.shape[0] // SAMPLES)].cpu()
        if value.is_floating_point():
            dtypes.add(str(value.dtype).removeprefix("torch."))
        else:
            packed += 1
        sampled = (chosen, chosen.float().bfloat16(), chosen.float().signbit())
        for found, values in zip(digests[:3], sampled, strict=True):
            found.add(hashlib.sha256(values.contiguous().view(torch.uint8).numpy().tobytes()).digest())
        digest = _digest_of_all(flat)
        if digest not in digests[3]:
            # Tied weights are two parameters once they are offloaded.
            ordered.update(name.replace("_orig_mod.", "").encode() + digest)
        digests[3].add(digest)
    joined = [hashlib.sha256(b"".join(sorted(found))).hexdigest()[:16] for found in digests]
    # Which weights stay packed depends on the machine; where their number differs, nothing is compared.
    kinds = [*sorted(dtypes), *([f"packed{packed}"] if packed else [])]
    return Fingerprint("-".join(["+".join(kinds), *joined]), ordered.hexdigest())


def _digest_of_all(values: Tensor) -> bytes:
    """Return a digest of a vector in which each bit counts, and the place of each block of 512 bytes."""
    data = values.contiguous().view(torch.uint8)
    # A view as 64-bit integers needs an aligned address.
    data = data.clone() if data.data_ptr() % 8 or data.storage_offset() % 8 else data
    whole = data.shape[0] // (8 * BLOCK) * 8 * BLOCK
    digest = hashlib.sha256(str(values.shape[0]).encode())
    for part in (data[:whole].view(torch.int64).view(-1, BLOCK).sum(dim=1), data[whole:]):
        digest.update(part.cpu().numpy().tobytes())
    return digest.digest()


@torch.no_grad()
def weights_state(model: nn.Module) -> tuple[list[Any], list[Tensor]]:
    """Return what changes with a model's weights, in as little time as a walk over its layers takes.

    Torch counts the changes of a parameter, but not those through its `data` (averages of weights that are swapped
    in, DeepSpeed's steps), so that values are compared, too. Changes through `data` go unnoticed where none of the
    compared values is among them, such as those of single rows, and for weights that are offloaded, sharded or
    quantized to tensors of another class.

    Returns:
        Of each parameter its place in memory and torch's count of changes, of each layer of peft the adapters in use;
        and on each device the bytes of 16 values of each parameter, evenly spaced.
    """
    known: list[Any] = []
    values: dict[torch.device, dict[torch.dtype, list[Tensor]]] = {}
    for module in model.modules():
        # peft's layers can be switched off, or to other adapters, with the same weights. To ask a module itself for
        # what it lacks takes longer than all else here.
        if hasattr(type(module), "_disable_adapters") or "_disable_adapters" in vars(module):
            known.append((module._disable_adapters, str(module._active_adapter)))
        for weight in module._parameters.values():
            if weight is None:
                continue
            known.append((weight.data_ptr(), 0 if weight.is_inference() else weight._version))
            size = weight.numel()
            if type(weight) is not nn.Parameter or weight.is_meta or not size:
                continue
            flat = weight if weight.is_contiguous() else weight.flatten()
            # Odd, so that the values of a matrix are of different columns.
            step = max(0, size // FEW_SAMPLES - 1) | 1
            some = flat.as_strided((min(size, FEW_SAMPLES),), (step,), flat.storage_offset())
            values.setdefault(weight.device, {}).setdefault(weight.dtype, []).append(some)
    return known, [
        torch.cat([torch.cat(some).view(torch.uint8) for some in of_device.values()]) for of_device in values.values()
    ]


def same_weights(first: str | None, second: str | None) -> bool | None:
    """Compare two fingerprints, of models in the same dtypes or in others.

    Those of earlier versions have no digest of all values.

    Returns:
        Whether they are equal; `None` if either is missing, or one is of packed and the other of ordinary weights.
    """
    parts = [(text or "").split("-") for text in (first, second)]
    if any(len(part) not in (4, 5) for part in parts):
        return None
    dtypes = [set(part[0].split("+")) for part in parts]
    if dtypes[0] != dtypes[1]:
        if any(kind.startswith("packed") for kind in dtypes[0] | dtypes[1]):
            return None
        compared = 2 if dtypes[0] | dtypes[1] <= WIDE_DTYPES else 3
    else:
        compared = 1 if min(map(len, parts)) == 4 else 4
    return parts[0][compared] == parts[1][compared]


def _base_parameters(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return (name, value) of a model's parameters, also offloaded ones, without adapters and trained copies."""
    layers: Any = adapted_layers(model)
    adapted = tuple(f"{name}." for name, _ in layers)
    found: list[tuple[str, Tensor]] = [
        (name, read_parameter(model, name, value))
        for name, value in model.named_parameters()
        if not name.startswith(adapted)
    ]
    for path, layer in layers:
        base = getattr(layer, "token_adapter", layer)
        base = base.get_base_layer() if hasattr(base, "get_base_layer") else base.original_module
        found += [(f"{path}.{name}", read_parameter(base, name, value)) for name, value in base.named_parameters()]
    return found


def _is_wrapper(module: nn.Module) -> bool:
    """Return whether a module is peft's wrapper of a layer that is trained as a whole, or in some of its rows."""
    return hasattr(module, "original_module") and hasattr(module, "active_adapters")
