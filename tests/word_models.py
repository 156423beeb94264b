"""A SemCoT checkpoint over a host in a folder of its own, built in code, whose answers are readable text."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, set_seed

from semcot_hf import SemCoTForCausalLM
from semcot_hf.demo import HOST_PATH
from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt

POSITIONS = 512


def make_models(folder, **fields):
    """Save a host, a generator and a SemCoT checkpoint over them in `folder`/host, /generator and /model.

    Heads have a size that vLLM's CPU kernels have. Tokens that are no whole characters are never generated, since
    servers decode a character that is cut off in different ways.
    """
    tokenizer = AutoTokenizer.from_pretrained(HOST_PATH)
    for name, size in (("host", 128), ("generator", 64)):
        set_seed(size)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size,
            intermediate_size=2 * size,
            num_hidden_layers=2,
            num_attention_heads=size // 64,
            num_key_value_heads=size // 64,
            max_position_embeddings=POSITIONS,
            initializer_range=0.2,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        if name == "host":
            shown = [tokenizer.decode([token]) for token in range(len(tokenizer))]
            ended = [tokenizer.eos_token_id]
            unwanted = [i for i, text in enumerate(shown) if i not in ended and not text.strip(" ").isalnum()]
            with torch.no_grad():
                model.lm_head.weight[unwanted] = 0
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        str(folder / "host"),
        str(folder / "generator"),
        num_implicit_tokens=4,
        answer_prompt_ids=answer_prompt_ids(tokenizer),
        **fields,
    )
    model.save_pretrained(folder / "model")
    with_answer_prompt(tokenizer).save_pretrained(folder / "model")


def answer_of(model, tokenizer, question, new, count=None, slack=None):
    """Return the answer of `generate` alone; with `slack`, also whether two tokens were that close at some step."""
    chat = [{"role": "user", "content": question}]
    ids = torch.tensor([tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]])
    options = {} if count is None else {"num_implicit_tokens": count}
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    text = tokenizer.decode(output.sequences[0, ids.shape[1] :], skip_special_tokens=True)
    if slack is None:
        return text
    best = torch.cat(output.logits).topk(2).values
    return text, bool((best[:, 0] - best[:, 1] < slack).any())
