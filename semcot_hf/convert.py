"""Conversion of checkpoints published by SemCoT's authors into checkpoints of this package."""

import os

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .inference.prompting import answer_prompt_ids, with_answer_prompt
from .modeling import SemCoTForCausalLM

# The text before a question and the text between implicit tokens and answer (SemCoT, appendix), by the model type of
# the generator in each of the authors' three pairs.
PROMPTS = {
    "llama": ("Question: ", "\n Answer:"),
    "mistral": ("[INST] Question: ", "\n Answer: [/INST]"),
    "qwen2": ("<|im_start|>user\nQuestion: ", "<|im_end|>\n<|im_start|>assistant\nAnswer: "),
}


def convert_original(
    model: str | os.PathLike,
    host: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    num_implicit_tokens: int = 1,
    include_host: bool = False,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
) -> SemCoTForCausalLM:
    """Convert a checkpoint published by the authors into one that `from_pretrained` and `pipeline` load.

    Args:
        model: folder or Hub id of the authors' checkpoint.
        host: folder or Hub id of the host it was trained with.
        output_dir: where model and tokenizer are saved; the tokenizer's chat template renders the authors' prompts.
        num_implicit_tokens: k; the authors train with 5 and evaluate with 1.
        include_host: whether to save the host's weights too.
        dtype: of host and generator; "auto" keeps the stored one.
        revision: of the authors' checkpoint.

    Returns:
        The model, as saved.

    Raises:
        ValueError: when the folder holds no such checkpoint, the host does not fit, or the prompt of the generator's
            family is unknown.
    """
    converted = SemCoTForCausalLM.from_original(
        model,
        host,
        num_implicit_tokens=num_implicit_tokens,
        host_kwargs={"dtype": dtype},
        dtype=dtype,
        revision=revision or "main",
    )
    family = converted.generator.config.model_type
    if family not in PROMPTS:
        raise ValueError(
            f"The generator is of model_type={family!r}, for which the authors have no prompt: one of {list(PROMPTS)} "
            "is needed. SemCoTForCausalLM.from_original loads it without a prompt."
        )
    opening, answer_prompt = PROMPTS[family]
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(host)
    tokenizer.chat_template = _template(tokenizer, opening)
    converted.config.answer_prompt_ids = answer_prompt_ids(tokenizer, answer_prompt)
    tokenizer = with_answer_prompt(tokenizer, answer_prompt)
    converted.save_pretrained(output_dir, include_host=include_host)
    tokenizer.save_pretrained(output_dir)
    return converted


def _template(tokenizer: PreTrainedTokenizerBase, opening: str) -> str:
    """Return a chat template for one question in the authors' format, with bos if the tokenizer adds it."""
    bos = tokenizer.bos_token_id
    starts_with_bos = bos is not None and tokenizer("a")["input_ids"][0] == bos
    opening = opening.replace("\n", "\\n")
    return ("{{ bos_token }}" if starts_with_bos else "") + (
        "{%- for message in messages %}{{ '" + opening + "' + message.content }}{%- endfor %}"
    )
