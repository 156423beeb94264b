"""The runs on a GPU, as far as a machine without one can try them: pieces, wheels, limits, and all steps tiny."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from semcot_hf.demo import GENERATOR_PATH, HOST_PATH

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SLEEPER = "import os, time; open({0!r}, 'w').write(str(os.getpid())); time.sleep(300)"


def load(name):
    spec = importlib.util.spec_from_file_location(f"gpu_{Path(name).stem}", EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_models_travel_in_pieces(tmp_path, capsys):
    pieces = load("gpu/pieces.py")
    model = tmp_path / "qwen"
    (model / "sub").mkdir(parents=True)
    big = os.urandom(25_000)
    (model / "model.safetensors").write_bytes(big)
    (model / "sub" / "config.json").write_text("{}")
    out, joined = tmp_path / "pieces", tmp_path / "models"
    assert pieces.main(["split", str(model), "--output", str(out), "--piece_mb", "0.01"]) == 0
    parts = sorted((out / "qwen").glob("qwen.tar.*"))
    assert len(parts) > 2 and max(path.stat().st_size for path in parts) <= 10_000
    # They come one at a time: what is missing or damaged is named, and nothing is joined.
    kept = parts[1].read_bytes()
    parts[1].unlink()
    assert pieces.main(["join", str(out), "--output", str(joined)]) == 1
    assert parts[1].name in capsys.readouterr().out and not (joined / "qwen").exists()
    parts[1].write_bytes(kept[:-1] + b"x")
    assert pieces.main(["join", str(out), "--output", str(joined)]) == 1
    parts[1].write_bytes(kept)
    assert pieces.main(["join", str(out), "--output", str(joined)]) == 0
    assert (joined / "qwen/model.safetensors").read_bytes() == big
    assert (joined / "qwen/sub/config.json").read_text() == "{}"
    assert sorted(path.name for path in joined.iterdir()) == ["qwen"]
    for given in (["split", str(model), "--piece_mb", "61"], ["split", str(tmp_path / "none")], ["join", str(model)]):
        with pytest.raises(SystemExit):
            pieces.main([*given, "--output", str(out)])
    told = capsys.readouterr().err
    assert "--piece_mb 61 must be above 0 and at most 60" in told and "do not exist" in told and "manifest" in told


def test_wheels_have_pinned_versions():
    wheels = load("gpu/wheels.py")
    names = (EXAMPLES / "gpu/wheels.txt").read_text().split()
    wanted = wheels.pinned(names, (EXAMPLES.parent / "constraints.txt").read_text())
    assert len(wanted) == len(names) and not any(name.startswith(("torch", "nvidia", "triton")) for name in wanted)
    with pytest.raises(ValueError, match="wheels.txt names nothing-like-it"):
        wheels.pinned(["nothing-like-it"], "peft==1")


@pytest.fixture
def gpu_flags(tmp_path):
    for split in ("train", "test"):
        shutil.copy(EXAMPLES / "data" / "arithmetic" / f"{split}.jsonl", tmp_path)
    flags = f"--host {HOST_PATH} --generator {GENERATOR_PATH} --train {tmp_path}/train.jsonl "
    return f"{flags} --test {tmp_path}/test.jsonl --output {tmp_path}/gpu".split()


def test_without_a_gpu_the_steps_are_told_and_not_run(gpu_flags, tmp_path, capsys, monkeypatch):
    run = load("gpu/run.py")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.main(gpu_flags) == 3
    told = capsys.readouterr().out
    assert "No GPU is found" in told and told.count("pair.py") == 2 and "bench speed" in told
    assert not (tmp_path / "gpu").exists()
    # All training rows are taken.
    assert "--max_train_rows 1000000000" in told


def test_a_step_is_ended_with_all_that_it_started(tmp_path):
    run = load("gpu/run.py")
    script = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPER.format(str(tmp_path / 'pid'))!r}])"
    )
    start = time.monotonic()
    assert run.run_within([sys.executable, "-c", script], 3.0) == run.CUT_OFF
    assert time.monotonic() - start < 60
    child = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(child, 0)
            time.sleep(0.1)
    assert run.run_within([sys.executable, "-c", "raise SystemExit(5)"], None) == 5


@pytest.mark.slow
def test_all_steps_of_the_gpu_runs_at_tiny_scale(gpu_flags, tmp_path):
    command = [sys.executable, EXAMPLES / "gpu" / "run.py", *gpu_flags, "--scale", "tiny"]
    done = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Scale: tiny. Device: cpu. These are no figures of models" in done.stdout
    assert "| **the generator alone**, in words | " in done.stdout and "semcot, traced" in done.stdout
    assert "| host, explicit CoT | " in done.stdout and "\nTrained on 8 rows: 2 steps" in done.stdout
    output = tmp_path / "gpu"
    rows = json.loads((output / "latency.json").read_text())["rows"]
    assert {row["batch_size"] for row in rows} == {1, 2} and all(row["median"] > 0 for row in rows)
    assert (output / "speed/report.md").is_file()
    state = json.loads((output / "run.json").read_text())
    assert state["done"] == ["words", "paper", "latency", "speed"]
    # A repeated command finds all done.
    start = time.monotonic()
    again = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True)
    assert again.stdout == done.stdout[done.stdout.index("# Runs on a GPU") :]
    refused = subprocess.run([*command, "--scale", "full"], cwd=EXAMPLES.parent, capture_output=True, text=True)
    assert refused.returncode == 3 and time.monotonic() - start < 120
