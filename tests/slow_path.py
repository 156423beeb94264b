"""The slow path that generation is compared with: the host alone, one prompt at a time, without cache or mask."""

import torch

ANSWER = [7, 8]
NEW = 8
# Families that all tests of pairs go through, with the configuration of their tiny models.
HOSTS = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 6},
    "gemma": {},
    # Its eager attention takes the softmax in float32, where float64's mask value overflows.
    "gemma2": {"sliding_window": 6, "dtype": torch.float32},
    "gemma3_text": {"sliding_window": 6},
    "gpt2": {},
    "gpt2-untied": {"tie_word_embeddings": False},
    "gpt_neox": {},
    "phi": {},
    "olmo": {},
    "olmo2": {},
}
# Families with recurrent layers, whose state no cache of a prefix shares.
LINEAR_ATTENTION = {f"linear_{part}_head_dim": 8 for part in ("key", "value")}
STATEFUL = {
    "qwen3_5_text": {
        "num_hidden_layers": 4,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        **LINEAR_ATTENTION,
    },
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "mamba_d_state": 8,
    },
}
GENERATORS = ("llama", "qwen3", "mistral", "gemma3_text", "gpt2", "gpt_neox", "phi", "olmo")


def padded(prompts, pad=0):
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def slow_path(model, prompt, new_tokens=NEW, choose=None, num_implicit_tokens=3):
    """Greedy continuation of one prompt: the host alone, on embeddings, without cache, mask or positions."""
    cut = len(prompt) - len(ANSWER) if prompt[-len(ANSWER) :] == ANSWER else len(prompt)
    tokens = model.implicit_embeddings(torch.tensor([prompt]), num_implicit_tokens=num_implicit_tokens)
    text, scores = list(prompt), []
    with torch.no_grad():
        for _ in range(new_tokens):
            table = model.host.get_input_embeddings()
            embeds = table(torch.tensor([text]))
            embeds = torch.cat([embeds[:, :cut], tokens, embeds[:, cut:]], dim=1)
            logits = model.host(inputs_embeds=embeds, use_cache=False).logits[0, -1]
            scores.append(logits)
            text.append(int(logits.argmax()) if choose is None else choose(text, logits))
    return text[len(prompt) :], torch.stack(scores)


def example_prompts():
    """Four prompts of different lengths; the last does not end on the answer prompt."""
    generator = torch.Generator().manual_seed(0)
    bodies = [torch.randint(10, 300, (length,), generator=generator).tolist() for length in (3, 9, 5, 6)]
    return [[*body, *ANSWER] for body in bodies[:3]] + [bodies[3]]


def new_ids(outputs, width):
    """The ids behind the first `width` columns, as lists."""
    sequences = outputs if isinstance(outputs, torch.Tensor) else outputs.sequences
    return sequences[:, width:].tolist()
