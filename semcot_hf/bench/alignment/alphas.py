"""What the alignment loss adds: stage 2 with several weights of it, and the best encoder, on the same questions."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from ...evaluation.statistics import accuracy_interval, mcnemar
from ...storage import check_same_run, read_json_lines, text_digest, write_json, write_json_lines
from .settings import AlignmentBenchSettings


@dataclass
class AlphaRuns:
    """The trainings and evaluations of stage 2.

    Args:
        folder: of all of them.
        host, generator: ids or paths.
        encoder: folder of the encoder f.
        settings: `alphas`, `distill_flags` and `evaluate_flags`.
        seed: of the trainings.
    """

    folder: Path
    host: str
    generator: str
    encoder: Path
    settings: AlignmentBenchSettings
    seed: int

    def model(self, alpha: float) -> Path:
        """Return the folder of the model that was trained with `alpha`."""
        return self.folder / f"alpha-{alpha:g}" / "model"


def compare_alphas(runs: AlphaRuns, data: Mapping[str, Dataset], progress: Callable[[str], object]) -> dict:
    """Train and evaluate stage 2 with each alpha, and compare the answers with those of alpha 0.

    What is finished in the folder is kept; a training goes on from its last checkpoint.

    Args:
        runs: what is trained.
        data: `train`, `validation` and, where there are any, `test` rows.
        progress: called with one line of text for each alpha.

    Returns:
        `split`, on which is evaluated; `no_cot`, accuracy of the host alone; `rows`: for each alpha its `accuracy`,
        `ci95`, `n`, `p` (McNemar's exact test against alpha 0), `model` and `verdicts`.

    Raises:
        ValueError: when the folder holds runs of other data, models or flags.
    """
    split = "test" if "test" in data else "validation"
    _prepare(runs, data)
    rows, verdicts, alone = [], {}, None
    for alpha in sorted(set(runs.settings.alphas)):
        folder, model = runs.folder / f"alpha-{alpha:g}", runs.model(alpha)
        if not (folder / "trained.json").is_file():
            _train(runs, alpha, model)
            write_json(folder / "trained.json", {"alpha": alpha})
        report = folder / "report"
        methods = ["semcot", *(["no_cot"] if alpha == 0 else [])]
        command = ["evaluate", "--model", str(model), "--dataset", str(runs.folder / "data"), "--split", split]
        command += ["--output_dir", str(report), "--methods", *methods, "--controls", "False"]
        semcot([*command, "--latency_samples", "0", *shlex.split(runs.settings.evaluate_flags)])
        verdicts[alpha] = _verdicts(report / "predictions-semcot.jsonl")
        if alpha == 0:
            alone = _verdicts(report / "predictions-no_cot.jsonl")
        right, n = sum(verdicts[alpha]), len(verdicts[alpha])
        progress(f"alpha {alpha:g}: {right} of {n} right")
        rows.append(
            {
                "alpha": alpha,
                "accuracy": right / n,
                "ci95": list(accuracy_interval(right, n)),
                "n": n,
                "p": None if alpha == 0 else mcnemar(verdicts[alpha], verdicts[0]),
                "model": str(model),
                "verdicts": "".join("01"[verdict] for verdict in verdicts[alpha]),
            }
        )
    assert alone is not None, "alphas holds 0"
    return {"split": split, "no_cot": sum(alone) / len(alone), "rows": rows}


def semcot(words: list[str]) -> None:
    """Run a command of this package in a process of its own, which frees its memory.

    Raises:
        RuntimeError: when it fails.
    """
    done = subprocess.run([sys.executable, "-m", "semcot_hf.cli.main", *words])
    if done.returncode:
        raise RuntimeError(
            f"`{shlex.join(['semcot', *words])}` ended with status {done.returncode}; its message is above. Repeat "
            "the command to go on from here."
        )


def _prepare(runs: AlphaRuns, data: Mapping[str, Dataset]) -> None:
    """Write the rows, once, and check that earlier runs in the folder are of the same."""
    splits = {name: [dict(row) for row in rows] for name, rows in data.items()}
    wanted = {
        "host": runs.host,
        "generator": runs.generator,
        "encoder": runs.encoder.name,
        "distill_flags": runs.settings.distill_flags,
        "seed": runs.seed,
        **{f"{name} rows": text_digest(rows) for name, rows in splits.items()},
    }
    path = runs.folder / "settings.json"
    if path.is_file():
        remedy = "Delete it, or choose another output_dir."
        check_same_run(json.loads(path.read_text()), wanted, place=str(runs.folder), remedy=remedy)
        return
    (runs.folder / "data").mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        write_json_lines(runs.folder / "data" / f"{name}.jsonl", rows)
    write_json(path, wanted)


def _train(runs: AlphaRuns, alpha: float, model: Path) -> None:
    command = ["distill", "--recipe", "paper", "--host", runs.host, "--generator", runs.generator]
    command += ["--dataset", str(runs.folder / "data"), "--output_dir", str(model), "--alpha", f"{alpha:g}"]
    command += ["--seed", str(runs.seed)]
    if alpha > 0:
        command += ["--alignment_encoder", str(runs.encoder)]
    if any(model.glob("checkpoint-*")):
        command += ["--resume_from_checkpoint", "True"]
    semcot([*command, *shlex.split(runs.settings.distill_flags)])


def _verdicts(path: Path) -> list[bool]:
    return [row["correct"] for row in sorted(read_json_lines(path), key=lambda row: row["index"])]
