"""The benchmark of generation's overhead runs at toy size, and its parts are what `generate` does."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).resolve().parents[1] / "examples" / "bench" / "generate_overhead.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_the_generators_part_makes_the_models_tokens(bench, mode):
    model = bench.make_model("toy", mode)
    ids = torch.randint(3, 500, (2, bench.PROMPT))
    with torch.no_grad():
        expected = model.implicit_embeddings(ids)
    torch.testing.assert_close(bench.generator_pass(model, ids), expected, atol=1e-5, rtol=1e-4)


def test_prints_and_writes_figures(bench, tmp_path, capsys):
    path = tmp_path / "overhead.json"
    flags = ["--sizes", "toy", "--batch_sizes", "1", "--new_tokens", "2", "--seconds", "0", "--output", str(path)]
    bench.main(flags)
    printed = capsys.readouterr().out
    assert "| toy | sequential | 1 |" in printed and "attached, bytes" in printed
    result = json.loads(path.read_text())
    assert [row["mode"] for row in result["rows"]] == ["parallel", "sequential"]
    for row in result["rows"]:
        assert row["overhead"] > 0 and row["pairs"] == bench.FEWEST_PAIRS
        assert row["quartiles"][0] <= row["overhead"] <= row["quartiles"][1]
    sizes = result["checkpoints"]["toy"]
    assert sizes["attached"] < sizes["whole"]
    assert sizes["whole"] - sizes["attached"] >= 4 * sizes["host_parameters"] - 1000
    assert result["environment"]["cpu"] and "generate_overhead.py --sizes toy" in result["command"]
