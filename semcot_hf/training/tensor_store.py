"""Tensors and arrays that are computed once and reused by later runs, stored in the folder of the datasets cache."""

from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from ..storage import atomic_path, text_digest, weights_digest


def store_folder() -> Path:
    """Return the store's folder, inside `HF_DATASETS_CACHE`."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "semcot_hf"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fingerprint(module: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, description: str) -> str:
    """Return a hash of all weights of a module, its tokenizer's vocabulary and a description of its computation."""
    return text_digest([description, sorted(tokenizer.get_vocab().items()), weights_digest(module, samples=None)])


def stored_tensor(name: str, key: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return the stored result of `compute()`, or compute and store it.

    Args:
        name: what the tensor holds, for the file's name.
        key: hash of everything that the tensor depends on.
    """
    path = store_folder() / f"{name}-{key}.safetensors"
    if path.is_file():
        return load_file(path)[name]
    tensor = compute().cpu().contiguous()
    with atomic_path(path) as temporary:
        save_file({name: tensor}, temporary)
    return tensor
