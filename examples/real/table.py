"""The paper's five sets with pairs of pretrained models: training, evaluation, verdicts, and the table of all.

    python examples/real/table.py --models /models --data /data --output runs/real

Models are folders in --models; data are <set>/train_42.json and <set>/eval_42.json in the paper's format. Each pair
learns the words recipe on each set (`words.py`); each host alone is evaluated once on each set. Everything goes on
where it was cut off. `results/` in the output folder gets one file of verdicts for each, from which `report.py` makes
the table.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import report
import words

# MultiArith's training rows alone are few.
TRAIN = {
    "multiarith": ("multiarith", "gsm8k"),
    "gsm8k": ("gsm8k",),
    "svamp": ("svamp",),
    "commonsense_qa": ("commonsense_qa",),
    "coin_flip": ("coin_flip",),
}
# The worked examples of the host's condensed CoT are equations.
ARITHMETIC = ("multiarith", "gsm8k", "svamp")
PAIRS = (
    "qwen2.5-coder-1.5b+qwen2.5-coder-0.5b",
    "qwen2.5-coder-1.5b+gemma-3-270m",
    "qwen2.5-coder-0.5b+gemma-3-270m",
)
PAIR_METHODS = ("no_cot", "semcot", "semcot_hard", "words", "generator", "generator_no_cot")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", required=True, help="Folder of the models' folders.")
    parser.add_argument("--data", required=True, help="Folder of the sets.")
    parser.add_argument("--output", required=True, help="Folder of all runs.")
    parser.add_argument("--sets", nargs="+", default=list(TRAIN), choices=list(TRAIN), help="Sets.")
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), help="Pairs, each as host+generator.")
    parser.add_argument("--distill_flags", default="", help="Further flags of semcot distill, in one text.")
    parser.add_argument(
        "--evaluate_flags",
        default="--batch_size 32 --latency_samples 5",
        help="Flags of semcot evaluate, in one text; by default few times are measured, since chains take minutes.",
    )
    arguments = parser.parse_args()
    output, models, data = Path(arguments.output), Path(arguments.models), Path(arguments.data)
    results = output / "results"
    results.mkdir(parents=True, exist_ok=True)
    for name in arguments.sets:
        for pair in arguments.pairs:
            host, generator = pair.split("+")
            folder = output / f"{name}--{host}--{generator}"
            command = [sys.executable, str(Path(__file__).with_name("words.py"))]
            command += ["--host", str(models / host), "--generator", str(models / generator), "--output", str(folder)]
            command += ["--train", *(str(data / part / "train_42.json") for part in TRAIN[name])]
            command += ["--test", str(data / name / "eval_42.json"), "--distill_flags", arguments.distill_flags]
            flags = f"--methods {' '.join(PAIR_METHODS)} {arguments.evaluate_flags}"
            subprocess.run([*command, "--evaluate_flags", flags], check=True)
            shutil.copy(folder / "verdicts.jsonl.gz", results / f"{folder.name}.jsonl.gz")
            alone = output / f"{name}--{host}"
            methods = ["cot", *(["condensed"] if name in ARITHMETIC else [])]
            flags = ["--methods", *methods, *shlex.split(arguments.evaluate_flags)]
            words.semcot(
                *("evaluate", "--model", models / host, "--dataset", folder / "data", "--output_dir", alone), *flags
            )
            words.write_verdicts(alone, results / f"{alone.name}.jsonl.gz")
    report.main([str(path) for path in sorted(results.glob("*.jsonl.gz"))])


if __name__ == "__main__":
    main()
