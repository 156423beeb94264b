"""Whether a model has the class and the weights that its configuration builds, as loading a checkpoint of it does."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import set_zero3_state

from .checksums_semcot import DTYPES, base_state
from .weights_semcot import is_part, is_quantized, whole_shape


def check_structure(role: str, part: PreTrainedModel) -> None:
    """Raise ValueError for a part of another class, or with other weights, than its configuration builds.

    A checkpoint holds configurations and weights, so that such a part would be loaded as another model, or not at all.

    Args:
        role: "host", "generator" or "step decoder".
        part: the model; adapters of peft are left out, since they are merged when it is saved.
    """
    if is_quantized(part):
        return
    built = _built(part.config, part.can_generate())
    own, known = plain_class(part), plain_class(built)
    name = f"{role} is a {own.__name__}"
    if own is not known:
        raise ValueError(
            f"{name} ({own.__module__}), but transformers loads a {known.__name__} ({known.__module__}) from its "
            f"configuration (model_type={part.config.model_type!r}), so that a saved SemCoT model would be another: "
            "take that class, or register a model type of your own by AutoConfig.register and "
            f"{'AutoModelForCausalLM' if part.can_generate() else 'AutoModel'}.register."
        )
    state = base_state(part)
    differs = changed_names(state, built.state_dict()) or _unusual_weights(state)
    if differs:
        raise ValueError(
            f"{name} that {differs}. Saved and loaded again, it would be another model, or none: change its "
            "configuration with it, make changes to the weights themselves (such as torch.nn.utils.prune.remove), or "
            "quantize a host while it is loaded, by quantization_config."
        )


def check_saved_structure(model: Any, state: Mapping[str, Any], with_host: bool) -> None:
    """Raise ValueError if the weights that are to be saved are not those of the model that loading builds.

    Args:
        model: the SemCoT model.
        state: its state dict as it is saved.
        with_host: whether the host is part of it.
    """
    # DeepSpeed ZeRO-3 would partition what is built, which takes all processes.
    with set_zero3_state(), torch.device("meta"):
        built = plain_class(model)(copy.deepcopy(model.config), build_host=with_host)
    differs = changed_names(state, built.state_dict())
    if differs:
        raise ValueError(
            f"The model {differs}. It could not be loaded again, so that nothing was saved: change its configuration "
            "with it, or make changes to the weights themselves."
        )


def check_whole(role: str, part: PreTrainedModel) -> None:
    """Raise ValueError if the weights that a new pair's own are made from are spread over processes.

    These are a host's word embeddings, and all weights of a generator.
    """
    weights = part.parameters() if role == "generator" else part.get_input_embeddings().parameters()
    if any(map(is_part, weights)):
        raise ValueError(
            f"{role} has weights of which this process holds a part (DeepSpeed ZeRO-3, FSDP or tensor parallelism), "
            "so that no projection and <thought> can be made from its word embeddings: make the pair before "
            "TrainingArguments with ZeRO-3, which then shards it as a whole, or use ZeRO-2 or FSDP2."
        )


def changed_names(state: Mapping[str, Any], built: Mapping[str, Tensor]) -> str:
    """Return how a state dict differs from that of the model a configuration builds, in words; "" if it does not."""
    added, missing = sorted(state.keys() - built.keys()), sorted(built.keys() - state.keys())
    if added:
        return f"has {len(added)} weights, such as {added[0]!r}, which its configuration does not have"
    if missing:
        return f"lacks {len(missing)} weights, such as {missing[0]!r}, which its configuration has"
    for name, value in state.items():
        shape, wanted = whole_shape(value), tuple(built[name].shape)
        if type(value) in (nn.Parameter, Tensor) and shape != wanted:
            return f"has {name!r} of shape {shape}, but {wanted} by its configuration"
    return ""


def _unusual_weights(state: Mapping[str, Any]) -> str:
    """Return which weights are quantized without the model's saying so, in words; "" for none."""
    for name, value in state.items():
        kind = type(value)
        if not (kind.__module__.startswith("torch.") or issubclass(Tensor, kind)):
            return (
                f"has {name!r} in the form of a {kind.__module__}.{kind.__name__}, without being marked as quantized"
            )
        if name.endswith("weight") and value.dtype not in DTYPES:
            return f"has {name!r} in {value.dtype}, without being marked as quantized"
    return ""


def _built(config: PreTrainedConfig, causal: bool) -> PreTrainedModel:
    """Return the model, without values, that loading builds from a configuration.

    Raises:
        ValueError: if transformers builds none.
    """
    with set_zero3_state(), torch.device("meta"):
        return (AutoModelForCausalLM if causal else AutoModel).from_config(copy.deepcopy(config))


def plain_class(model: nn.Module) -> type[Any]:
    """Return the class of a model without those that torch puts before it to shard its weights."""
    return next(kind for kind in type(model).__mro__ if not kind.__module__.startswith("torch."))
