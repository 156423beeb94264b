"""Checksums of what a checkpoint holds, by which loading notices damaged files and files of other checkpoints."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .weights_semcot import adapted_layers, is_part

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Values that are cast at a time, which bounds the memory that this takes.
CHUNK = 2**24


def content_checksum(content: Any) -> str:
    """Return a short digest of JSON-like content; the order of its keys does not count.

    >>> content_checksum({"a": 1, "b": [0.5, None]}) == content_checksum({"b": (0.5, None), "a": 1})
    True
    >>> content_checksum({"a": 1}) == content_checksum({"a": True})
    False
    """
    return hashlib.sha256(repr(_ordered(content)).encode()).hexdigest()[:16]


def _ordered(content: Any) -> Any:
    if isinstance(content, Mapping):
        return sorted((str(key), _ordered(value)) for key, value in content.items())
    if isinstance(content, (list, tuple)):
        return [_ordered(value) for value in content]
    # Subclasses, such as NumPy's floats and enumerations, read back from JSON as what they are derived from.
    if isinstance(content, str):
        return str.__str__(content)
    if isinstance(content, float):
        return float(content)
    return content


def tokenizer_checksum(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a checksum of what a tokenizer does: its words, special tokens, chat template and some encodings."""
    texts = ("Ann's 3 apples cost $4.50, and 12 * 7 = 84.\n\nAnswer:", " \u00e9t\u00e9 \u4f60\u597d  a\tb")
    encoded = [tokenizer(text)["input_ids"] for text in texts]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return content_checksum([tokenizer.get_vocab(), special, tokenizer.chat_template, encoded])


def weights_checksum(weights: Iterable[Tensor]) -> str | None:
    """Return a checksum in which every bit of every weight counts; names and order of the weights do not.

    It has four parts, joined by "-": the dtypes, and the sums of the weights' bits, read as integers, as they are, in
    bfloat16 and in float16. The last two compare weights that were cast while loading.

    Returns:
        The checksum; `None` if weights are quantized, sharded over processes, or not in memory (offloaded), and for
        none.
    """
    weights = list(weights)
    dtypes = _dtypes(weights)
    if not dtypes:
        return None
    return "-".join([dtypes, *(f"{_sum(weights, dtype):016x}" for dtype in (None, torch.bfloat16, torch.float16))])


def has_checksum(weights: Iterable[Tensor], checksum: str | None) -> bool | None:
    """Return whether weights have a checksum, in its dtypes or cast to others; `None` if they cannot be compared.

    >>> saved = [torch.tensor([1.0, 2.5]), torch.tensor([3.0])]
    >>> checksum = weights_checksum(saved)
    >>> has_checksum(saved, checksum), has_checksum([value.bfloat16() for value in saved], checksum)
    (True, True)
    >>> has_checksum([saved[0], saved[1] + 1e-6], checksum)
    False
    """
    weights, parts = list(weights), (checksum or "").split("-")
    now = _dtypes(weights)
    if len(parts) != 4 or now is None:
        return None
    before, *sums = parts
    # A cast to a wider dtype is undone by the cast back.
    narrow = [name for name in ("bfloat16", "float16") if name in now.split("+")] or [
        name for name in ("bfloat16", "float16") if name in before.split("+")
    ]
    if before == now:
        dtype, wanted = None, sums[0]
    elif len(narrow) == 2:
        return None
    elif narrow == ["float16"]:
        dtype, wanted = torch.float16, sums[2]
    else:
        dtype, wanted = torch.bfloat16, sums[1]
    return f"{_sum(weights, dtype):016x}" == wanted


def _dtypes(weights: list[Tensor]) -> str | None:
    """Return the dtypes of weights as text; `None` if some are not plain numbers in memory."""
    if any(
        type(value) not in (nn.Parameter, Tensor) or is_part(value) or value.is_meta or value.dtype not in DTYPES
        for value in weights
    ):
        return None
    return "+".join(sorted({str(value.dtype).removeprefix("torch.") for value in weights}))


@torch.no_grad()
def _sum(weights: list[Tensor], dtype: torch.dtype | None) -> int:
    """Return the sum, modulo 2^64, of the bits of weights in a dtype; in their own if `None`."""
    total = 0
    for value in weights:
        for part in value.detach().reshape(-1).split(CHUNK):
            total += _sum_of_bits(part if dtype is None else part.to(dtype))
    return total % 2**64


def _sum_of_bits(values: Tensor) -> int:
    """Return the sum of a vector's bits, read as 64-bit integers; any changed bit changes it."""
    data = values.contiguous().view(torch.uint8)
    whole = data.numel() // 8 * 8
    # A view as integers needs an aligned address.
    head = data[:whole] if data.data_ptr() % 8 == 0 else data[:whole].clone()
    tail = data.new_zeros(8)
    tail[: data.numel() - whole] = data[whole:]
    return int(head.view(torch.int64).sum() + tail.view(torch.int64).sum())


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of `model` as it is without its adapters, by the names of its state dict."""
    # Detached values would not say that a process holds a part of them.
    state = dict(model.state_dict(keep_vars=True))
    layers: Any = adapted_layers(model)
    for name, layer in layers:
        state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
        base = getattr(layer, "token_adapter", layer)
        base = base.get_base_layer() if hasattr(base, "get_base_layer") else base.original_module
        state.update({f"{name}.{key}": value for key, value in base.state_dict(keep_vars=True).items()})
    return state


def saved_weights(model: Any, state: Mapping[str, Tensor], with_host: bool) -> list[Tensor]:
    """Return the weights in a state dict that a checkpoint of the model holds, those of tied layers once.

    Args:
        model: the model.
        state: its state dict without adapters.
        with_host: whether the checkpoint includes the host.
    """
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    found: dict[Any, Tensor] = {}
    for name, value in state.items():
        if tied.get(name) in state or (name.startswith("host.") and not with_host):
            continue
        shared = value.numel() and not value.is_meta and not is_part(value)
        found.setdefault((value.data_ptr(), value.shape, value.dtype) if shared else name, value)
    return list(found.values())
