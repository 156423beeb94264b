"""The SemCoT model in stage 2: which parameters are trained, their precision and learning rate, and what is saved."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging

from ..inference.prompting import answer_prompt_ids, choose_answer_prompt, prompt_text, with_answer_prompt
from ..inference.templates import change_few_shot, few_shot_ids, without_few_shot
from ..modeling.configuration_semcot import SemCoTConfig
from ..modeling.folders_semcot import TOKENIZERS
from ..modeling.modeling_semcot import SemCoTForCausalLM
from ..modeling.thought_prompt_semcot import candidate_prompt_fields
from ..training.adapters import HALF, add_adapters
from ..training.trainer import load_tokenizer
from .config import SemCoTDistillationConfig
from .data import schema_row
from .words import (
    SCORING_EXAMPLES,
    WordSettings,
    choose_column,
    fits_thought,
    thought_messages,
    word_settings,
    worked_examples,
)

logger = logging.get_logger(__name__)

if TYPE_CHECKING:
    from peft import PeftConfig

STEPS_NAME = "step_decoder.safetensors"


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase | None, config: SemCoTConfig, answer_prompt: str | None
) -> tuple[PreTrainedTokenizerBase, str]:
    """Return the tokenizer whose prompts end with the answer prompt, and that text; set `config.answer_prompt_ids`.

    Args:
        tokenizer: the host's; loaded from where the model comes from when `None`.
        answer_prompt: `SemCoTDistillationConfig.answer_prompt`.

    Raises:
        ValueError: for a tokenizer without end token, and for an answer prompt that does not fit it.
    """
    if tokenizer is None:
        tokenizer = load_tokenizer(config)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "processing_class has no eos_token, which ends each answer: set the host's end token, "
            "processing_class.eos_token = ..."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    answer_prompt = choose_answer_prompt(tokenizer, answer_prompt, config.answer_prompt_ids or ())
    config.answer_prompt_ids = answer_prompt_ids(tokenizer, answer_prompt)
    config.few_shot_ids = few_shot_ids(tokenizer)
    return with_answer_prompt(tokenizer, answer_prompt), answer_prompt


def prepare_words(
    model: SemCoTForCausalLM, tokenizer: PreTrainedTokenizerBase, args: SemCoTDistillationConfig, rows: Any
) -> tuple[WordSettings, PreTrainedTokenizerBase]:
    """Return what rows become words by, and the tokenizer with the worked examples that the host is shown.

    Of the first rows with words that fit, some become `config.candidate_prompt`, unless the model has one.

    Args:
        model: its config is changed.
        tokenizer: the host's, whose prompts end with the answer prompt.
        args: of the training.
        rows: training rows, or `None`.
    """

    def read() -> Iterator[tuple[Any, Any]]:
        return ((example, schema_row(example, "train_dataset")) for example in rows or ())

    column = args.words_column
    if column is None and rows is not None:
        column = choose_column(read())
        logger.info(f"words_column=None: the words are taken from {column!r}.")
    settings = word_settings(model, str(column), args, tokenizer, prompt_text(tokenizer, "1 + 1"))
    number = max(args.few_shot_examples, SCORING_EXAMPLES)
    examples = worked_examples(read(), settings.column, number, fits_thought(model, tokenizer))
    scoring = thought_messages(examples[:SCORING_EXAMPLES])
    if scoring and model.config.candidate_prompt is None:
        ends = model.config.answer_prompt_ids or []
        model.config.candidate_prompt = candidate_prompt_fields(without_few_shot(tokenizer), scoring, ends)
    shown = examples[: args.few_shot_examples]
    if len(shown) < args.few_shot_examples:
        logger.warning(
            f"few_shot_examples={args.few_shot_examples}: only {len(shown)} of the first thousand rows have words "
            "that fit; the host is shown these."
        )
    return settings, change_few_shot(model, tokenizer, shown) if shown else tokenizer


def prepare_model(model: SemCoTForCausalLM, args: SemCoTDistillationConfig, peft_config: "PeftConfig | None") -> None:
    """Add the step decoder and the adapters, and set which parameters are trained, in float32."""
    if args.include_host is not None:
        model.config.includes_host = args.include_host
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
        # Of the generator's embeddings only <thought>, a separate parameter, is trained (SemCoT, section 3.2).
        model.generator.get_input_embeddings().requires_grad_(False)
    else:
        besides = "the other modules (projection, <thought>, the step decoder's projection)"
        for adapted in (model.generator, model.step_decoder if args.step_weight > 0 else None):
            if adapted is not None:
                add_adapters(adapted, peft_config, besides)
    for module in (model.step_decoder if peft_config is None else None, model.step_projection):
        if module is not None:
            module.requires_grad_(args.step_weight > 0)
    words = model.config.projection == "vocabulary"
    train_projection = not (words and peft_config is not None)
    model.projection.requires_grad_(train_projection if args.train_projection is None else args.train_projection)
    # With an offset of -1 no state after the last <thought> is used, so a single <thought> has no gradient.
    model.thought_embedding.requires_grad_(
        model.config.num_implicit_tokens + model.config.state_offset > 0 and model.config.starts_with_thought_token
    )
    # 16-bit weights lose updates of 1e-5, and `bf16` autocasts the computation; adapters are in float32 already.
    trained = [model.projection, model.step_projection, model.step_decoder, model.generator]
    for part in trained[:2] if peft_config is not None else trained:
        weights = [] if part is None else list(part.parameters())
        # What stays frozen as a whole keeps its dtype.
        if any(weight.requires_grad for weight in weights) and any(weight.dtype in HALF for weight in weights):
            for weight in weights:
                weight.data = weight.data.float()
    if model.thought_embedding.dtype in HALF:
        model.thought_embedding.data = model.thought_embedding.data.float()


def group_projection(optimizer: torch.optim.Optimizer, model: torch.nn.Module, args: SemCoTDistillationConfig) -> None:
    """Move projection and <thought> to separate parameter groups if they have their own learning rate or decay."""
    rate, decay = args.projection_learning_rate, args.projection_weight_decay
    if rate is None and decay is None:
        return
    own = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if "projection" in name.split(".") or "thought_embedding" in name.split(".")
    }
    # Trainer makes two groups: weights with decay, then biases and norms without.
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
def without_step_decoder(config: SemCoTConfig) -> Iterator[None]:
    """Remove the step decoder from the configuration inside the block."""
    kept, config.step_decoder_config = config.step_decoder_config, None
    try:
        yield
    finally:
        config.step_decoder_config = kept


def split_step_decoder(
    state_dict: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return (the step decoder's weights, all other weights) of a state dict."""
    own = {key: value for key, value in state_dict.items() if key.startswith("step_")}
    return own, {key: value for key, value in state_dict.items() if key not in own}


def copy_code_and_tokenizers(checkpoint: str, folder: str) -> None:
    """Copy the model's code and its tokenizers, which `Trainer` omits when it pushes a checkpoint."""
    for name in os.listdir(checkpoint):
        source, target = os.path.join(checkpoint, name), os.path.join(folder, name)
        if name.endswith(".py"):
            shutil.copy(source, target)
        elif name in TOKENIZERS:
            shutil.copytree(source, target, dirs_exist_ok=True)
