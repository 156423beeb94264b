"""Adapters (LoRA and the like) in a model that is trained: put in, merged, kept for resuming."""

import contextlib
import copy
import os

import torch
from safetensors.torch import load_file, save_file

from ..modeling.loading_semcot import adapted_layers, merged_layer

ADAPTERS_NAME = "adapters.safetensors"
HALF = (torch.float16, torch.bfloat16)


def add_adapters(model, peft_config, besides):
    """Put adapters, in float32, into `model`, a transformers model; of it only they are trained.

    Args:
        besides: what is trained beside the adapters in any case, in words.

    Raises:
        ValueError: for `modules_to_save` or `bias`, which train more than adapters, for a model that has adapters
            already, and for a configuration that fits no module of the model.
    """
    for name, plain in (("modules_to_save", None), ("bias", "none")):
        value = getattr(peft_config, name, None)
        if value and value != plain:
            raise ValueError(
                f"peft_config.{name}={value!r}: leave it out. Beside the adapters {besides} is trained in any case, "
                "and all else stays frozen."
            )
    if adapted_layers(model):
        raise ValueError(
            "peft_config: the model has adapters already. Leave peft_config out, or pass the model that was saved, "
            "with its adapters merged."
        )
    try:
        model.add_adapter(copy.deepcopy(peft_config))
    except ValueError as error:
        targets = getattr(peft_config, "target_modules", None)
        raise ValueError(
            f"peft_config with target_modules={targets!r} cannot be put into {type(model).__name__}: {error} Name "
            "linear modules of the layers that are trained, or target_modules='all-linear'."
        ) from error
    # Steps of 1e-5 are lost in 16-bit weights; transformers, unlike peft's own wrapper, gives adapters the model's.
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in HALF:
            parameter.data = parameter.data.float()


@contextlib.contextmanager
def merged_adapters(model):
    """While it lasts, merged copies stand in place of the layers that have adapters, and `model` is a plain one."""
    places = adapted_layers(model)
    try:
        merge_adapters(model)
        yield
    finally:
        for name, layer in places:
            _put(model, name, layer)


def merge_adapters(model):
    """Put merged copies in place of the layers that have adapters: `model` is a plain one from then on."""
    for name, layer in adapted_layers(model):
        _put(model, name, merged_layer(layer))


def _put(model, name, layer):
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)


def save_adapters(model, folder):
    """Write the adapters beside a checkpoint's merged weights, from which they could not be told apart again."""
    state = {
        f"{name}.{key}": value.contiguous()
        for name, layer in adapted_layers(model)
        for key, value in layer.state_dict().items()
        if not key.startswith("base_layer.")
    }
    if state:
        save_file(state, os.path.join(folder, ADAPTERS_NAME))


def load_adapters(model, folder):
    """Read back what `save_adapters` wrote; the layers they stand on never change."""
    path = os.path.join(folder, ADAPTERS_NAME)
    if os.path.isfile(path):
        model.load_state_dict(load_file(path), strict=False)


def unexplained_keys(model, load_result, apart):
    """The missing and unexpected keys of a loaded checkpoint that neither adapters nor what is saved apart explain.

    Args:
        apart: beginnings of the names of weights that the checkpoint's own file does without.
    """
    adapted = tuple(f"{name}." for name, _ in adapted_layers(model))
    explained = (*apart, *adapted)
    return type(load_result)(
        [key for key in load_result.missing_keys if not key.startswith(explained)],
        [key for key in load_result.unexpected_keys if not adapted or not key.startswith(adapted)],
    )
