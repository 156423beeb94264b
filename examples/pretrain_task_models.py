"""Make the tiny hosts and generators of the demo and of the bench's tasks: Llamas that reason in words.

    python examples/pretrain_task_models.py --task coin_flip --output_dir semcot_hf/demo/models
    python examples/pretrain_task_models.py --task arithmetic --output_dir runs/models/arithmetic

Both models, `generator` and `host`, are made where they are missing; `semcot_hf/bench/tasks/pretraining.py` tells how.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from semcot_hf.bench.tasks.definitions import BENCH_TASKS
from semcot_hf.bench.tasks.pretraining import make_models


@dataclass
class Arguments:
    """Which task, and where the models go."""

    output_dir: str = field(metadata={"help": "Folder that gets host/ and generator/."})
    task: str = field(default="coin_flip", metadata={"help": f"One of {', '.join(BENCH_TASKS)}."})
    host_layers: int | None = field(default=None, metadata={"help": "Of the host; the task's own when left out."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, questions and order."})
    steps_factor: float = field(default=1.0, metadata={"help": "Multiplies all numbers of steps (for a quick try)."})
    eval_samples: int = field(default=1000, metadata={"help": "Held-out questions judged at the end."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})


def main(argv=None):
    """Make what is missing and print each model's figures."""
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args=argv)
    for path in make_models(
        BENCH_TASKS[arguments.task],
        arguments.output_dir,
        host_layers=arguments.host_layers,
        seed=arguments.seed,
        steps_factor=arguments.steps_factor,
        eval_samples=arguments.eval_samples,
        device=arguments.device,
    ):
        print(path, json.dumps(json.loads(Path(path, "figures.json").read_text())))


if __name__ == "__main__":
    main()
