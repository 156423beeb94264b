"""Conversion of the SemCoT authors' published checkpoints into checkpoints of this package."""

from transformers import AutoTokenizer

from .inference.prompting import answer_prompt_ids, with_answer_prompt
from .modeling import SemCoTForCausalLM

# What stands before a question and what stands between the implicit tokens and the answer (SemCoT, appendix), by the
# model type of the generator in each of the authors' three pairs.
PROMPTS = {
    "llama": ("Question: ", "\n Answer:"),
    "mistral": ("[INST] Question: ", "\n Answer: [/INST]"),
    "qwen2": ("<|im_start|>user\nQuestion: ", "<|im_end|>\n<|im_start|>assistant\nAnswer: "),
}


def convert_original(
    path_or_id, host, output_dir, *, num_implicit_tokens=1, include_host=False, dtype="auto", revision=None
):
    """Convert a checkpoint that the authors published into one that `from_pretrained` and `pipeline` load.

    Args:
        path_or_id: folder or Hub id of the authors' checkpoint.
        host: folder or Hub id of the host it was trained with.
        output_dir: where model and tokenizer are saved; the tokenizer's chat template writes the authors' prompts.
        num_implicit_tokens: k; the authors train with 5 and evaluate with 1.
        include_host: whether the host's weights are saved, too.
        dtype: of host and generator; "auto" keeps what is stored.
        revision: of the authors' checkpoint.

    Returns:
        `SemCoTForCausalLM`, as saved.

    Raises:
        ValueError: when the folder holds no such checkpoint, the host does not fit, or the generator's family has no
            known prompt.
    """
    model = SemCoTForCausalLM.from_original(
        path_or_id,
        host,
        num_implicit_tokens=num_implicit_tokens,
        host_kwargs={"dtype": dtype},
        dtype=dtype,
        revision=revision or "main",
    )
    family = model.generator.config.model_type
    if family not in PROMPTS:
        raise ValueError(
            f"The generator is of model_type={family!r}, for which the authors have no prompt: one of {list(PROMPTS)} "
            "is needed. SemCoTForCausalLM.from_original loads it without a prompt."
        )
    opening, answer_prompt = PROMPTS[family]
    tokenizer = AutoTokenizer.from_pretrained(host)
    tokenizer.chat_template = _template(tokenizer, opening)
    model.config.answer_prompt_ids = answer_prompt_ids(tokenizer, answer_prompt)
    tokenizer = with_answer_prompt(tokenizer, answer_prompt)
    model.save_pretrained(output_dir, include_host=include_host)
    tokenizer.save_pretrained(output_dir)
    return model


def _template(tokenizer, opening):
    """Chat template of one question in the authors' form; bos goes in where the tokenizer itself puts it."""
    bos = tokenizer.bos_token_id
    starts_with_bos = bos is not None and tokenizer("a")["input_ids"][0] == bos
    opening = opening.replace("\n", "\\n")
    return ("{{ bos_token }}" if starts_with_bos else "") + (
        "{%- for message in messages %}{{ '" + opening + "' + message.content }}{%- endfor %}"
    )
