"""Host and generator with random weights in the shapes of public models; nothing is downloaded."""

from functools import lru_cache

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config
from transformers.initialization import no_init_weights

from ...modeling.modeling_semcot import SemCoTForCausalLM

# Ids of the answer prompt at the end of each prompt; the ids before it are larger.
ANSWER_PROMPT_IDS = [5, 6, 7]
_FIRST_WORD = 10

# Vocabulary, hidden size, intermediate size, layers, heads, key-value heads; of the host, and of the generator.
_SIZES = {
    "toy": ((500, 32, 64, 2, 4, 4), (500, 16, 32, 1, 2, 2)),
    "tiny": ((2_000, 128, 352, 4, 4, 4), (2_000, 64, 176, 2, 4, 4)),
    "160M": ((32_000, 768, 3_072, 12, 12, 12), (32_000, 512, 2_048, 10, 8, 8)),
    # The host is TinyLlama.
    "1.1B": ((32_000, 2_048, 5_632, 22, 32, 4), (32_000, 1_024, 2_816, 20, 16, 16)),
    # Llama-2-7B and Sheared-LLaMA-1.3B.
    "llama2-7b": ((32_000, 4_096, 11_008, 32, 32, 32), (32_000, 2_048, 5_504, 24, 16, 16)),
    # Qwen2.5-7B and Qwen2.5-0.5B.
    "qwen2.5-7b": ((152_064, 3_584, 18_944, 28, 28, 4), (151_936, 896, 4_864, 24, 14, 2)),
    # Mistral-7B-v0.2 and a Mistral of 1.1B in TinyLlama's shape.
    "mistral-7b": ((32_000, 4_096, 14_336, 32, 32, 8), (32_000, 2_048, 5_632, 22, 32, 4)),
}
SIZES = tuple(_SIZES)
GPU_SIZES = ("llama2-7b", "qwen2.5-7b", "mistral-7b")


def configs(size: str) -> tuple[PreTrainedConfig, PreTrainedConfig]:
    """Return the configurations of the host and of the generator."""
    kind: type[LlamaConfig] | type[MistralConfig] | type[Qwen2Config] = LlamaConfig
    options: dict = {"max_position_embeddings": 4096, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if size in ("qwen2.5-7b", "mistral-7b"):
        options |= {"max_position_embeddings": 32_768, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    if size == "mistral-7b":
        kind, options = MistralConfig, options | {"sliding_window": None}
    if size == "qwen2.5-7b":
        kind = Qwen2Config
        options |= {"bos_token_id": 151_643, "eos_token_id": 151_645, "pad_token_id": 151_643}
    made = []
    for vocabulary, hidden, intermediate, layers, heads, kv_heads in _SIZES[size]:
        config = kind(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            **options,
        )
        made.append(config)
    # Qwen2.5-0.5B ties its embeddings.
    made[1].tie_word_embeddings = size == "qwen2.5-7b"
    return made[0], made[1]


def build_model(size: str, *, num_implicit_tokens: int, dtype: torch.dtype, device: torch.device) -> SemCoTForCausalLM:
    """Build a SemCoT model with random weights on its device, without a second copy of them."""
    host_config, generator_config = configs(size)
    with torch.device(device), no_init_weights():
        host = AutoModelForCausalLM.from_config(host_config, dtype=dtype)
        generator = AutoModel.from_config(generator_config, dtype=dtype)
    for model in (host, generator):
        _fill(model, dtype, device)
    return SemCoTForCausalLM.from_host_generator_pretrained(
        host, generator, num_implicit_tokens=num_implicit_tokens, answer_prompt_ids=ANSWER_PROMPT_IDS
    )


@torch.no_grad()
def _fill(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Fill matrices by repeating one block of random numbers, since fresh ones take too long at 7B."""
    # A prime number of them, so that no two rows of a matrix are equal.
    block = 0.02 * torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    block = block.to(device, dtype)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        flat = parameter.view(-1)
        for start in range(0, len(flat), len(block)):
            piece = flat[start : start + len(block)]
            piece.copy_(block[: len(piece)])


def own_tokens(length: int) -> int:
    """Return the number of tokens at a prompt's end that differ between prompts; those before them are shared.

    >>> own_tokens(2048), own_tokens(16)
    (32, 8)
    """
    return min(32, length // 2)


def prompts(size: str, batch: int, length: int, device: torch.device) -> torch.Tensor:
    """Return random prompts with a shared beginning that end on the answer prompt: LongTensor (batch, length)."""
    # The last ids of Qwen are its special tokens.
    words = min(150_000, *(config.vocab_size for config in configs(size)))
    ids = torch.randint(_FIRST_WORD, words, (batch, length), generator=torch.Generator().manual_seed(1))
    shared = length - own_tokens(length)
    ids[:, :shared] = ids[0, :shared].clone()
    ids[:, length - len(ANSWER_PROMPT_IDS) :] = torch.tensor(ANSWER_PROMPT_IDS)
    return ids.to(device)


@lru_cache
def parameter_counts(size: str) -> dict[str, int]:
    """Return the numbers of weights: the host, the generator without head, and the projection to the host.

    >>> parameter_counts("toy")
    {'host': 52640, 'generator': 10608, 'projection': 560}
    """
    host, generator = configs(size)
    with torch.device("meta"):
        models = {"host": AutoModelForCausalLM.from_config(host), "generator": AutoModel.from_config(generator)}
    counts = {name: sum(weight.numel() for weight in model.parameters()) for name, model in models.items()}
    # A linear layer with bias, and the <thought> embedding.
    projection = (generator.hidden_size + 1) * host.hidden_size + generator.hidden_size
    return {**counts, "projection": projection}


def weights_read_per_token(size: str) -> int:
    """Return the number of weights that a decode step of the host reads: all but the rest of the embedding table.

    >>> weights_read_per_token("toy") == 52_640 - 500 * 32
    True
    """
    host, _ = configs(size)
    table = 0 if host.tie_word_embeddings else host.vocab_size * host.hidden_size
    return parameter_counts(size)["host"] - table


def cache_numbers(config: PreTrainedConfig) -> int:
    """Return how many numbers one token takes in a key-value cache.

    >>> cache_numbers(configs("llama2-7b")[0])  # keys and values, 32 layers, 32 heads of 128
    262144
    """
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head
