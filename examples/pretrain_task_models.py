"""Make the tiny hosts and generators of the demo and of the bench's tasks: Llamas that reason in words.

    python examples/pretrain_task_models.py --task facts --output_dir runs/models/facts
    python examples/pretrain_task_models.py --task arithmetic --output_dir runs/models/arithmetic

Missing models are made in `generator` and `host`; `semcot_hf/bench/tasks/pretraining.py` describes how. The generator
of the graph's rules gets a training aid (`earlier_tokens.py`), without which it is learned in some runs only.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from earlier_tokens import EarlierTokens
from transformers import HfArgumentParser

from semcot_hf.bench.tasks.definitions import BENCH_TASKS
from semcot_hf.bench.tasks.pretraining import make_models

# Shares of the lessons' steps between which the aid is withdrawn.
AID_FADES = (0.2, 0.6)


@dataclass
class Arguments:
    """Which task, and where the models go."""

    output_dir: str = field(metadata={"help": "Folder that gets host/ and generator/."})
    task: str = field(default="facts", metadata={"help": f"One of {', '.join(BENCH_TASKS)}."})
    host_layers: int | None = field(default=None, metadata={"help": "Layers of the host; by default the task's."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, questions and order."})
    steps_factor: float = field(default=1.0, metadata={"help": "Factor on all numbers of steps (for a quick try)."})
    eval_samples: int = field(default=1000, metadata={"help": "Number of held-out questions for the accuracy."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})


def main(argv=None):
    """Make what is missing and print each model's figures."""
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args=argv)
    options = vars(arguments)
    task = BENCH_TASKS[options.pop("task")]
    aids = [EarlierTokens(AID_FADES, arguments.seed)] if task.by_script else []
    for path in make_models(task, options.pop("output_dir"), aids=aids, **options):
        print(path, json.dumps(json.loads(Path(path, "figures.json").read_text())))


if __name__ == "__main__":
    main()
