"""Fixtures of stage 2's tests: rows, tiny models on disk, and a cache folder apart from the user's."""

import pytest
import torch
from datasets import Dataset
from distillation_models import make_model

from semcot_hf.data.tasks import coin_flip


@pytest.fixture
def datasets_cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    return tmp_path / "datasets"


@pytest.fixture(scope="session")
def rows():
    return Dataset.from_list(coin_flip.generate(24, seed=0, min_people=1, max_people=3))


@pytest.fixture(scope="session")
def tiny_folder(tiny_lm, tiny_tokenizer, tmp_path_factory):
    """A folder with a float32 `host` and a `generator`, each with the tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    sizes = {"dtype": torch.float32, "max_position_embeddings": 512}
    models = {
        "host": tiny_lm("llama", eos_token_id=2, **sizes),
        "generator": tiny_lm("llama", hidden_size=16, seed=1, **sizes),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tiny_tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def parts(tiny_folder):
    """Function (**config fields) -> a SemCoT model of two sequential tokens; the step decoder starts from its path."""
    return lambda **fields: make_model(tiny_folder, **fields)
