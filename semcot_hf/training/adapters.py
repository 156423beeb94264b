"""PEFT adapters of a model in training: added, merged for saving, and stored in checkpoints for resuming."""

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from ..modeling.weights_semcot import adapted_layers, merged_layer

if TYPE_CHECKING:
    from peft import PeftConfig

ADAPTERS_NAME = "adapters.safetensors"
HALF = (torch.float16, torch.bfloat16)


def add_adapters(model: PreTrainedModel, peft_config: "PeftConfig", besides: str) -> None:
    """Add adapters in float32 to `model`, whose own weights are frozen by this.

    Args:
        besides: the modules that are trained in addition to the adapters, in words for the error text.

    Raises:
        ValueError: for `modules_to_save` or `bias`, which train more than adapters, for a model that already has
            adapters, and for a configuration that matches no module of the model.
    """
    for name, plain in (("modules_to_save", None), ("bias", "none")):
        value = getattr(peft_config, name, None)
        if value and value != plain:
            raise ValueError(
                f"peft_config.{name}={value!r}: leave it out. Only the adapters and {besides} are trained; "
                "everything else stays frozen."
            )
    if adapted_layers(model):
        raise ValueError(
            "peft_config: the model already has adapters. Leave peft_config out, or pass the saved model, whose "
            "adapters are merged."
        )
    try:
        model.add_adapter(copy.deepcopy(peft_config))
    except ValueError as error:
        targets = getattr(peft_config, "target_modules", None)
        raise ValueError(
            f"peft_config with target_modules={targets!r} does not fit {type(model).__name__}: {error} Name linear "
            "modules of the trained layers, or set target_modules='all-linear'."
        ) from error
    # 16-bit weights lose updates of 1e-5; unlike peft's wrapper, transformers gives adapters the model's dtype.
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in HALF:
            parameter.data = parameter.data.float()


@contextlib.contextmanager
def merged_adapters(model: nn.Module) -> Iterator[None]:
    """Replace the layers that have adapters by merged copies inside the block."""
    adapted = adapted_layers(model)
    try:
        merge_adapters(model)
        yield
    finally:
        for name, layer in adapted:
            model.set_submodule(name, layer)


def merge_adapters(model: nn.Module) -> None:
    """Replace the layers that have adapters by merged copies."""
    for name, layer in adapted_layers(model):
        model.set_submodule(name, merged_layer(layer))


def save_adapters(model: nn.Module, folder: str) -> None:
    """Store the adapters beside a checkpoint's merged weights, from which they cannot be recovered."""
    state = {
        f"{name}.{key}": value
        for name, layer in adapted_layers(model)
        for key, value in layer.state_dict().items()
        if not key.startswith("base_layer.")
    }
    save_apart(state, folder, ADAPTERS_NAME)


def save_apart(weights: Mapping[str, torch.Tensor], folder: str, name: str) -> None:
    """Store weights that are not in the checkpoint's own file in a separate file `name`, if there are any."""
    if weights:
        # Copies, since safetensors refuses two names for one tensor (tied weights).
        save_file({key: value.clone().contiguous() for key, value in weights.items()}, os.path.join(folder, name))


def load_apart(model: nn.Module, folder: str, *names: str) -> None:
    """Load what `save_apart` has stored in `folder` under these names, if anything."""
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            model.load_state_dict(load_file(path), strict=False)


def unexplained_keys(model: nn.Module, load_result: Any, apart: tuple[str, ...]) -> Any:
    """Return the result of `load_state_dict` without the keys that adapters or weights stored apart explain.

    Args:
        load_result: named tuple of `missing_keys` and `unexpected_keys`.
        apart: prefixes of the weights that the checkpoint's own file does not have.
    """
    adapted = tuple(f"{name}." for name, _ in adapted_layers(model))
    return type(load_result)(
        [key for key in load_result.missing_keys if not key.startswith((*apart, *adapted))],
        [key for key in load_result.unexpected_keys if not key.startswith(adapted)],
    )
