"""What is computed once for all runs: tensors in the folder of the datasets cache, by a hash of all they depend on."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

import datasets
import torch
from safetensors.torch import load_file, save_file


def store_folder():
    """The folder, inside `HF_DATASETS_CACHE`."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "semcot_hf"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fingerprint(module, tokenizer, description):
    """Hash of a module's weights, of its tokenizer's vocabulary and of a description of what it computes."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([description, sorted(tokenizer.get_vocab().items())]).encode())
    for key, value in module.state_dict().items():
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def stored_tensor(name, key, compute):
    """The tensor of `compute()`, from the store where an earlier run has left it there.

    Args:
        name: what it is, in the file's name; key: hash of all that it depends on.
        compute: function without arguments.
    """
    path = store_folder() / f"{name}-{key}.safetensors"
    if path.is_file():
        return load_file(path)[name]
    tensor = compute().cpu().contiguous()
    # Renamed when whole: another run never reads a half of it.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        save_file({name: tensor}, os.path.join(folder, path.name))
        os.replace(os.path.join(folder, path.name), path)
    return tensor
