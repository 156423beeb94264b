"""Training words through the host: what further steps of each objective add to a words model, and merged words.

    python examples/real/joint.py --model runs/real/pair/model --data runs/real/pair/data \
        --output_dir runs/real/joint --max_steps 24 --kl_weight 0.5

`--model` is a checkpoint of `semcot distill --recipe words`, `--data` the folder that `pair.py` wrote. New adapters of
the generator are trained by the losses of `SemCoTDistillationConfig`, whose options are flags here, with the defaults
in `DEFAULTS`. With `--words_per_token 2` the host reads the means of neighbouring words, two by two, in training and
after it. The test questions are answered, and verdicts.jsonl.gz and log.json written to the output folder.
`--max_steps 0` answers them as they are.
"""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoTokenizer
from trl import TrlParser

from semcot_hf import SemCoTDistillationConfig, SemCoTDistillationTrainer, SemCoTForCausalLM, load_reasoning_dataset
from semcot_hf.answers import check_answer
from semcot_hf.evaluation import answer_questions
from semcot_hf.modeling.thoughts_semcot import Thoughts
from semcot_hf.options import option
from semcot_hf.storage import write_json

# The validation loss is computed before, halfway and at the end; the better of the last two checkpoints is kept.
DEFAULTS: dict[str, Any] = dict(
    alpha=0.0, max_steps=24, learning_rate=1e-4, lr_scheduler_type="cosine", warmup_steps=4, projection_warmup=0.0,
    per_device_train_batch_size=8, per_device_eval_batch_size=16,
    eval_on_start=True, eval_strategy="steps", save_strategy="steps", eval_steps=12, save_steps=12, logging_steps=4,
    load_best_model_at_end=True, metric_for_best_model="eval_answer_loss", save_total_limit=1, seed=42,
)  # fmt: skip


@dataclass
class Arguments:
    """The model, its data, and how its words are handed over."""

    model: str = option("", "A SemCoT checkpoint of adaptive thoughts in words.")
    data: str = option("", "Folder with train.jsonl and test.jsonl.")
    words_per_token: int = option(1, "Neighbouring words whose mean is one implicit token.")
    alignment_encoder: str | None = option(None, "Folder of the encoder of stage 1; required if alpha > 0.")
    answer_type: str = option("numeric", "Type of the answers.")
    max_new_tokens: int = option(24, "Longest answer to a test question.")
    test_batch_size: int = option(64, "Test questions at once.")


class MergedWords(SemCoTForCausalLM):
    """A model whose host reads the means of `words_per_token` neighbouring words."""

    words_per_token = 1

    def _make_thoughts(self, *args: Any, **kwargs: Any) -> Thoughts:
        thoughts, size = super()._make_thoughts(*args, **kwargs), self.words_per_token
        if size == 1 or thoughts.mask is None:
            return thoughts
        gap = -thoughts.mask.shape[1] % size
        real = pad(thoughts.mask, (0, gap)).unflatten(1, (-1, size))
        groups: Tensor = pad(thoughts.embeddings, (0, 0, 0, gap)).unflatten(1, (-1, size))
        counts = real.sum(dim=-1)
        tokens = groups.sum(dim=2) / counts.clamp(min=1)[..., None].to(groups.dtype)
        return thoughts._replace(embeddings=tokens, mask=(counts > 0).long())


def main(argv: list[str] | None = None) -> None:
    parser = TrlParser((Arguments, SemCoTDistillationConfig))
    parser.set_defaults_with_config(**DEFAULTS)
    arguments, args = parser.parse_args_and_config(argv)
    output = Path(str(args.output_dir))
    output.mkdir(parents=True, exist_ok=True)
    model = MergedWords.from_pretrained(arguments.model)
    model.words_per_token = arguments.words_per_token
    tokenizer, splits = AutoTokenizer.from_pretrained(arguments.model), load_reasoning_dataset(arguments.data)
    if args.max_steps > 0:
        adapters = LoraConfig(r=32, lora_alpha=64, lora_dropout=0.0, target_modules="all-linear")
        sets = {"train_dataset": splits["train"], "eval_dataset": splits["validation"]}
        given = {"alignment_encoder": arguments.alignment_encoder, "peft_config": adapters}
        trainer = SemCoTDistillationTrainer(model, args, processing_class=tokenizer, **given, **sets)
        trainer.train()
        write_json(output / "log.json", {"log": trainer.state.log_history})
    sizes = {"max_new_tokens": arguments.max_new_tokens, "batch_size": arguments.test_batch_size}
    answers = answer_questions(model.eval(), tokenizer, splits["test"]["query"], method="semcot", **sizes)
    verdicts = []
    for index, (answer, row) in enumerate(zip(answers, splits["test"], strict=True)):
        right = check_answer(answer.output, row["answer"], arguments.answer_type)
        verdicts.append({"method": "semcot", "index": index, "correct": right, "new_tokens": answer.new_tokens})
        verdicts[-1] |= {"implicit_tokens": answer.implicit_tokens, "thought": answer.thought}
    with gzip.open(output / "verdicts.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(verdict) + "\n" for verdict in verdicts)
    print(f"{sum(verdict['correct'] for verdict in verdicts)} of {len(verdicts)} test questions are right")


if __name__ == "__main__":
    main()
