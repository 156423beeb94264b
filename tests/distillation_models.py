"""Shared by the tests of stage 2: tiny models on disk, rows, settings, and runs in processes of their own.

    python tests/distillation_models.py FOLDER '{"max_steps": 4}'

trains one run as `train` does, also as one of several processes.
"""

import faulthandler
import gc
import json
import os
import signal
import sys
from pathlib import Path

import torch
from datasets import Dataset
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoTokenizer

from semcot_hf import SemCoTDistillationConfig, SemCoTDistillationTrainer, SemCoTForCausalLM
from semcot_hf.data.tasks import coin_flip
from semcot_hf.training.processes import end_training

ANSWER_PROMPT = [7, 8]


def make_model(folder, **fields):
    fields = {"num_implicit_tokens": 2, "generator_mode": "sequential", **fields}
    torch.manual_seed(0)
    generator = fields.pop("generator", str(folder / "generator"))
    return SemCoTForCausalLM.from_host_generator_pretrained(str(folder / "host"), generator, **fields)


def config(folder, **options):
    defaults = dict(
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        weight_decay=0.1,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        # Runs in processes of their own, which no fixture reaches, compute in the same precision.
        bf16=False,
        disable_tqdm=True,
        alpha=0.0,
        projection_warmup=0.0,
    )
    return SemCoTDistillationConfig(str(folder), **{**defaults, **options})


def train(folder, output_dir, resume=None, kill_at=None, peft_config=None, fields=None, stream=False, **options):
    """Train the models of `folder` on CoinFlip by all objectives but those of a teacher, and return the trainer.

    Args:
        resume: `resume_from_checkpoint`.
        stream: whether both data sets are streams, that for evaluation of two unequal shards.
        kill_at: step whose checkpoint is cut off by SIGKILL while it is written.
        fields: of the model; options: of the configuration.
    """
    objectives = {"alpha": 0.25, "alignment_view": "mean_pooled", "step_weight": 1.0, "curriculum": 0.25}
    options = {**objectives, "projection_warmup": 0.5, **options}
    rows = Dataset.from_list(coin_flip.generate(40, seed=0, min_people=1, max_people=3))
    train_rows, eval_rows = rows.select(range(32)), rows.select(range(32, 37))
    if stream:
        train_rows, eval_rows = train_rows.to_iterable_dataset(), eval_rows.to_iterable_dataset(num_shards=2)
    trainer = SemCoTDistillationTrainer(
        model=make_model(Path(folder), **(fields or {})),
        args=config(output_dir, **options),
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=AutoTokenizer.from_pretrained(folder / "host"),
        peft_config=peft_config,
    )
    if kill_at is not None:
        save = trainer._save_rng_state

        def die(checkpoint):
            if trainer.state.global_step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            save(checkpoint)

        trainer._save_rng_state = die
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(model, before):
    return {
        name for name, value in model.named_parameters() if name in before and not torch.equal(value, before[name])
    }


def batch(lengths=(4, 9, 6), answers=(3, 1, 4), found=True):
    """Prompts padded on the left, answers on the right; with `found` all prompts end on the answer prompt."""
    generator = torch.Generator().manual_seed(0)
    left, right = max(lengths) + 2, max(answers)
    ids = torch.zeros(len(lengths), left + right, dtype=torch.long)
    mask, completion = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (length, answer) in enumerate(zip(lengths, answers, strict=True)):
        tokens = torch.randint(10, 300, (length + 2 + answer,), generator=generator)
        if found or row:
            tokens[length : length + 2] = torch.tensor(ANSWER_PROMPT)
        ids[row, left - length - 2 : left + answer] = tokens
        mask[row, left - length - 2 : left + answer] = 1
        completion[row, left : left + answer] = 1
    labels = ids.masked_fill(completion == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "completion_mask": completion, "labels": labels}, right


def loss_and_gradients(model, inputs, **options):
    """The answers' cross-entropy, in float64 (transformers' own loss is in float32), the logits and the gradients."""
    model.zero_grad()
    labels = inputs["labels"]
    logits = model(**{**inputs, "labels": None}, use_cache=False, **options).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1 - logits.shape[1] :].flatten())
    loss.backward()
    trained = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return loss, logits, trained


def main():
    # A process that waits for another in vain tells where, before the test gives it up.
    faulthandler.dump_traceback_later(240, exit=True)
    torch.set_num_threads(1)
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    trainer = train(folder, **options)
    evaluated = trainer.evaluate()
    rank = trainer.args.process_index
    result = {"weights": trainer.model.state_dict(), "log": trainer.state.log_history, "evaluated": evaluated}
    torch.save(result, Path(options["output_dir"]) / f"rank{rank}.pt")
    end_training(trainer)
    # Torch can hang where one is left to the interpreter's end.
    assert not [value for value in gc.get_objects() if isinstance(value, DistributedDataParallel)]


if __name__ == "__main__":
    main()
