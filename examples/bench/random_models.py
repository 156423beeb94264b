"""Models of given shapes at random weights, and rows of random words of given lengths, for `train_speed.py`."""

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# (vocabulary, then hidden size, intermediate size, layers and heads of host and of generator)
SIZES = {
    "toy": (500, (32, 64, 2, 4), (16, 32, 1, 2)),
    "small": (8_000, (256, 704, 8, 4), (192, 512, 4, 4)),
    "large": (32_000, (768, 3_072, 12, 12), (512, 2_048, 10, 8)),
    "llama-2-7b": (32_000, (4_096, 11_008, 32, 32), (2_048, 5_504, 24, 16)),
}
QUESTION, REASONING, CONDENSED, ANSWER = 100, 100, 12, 3


def make_tokenizer(vocabulary):
    """One token a word, so that lengths are exact."""
    words = ["<pad>", "<s>", "</s>", "Question:", "Answer:", *(f"w{i}" for i in range(vocabulary - 5))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def make_model(vocabulary, shape, dtype, device):
    hidden, intermediate, layers, heads = shape
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.device(device):
        return LlamaForCausalLM._from_config(config, dtype=dtype)


def make_rows(count, vocabulary):
    generator = torch.Generator().manual_seed(0)

    def words(length):
        return " ".join(f"w{i}" for i in torch.randint(vocabulary - 5, (length,), generator=generator).tolist())

    rows = []
    for _ in range(count):
        steps = [words(REASONING // 5) for _ in range(5)]
        texts = {"query": words(QUESTION), "reasoning": " ".join(steps), "answer": words(ANSWER)}
        rows.append({**texts, "condensed_reasoning": words(CONDENSED), "steps": steps})
    return Dataset.from_list(rows)
