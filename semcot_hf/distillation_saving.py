"""What stage 2 writes and reads back: models with adapters merged in, checkpoints, and the last complete one."""

import contextlib
import copy
import json
import os
import re

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

logger = logging.get_logger(__name__)

ADAPTERS_NAME = "adapters.safetensors"
HALF = (torch.float16, torch.bfloat16)


def add_adapters(generator, peft_config):
    """Put adapters (LoRA and the like) into the generator; of it only they are trained.

    Raises:
        ValueError: for `modules_to_save`, since projection and <thought> are trained in any case.
    """
    if peft_config.modules_to_save:
        raise ValueError(
            f"peft_config.modules_to_save={peft_config.modules_to_save}: leave it out. Projection, <thought> and step "
            "decoder are trained in any case, and all else of the generator stays frozen."
        )
    generator.add_adapter(copy.deepcopy(peft_config))


def merged_state(model, state_dict=None):
    """State dict of `model` with its adapters merged into the layers they stand on; `model` stays as it is."""
    state = dict(model.state_dict() if state_dict is None else state_dict)
    for name, layer in _adapted_layers(model):
        merged = copy.deepcopy(layer)
        merged.merge()
        state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
        state.update({f"{name}.{key}": value for key, value in merged.get_base_layer().state_dict().items()})
    return state


def save_adapters(model, folder):
    """Write the adapters beside a checkpoint's merged weights, from which they could not be told apart again."""
    state = {
        f"{name}.{key}": value.contiguous()
        for name, layer in _adapted_layers(model)
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


def unexplained_keys(model, load_result):
    """The missing and unexpected keys of a loaded checkpoint that neither a host apart nor adapters account for."""
    adapted = tuple(f"{name}." for name, _ in _adapted_layers(model))
    explained = ("host.", *adapted)
    return type(load_result)(
        [key for key in load_result.missing_keys if not key.startswith(explained)],
        [key for key in load_result.unexpected_keys if not adapted or not key.startswith(adapted)],
    )


def last_complete_checkpoint(folder):
    """The newest checkpoint of a run whose writing was not cut off.

    The trainer's state is written behind all else of all processes: a checkpoint that has it whole is complete.

    Returns:
        Its path; `None` where there are only unfinished ones, which is said.

    Raises:
        ValueError: when `folder` has no checkpoint at all.
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    steps = [int(name[11:]) for name in names if re.fullmatch(r"checkpoint-\d+", name)]
    if not steps:
        raise ValueError(
            f"resume_from_checkpoint=True, but output_dir={folder!r} has no checkpoint: leave it out to start anew."
        )
    for step in sorted(steps, reverse=True):
        path = os.path.join(folder, f"checkpoint-{step}")
        if _is_complete(path):
            return path
        logger.warning(f"{path} was cut off while it was written, and is passed over.")
    return None


def _is_complete(path):
    try:
        with open(os.path.join(path, TRAINER_STATE_NAME)) as file:
            json.load(file)
    except (OSError, ValueError):
        return False
    return True


def _adapted_layers(model):
    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def full_precision(model, adapted):
    """Turn what is trained to float32: steps of 1e-5 are lost in 16-bit weights, and `bf16` autocasts the computation.

    Args:
        adapted: whether the generator is trained through adapters only, which have float32 weights of their own.
    """
    for module in (model.projection, model.step_decoder, model.step_projection, None if adapted else model.generator):
        if module is not None and any(weight.dtype in HALF for weight in module.parameters()):
            module.float()
    if model.thought_embedding.dtype in HALF:
        model.thought_embedding.data = model.thought_embedding.data.float()


@contextlib.contextmanager
def without_step_decoder(config):
    """While it lasts, the configuration tells of no step decoder."""
    kept, config.step_decoder_config = config.step_decoder_config, None
    try:
        yield
    finally:
        config.step_decoder_config = kept
