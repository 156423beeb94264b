"""The paper's five sets, and `elements`, with pairs of pretrained models: training, evaluation, verdicts, table.

    python examples/real/table.py --models /models --data /data --output runs/real

Models are folders in --models; data are <set>/train_42.json and <set>/eval_42.json in the paper's format, except those
of `elements`, which are made. Each pair is trained on each set in each of --variants (`pair.py`); each host alone is
evaluated once on each set. Everything goes on where it was cut off. `results/` in the output folder gets one file of
verdicts for each, from which `report.py` makes the table.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pair
import report
from variants import PAIRS, PROMPT_TUNING, SETS, VARIANTS, files_of, host_flags
from verdicts import write_verdicts


def evaluate_host(host: Path, data: Path, folder: Path, name: str, arguments: argparse.Namespace) -> None:
    """Evaluate a host alone on a set, in its own words and by prompt tuning; keep its verdicts beside the pairs'."""
    flags = [*host_flags(name), *shlex.split(arguments.evaluate_flags)]
    pair.semcot("evaluate", "--model", host, "--dataset", data, "--output_dir", folder, *flags)
    tuned = folder / "prompt_tuning"
    # The bench names a task's folder by the path of its data, which is another for each pair and variant.
    if not list(tuned.glob("*/prompt_tuning/seed0/run.json")):
        # No generator is loaded; the bench only compares its tokenizer with the host's.
        models = ("--host", host, "--generator", host, "--task", data, "--output_dir", tuned)
        flags = ["--methods", "prompt_tuning", "--seeds", "0", "--max_new_tokens", "24", "--latency_samples", "0"]
        flags += shlex.split(f"{PROMPT_TUNING} {arguments.prompt_tuning_flags}")
        pair.semcot("bench", "methods", *models, *flags)
    (answers,) = tuned.glob("*/prompt_tuning/seed0/evaluation/predictions-semcot.jsonl")
    path = folder.parent / "results" / f"{folder.name}.jsonl.gz"
    write_verdicts(folder, path, {"prompt_tuning": answers})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", required=True, help="Folder of the models' folders.")
    parser.add_argument("--data", required=True, help="Folder of the sets.")
    parser.add_argument("--output", required=True, help="Folder of all runs.")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, help="Sets.")
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), help="Pairs, each as host+generator.")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), help="Variants.")
    parser.add_argument("--align_flags", default="", help="Further flags of semcot align, in one text.")
    parser.add_argument("--distill_flags", default="", help="Further flags of semcot distill, in one text.")
    parser.add_argument("--prompt_tuning_flags", default="", help="Further flags of the host's prompt tuning.")
    parser.add_argument(
        "--evaluate_flags",
        default="--max_new_tokens 24 --max_reasoning_tokens 300 --batch_size 32 "
        "--latency_samples 16 --latency_batch_sizes 1 16",
        help="Flags of semcot evaluate, in one text; by default few times are measured, since chains take minutes.",
    )
    arguments = parser.parse_args()
    output, models, data = Path(arguments.output), Path(arguments.models), Path(arguments.data)
    results = output / "results"
    results.mkdir(parents=True, exist_ok=True)
    evaluated = set()
    for name in arguments.sets:
        train, test = files_of(name, data, output)
        for models_of in arguments.pairs:
            host, generator = models_of.split("+")
            for label, variant in VARIANTS.items():
                if label not in arguments.variants or name not in variant.sets:
                    continue
                folder = output / f"{name}--{host}--{generator}--{label}"
                command = [sys.executable, str(Path(__file__).with_name("pair.py")), "--recipe", variant.recipe]
                command += ["--host", str(models / host), "--generator", str(models / generator)]
                command += ["--train", *map(str, train), "--test", str(test), "--output", str(folder)]
                command += ["--distill_flags", f"{variant.flags_for(name)} {arguments.distill_flags}"]
                if variant.align is not None:
                    command += ["--align_flags", f"{variant.align} {arguments.align_flags}"]
                    command += ["--encoder", str(output / f"{name}--{host}--encoder")]
                flags = f"--methods {' '.join(variant.methods)} {arguments.evaluate_flags}"
                subprocess.run([*command, "--evaluate_flags", flags], check=True)
                shutil.copy(folder / "verdicts.jsonl.gz", results / f"{folder.name}.jsonl.gz")
                alone = output / f"{name}--{host}"
                if alone not in evaluated:
                    evaluate_host(models / host, folder / "data", alone, name, arguments)
                    evaluated.add(alone)
    report.main([str(path) for path in sorted(results.glob("*.jsonl.gz"))])


if __name__ == "__main__":
    main()
