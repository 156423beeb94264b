"""The sample datasets in examples/data are what their script makes, and sound."""

import importlib.util
from pathlib import Path

import datasets
import pytest

from semcot_hf.data import check_dataset, load_reasoning_dataset

FOLDER = Path(__file__).parents[2] / "examples" / "data"
FILES = [f"arithmetic/{split}.jsonl" for split in ("train", "validation", "test")] + ["no_reasoning.jsonl"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets_cache"))


def test_the_script_makes_the_same_bytes(tmp_path):
    spec = importlib.util.spec_from_file_location("make_sample_data", FOLDER / "make.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.make(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jsonl")) == sorted(FILES)
    assert all((tmp_path / name).read_bytes() == (FOLDER / name).read_bytes() for name in FILES)


def test_the_samples_are_sound():
    samples = load_reasoning_dataset(FOLDER / "arithmetic")
    assert {split: len(rows) for split, rows in samples.items()} == {"train": 60, "validation": 20, "test": 20}
    assert not check_dataset(samples).findings
    bare = load_reasoning_dataset(FOLDER / "no_reasoning.jsonl")
    assert sum(map(len, bare.values())) == 20 and not any(row["reasoning"] for row in bare["train"])
    assert not check_dataset(bare).has_errors
