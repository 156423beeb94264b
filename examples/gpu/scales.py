"""The steps of the runs on a GPU: their commands at the full scale, and at a tiny one for a try without a GPU."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "real"))

from variants import VARIANTS, WORD_METHODS


@dataclass(frozen=True)
class Scale:
    """The budgets of one scale.

    Args:
        distill: flags of `semcot distill` of both trainings.
        words, paper: further flags of each.
        evaluate: flags of `semcot evaluate`.
        speed: flags of `semcot bench speed`.
        latency: flags of `latency.py`.
    """

    distill: str
    words: str
    paper: str
    evaluate: str
    speed: str
    latency: str


SCALES = {
    # Two epochs of all rows in words, one through the host.
    "full": Scale(
        distill="--eval_strategy no --report_to none --save_steps 100",
        words="--words_num_train_epochs 2 --per_device_train_batch_size 16",
        paper="--num_train_epochs 1 --per_device_train_batch_size 32",
        evaluate="--batch_size 128 --max_new_tokens 24 --max_reasoning_tokens 300 --latency_samples 0",
        speed="--sizes qwen2.5-7b --batch_sizes 1 8 64 --prompt_lengths 128 --implicit_tokens 5 --answer_tokens 8 "
        "--device cuda --methods no_cot cot semcot_parallel semcot_sequential semcot_parallel_compiled",
        latency="--samples 20 --batch_sizes 1 16 64",
    ),
    "tiny": Scale(
        distill="--eval_strategy no --report_to none --save_steps 1 --max_train_samples 8 --use_cpu --bf16 False",
        words="--words_max_steps 2 --per_device_train_batch_size 2 --num_implicit_tokens 100",
        paper="--max_steps 2 --per_device_train_batch_size 2 --num_implicit_tokens 2",
        evaluate="--max_eval_samples 3 --max_new_tokens 2 --latency_samples 0",
        speed="--sizes toy --batch_sizes 1 2 --prompt_lengths 16 --implicit_tokens 2 --answer_tokens 2 --cot_tokens 4 "
        "--device cpu --threads 1 --seconds 0.05 --methods no_cot semcot_parallel",
        latency="--samples 2 --batch_sizes 1 2 --max_new_tokens 2 --max_reasoning_tokens 4",
    ),
}
STEPS = ("words", "paper", "latency", "speed")


def command_of(step: str, scale: Scale, output: Path, host: str, generator: str, train: list[str], test: str) -> list:
    """Return the command of a step, which goes on where it was cut off."""
    if step == "speed":
        words = ["-m", "semcot_hf.cli.main", "bench", "speed", "--output_dir", output / "speed"]
        return [*words, *shlex.split(scale.speed)]
    if step == "latency":
        models = [output / "words" / "model", output / "paper" / "model"]
        words = [Path(__file__).with_name("latency.py"), "--models", *models, "--test", test]
        return [*words, "--output", output / "latency.json", *shlex.split(scale.latency)]
    variant = VARIANTS[step]
    methods = ("cot", *WORD_METHODS) if step == "words" else variant.methods
    flags = f"{variant.flags} {scale.distill} {getattr(scale, step)}"
    words = [Path(__file__).parents[1] / "real" / "pair.py", "--recipe", variant.recipe, "--output", output / step]
    words += ["--host", host, "--generator", generator, "--train", *train, "--test", test]
    words += ["--max_train_rows", 10**9, "--distill_flags", flags]
    return [*words, "--evaluate_flags", f"--methods {' '.join(methods)} {scale.evaluate}"]
