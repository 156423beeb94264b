"""Files of trainers' checkpoints, with adapters, that are cut off, have a flipped bit or are another run's."""

import json
import logging
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from distillation_models import train
from peft import LoraConfig
from test_damaged_files import damage_file

from semcot_hf.training.checkpoints import CHECKSUMS_NAME, check_checkpoint, last_complete_checkpoint

pytestmark = pytest.mark.timeout(1800)
pytest_plugins = ["distillation_fixtures"]
CASES = int(os.environ.get("SEMCOT_FAULTS_FILES", 50))


@pytest.fixture(scope="module")
def runs(tiny_folder, tmp_path_factory):
    """Folder with two runs of two checkpoints each, with adapters."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", root / "datasets")
        for seed in (1, 2):
            adapters = LoraConfig(r=2, target_modules=["q_proj"])
            options = {"max_steps": 2, "save_steps": 1, "save_strategy": "steps", "projection_warmup": 0.0}
            train(tiny_folder, root / f"run-{seed}", peft_config=adapters, step_weight=0.0, seed=seed, **options)
    return root


def test_damaged_checkpoints_of_runs_are_refused_or_passed_over(runs, tmp_path, caplog):
    outcomes: Counter[str] = Counter()
    problems = []
    names = sorted(path.relative_to(runs / "run-1") for path in (runs / "run-1" / "checkpoint-2").rglob("*.*"))
    assert any("adapter" in path.name for path in names) and {path.name for path in names} >= {CHECKSUMS_NAME}
    for seed in range(CASES):
        rng = random.Random(seed)
        folder = shutil.copytree(runs / "run-1", tmp_path / "run")
        name = rng.choice(names)
        way = damage_file(rng, folder / name, runs / "run-2" / name)
        caplog.clear()
        about = f"seed {seed}: {name} {way}"
        with caplog.at_level(logging.WARNING):
            try:
                found = last_complete_checkpoint(folder)
                assert found is not None
                check_checkpoint(found)
            except ValueError as error:
                outcome = "refused"
                if str(folder / name.parent) not in str(error):
                    problems.append(f"{about}: the error names no file: {error!r}")
            else:
                passed_over = Path(found).name == "checkpoint-1" and "checkpoint-2 is incomplete" in caplog.text
                outcome = "passed over" if passed_over else "without effect"
                if not passed_over and not same(folder / name, runs / "run-1" / name):
                    problems.append(f"{about}: silent")
        outcomes[outcome] += 1
        shutil.rmtree(folder)
    print(outcomes)
    assert not problems, "\n".join(problems)
    assert outcomes["refused"] > CASES / 3


def same(path: Path, whole: Path) -> bool:
    """Return whether a file says the same as the one that was saved."""
    if path.name == CHECKSUMS_NAME:
        return json.loads(path.read_text()) == json.loads(whole.read_text())
    return path.read_bytes() == whole.read_bytes()
