"""The SemCoT model as stage 2 trains it: what moves, in which precision and at which rate; and what of it is saved."""

import contextlib
import os
import shutil

from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ..modeling.loading_semcot import TOKENIZERS
from ..training.adapters import HALF, add_adapters

STEPS_NAME = "step_decoder.safetensors"


def prepare_model(model, args, peft_config):
    """Attach the step decoder and the adapters, and set what is trained, in float32."""
    if args.step_weight > 0 and model.step_decoder is None:
        source = model.config.generator_name_or_path if args.step_decoder == "generator" else args.step_decoder
        if args.step_decoder == "generator" and model.config.separate_generator_tokenizer:
            raise ValueError(
                "step_decoder='generator' reads the host's tokens, but this generator has its own tokenizer: pass "
                "step_decoder with the id or path of a causal LM that shares the host's."
            )
        if source is None:
            raise ValueError(
                "step_decoder='generator' needs config.generator_name_or_path, which this model does not record: pass "
                "step_decoder with the id or path of a causal LM."
            )
        model.add_step_decoder(AutoModelForCausalLM.from_pretrained(source, dtype=model.generator.dtype))
    model.requires_grad_(False)
    if peft_config is None:
        model.generator.requires_grad_(True)
        # Of the generator's embedding rows only <thought>, a parameter of its own, is trained (SemCoT, section 3.2).
        model.generator.get_input_embeddings().requires_grad_(False)
    else:
        add_adapters(model.generator, peft_config, "what is no generator (projection, <thought>, step decoder)")
    for module in (model.projection, model.step_decoder, model.step_projection):
        if module is not None:
            module.requires_grad_(True)
    # With an offset of -1 the last <thought> is read by nobody, so a single one has no gradient.
    model.thought_embedding.requires_grad_(model.config.num_implicit_tokens + model.config.state_offset > 0)
    if args.step_weight == 0 and model.step_decoder is not None:
        model.step_decoder.requires_grad_(False)
        model.step_projection.requires_grad_(False)
    _full_precision(model, adapted=peft_config is not None)


def _full_precision(model, adapted):
    """Turn what is trained to float32: steps of 1e-5 are lost in 16-bit weights, and `bf16` autocasts the computation.

    Args:
        adapted: whether the generator is trained through adapters only, which `add_adapters` makes in float32.
    """
    for module in (model.projection, model.step_decoder, model.step_projection, None if adapted else model.generator):
        if module is not None and any(weight.dtype in HALF for weight in module.parameters()):
            module.float()
    if model.thought_embedding.dtype in HALF:
        model.thought_embedding.data = model.thought_embedding.data.float()


def group_projection(optimizer, model, args):
    """Give projection and <thought> parameter groups of their own where they have their own rate or decay."""
    rate, decay = args.projection_learning_rate, args.projection_weight_decay
    if rate is None and decay is None:
        return
    own = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if "projection" in name.split(".") or "thought_embedding" in name.split(".")
    }
    # Trainer makes two groups: the first one decays, the second (biases, norms) does not.
    for index, group in enumerate(list(optimizer.param_groups)):
        taken = [parameter for parameter in group["params"] if id(parameter) in own]
        if not taken:
            continue
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
        options = {key: value for key, value in group.items() if key != "params"}
        if rate is not None:
            options["lr"] = rate
        if decay is not None and index == 0:
            options["weight_decay"] = decay
        optimizer.add_param_group({"params": taken, **options})


@contextlib.contextmanager
def without_step_decoder(config):
    """While it lasts, the configuration tells of no step decoder."""
    kept, config.step_decoder_config = config.step_decoder_config, None
    try:
        yield
    finally:
        config.step_decoder_config = kept


def split_step_decoder(state_dict):
    """(the step decoder's weights, all others) of a state dict."""
    own = {key: value for key, value in state_dict.items() if key.startswith("step_")}
    return own, {key: value for key, value in state_dict.items() if key not in own}


def save_step_decoder(weights, folder):
    """Write a step decoder that is not to be kept beside a checkpoint's weights, to go on from."""
    # Copies, since tied weights are one tensor, which safetensors refuses.
    save_file({key: value.clone().contiguous() for key, value in weights.items()}, os.path.join(folder, STEPS_NAME))


def load_step_decoder(model, folder):
    """Read back what `save_step_decoder` wrote."""
    path = os.path.join(folder, STEPS_NAME)
    if os.path.isfile(path):
        model.load_state_dict(load_file(path), strict=False)


def copy_code_and_tokenizers(checkpoint, folder):
    """Copy of a checkpoint what `Trainer` leaves behind where it pushes one: the model's code and its tokenizers."""
    for name in os.listdir(checkpoint):
        source, target = os.path.join(checkpoint, name), os.path.join(folder, name)
        if name.endswith(".py"):
            shutil.copy(source, target)
        elif name in TOKENIZERS:
            shutil.copytree(source, target, dirs_exist_ok=True)
