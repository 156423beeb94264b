"""`semcot align`: stage 1, the training of the alignment encoder."""

import shlex
from collections.abc import Sequence

from ..alignment.config import SemCoTAlignmentConfig
from ..alignment.trainer import SemCoTAlignmentTrainer
from ..training.operations import train
from ..training.processes import end_training
from .arguments import CountArguments, DataArguments, ModelArguments, PeftArguments, load_splits, parse, resume_point


def run(argv: Sequence[str]) -> None:
    """Train the encoder on the (reasoning, condensed reasoning) pairs of a dataset and save it in `--output_dir`."""
    parts = (DataArguments, ModelArguments, PeftArguments, CountArguments, SemCoTAlignmentConfig)
    data, models, peft, measured, args = parse("semcot align", parts, argv)
    splits = load_splits(data, "train")
    trainer = SemCoTAlignmentTrainer(
        model=models.host,
        args=args,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        peft_config=peft.peft_config,
    )
    train(trainer, resume_point(args.resume_from_checkpoint), count_operations=measured.count_operations)
    trainer.save_model(args.output_dir)
    end_training(trainer)
    host, folder, model = map(shlex.quote, (models.host, args.output_dir, f"{args.output_dir}-model"))
    print(
        f"The alignment encoder is in {args.output_dir}. Next: semcot distill --host {host} "
        f"--alignment_encoder {folder} {data.flags()} --output_dir {model}"
    )
