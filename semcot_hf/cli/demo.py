"""`semcot demo`: training, evaluation and reload with the embedded models, in minutes."""

import dataclasses
import logging
import shlex
import warnings
from dataclasses import dataclass, field

import datasets
import transformers

from .arguments import parse


@dataclass
class DemoArguments:
    """The folder of the result, and the size of the demo."""

    output_dir: str = field(default="runs/demo", metadata={"help": "Folder of the model, the report and the plot."})
    full: bool = field(default=False, metadata={"help": "Train 20 times as long, up to an hour; resumable."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what output_dir holds."})
    seed: int = field(default=0, metadata={"help": "Seed of the questions and of the training."})


def run(argv: list[str]) -> None:
    """Run the demo and print its table, three answers and the next command."""
    (arguments,) = parse("semcot demo", (DemoArguments,), argv)
    _quiet()
    from ..demo.pipeline import FULL, DemoSettings, run_demo
    from ..evaluation import print_report

    settings = dataclasses.replace(FULL if arguments.full else DemoSettings(), seed=arguments.seed)
    command = shlex.join(["semcot", "demo", *argv])
    report, answers = run_demo(arguments.output_dir, settings, overwrite=arguments.overwrite, command=command)
    print_report(report)
    print("\nReloaded by a process without semcot_hf, through pipeline('text-generation'):")
    for question, answer in answers:
        print(f"  {question}\n    -> {answer}")
    folder = arguments.output_dir
    print(f"\n{folder} holds model/, report.md, report.json and accuracy_vs_latency.png.")
    print(f"Next: semcot evaluate --model {folder}/model --dataset facts --output_dir runs/evaluation")


def _quiet() -> None:
    """Switch off the bars and notes of the libraries, which would hide the progress of the stages."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch")
