"""Training speed of the words phase against TRL's SFTTrainer: the same rows, adapters, batches and precision.

    python examples/bench/words_speed.py --host Qwen/Qwen2.5-1.5B-Instruct \
        --generator Qwen/Qwen2.5-0.5B-Instruct --dataset openai/gsm8k --output runs/words_speed

Both read the same tokens: question, words, the generator's own answer. SFTTrainer takes them as prompt and completion,
with loss on the completion alone, and batches of similar length, as the words phase does. The first step is not timed.
The steps of the two trainers alternate in blocks, so that other load on the machine meets both.
"""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer, TrlParser

from semcot_hf import SemCoTDistillationConfig, SemCoTDistillationTrainer, SemCoTForCausalLM, load_reasoning_dataset
from semcot_hf.demo import GENERATOR_PATH, HOST_PATH
from semcot_hf.options import option
from semcot_hf.training.device_defaults import set_device_defaults


@dataclass
class Arguments:
    """What is timed."""

    host: str = option(str(HOST_PATH), "Id or path of the host.")
    generator: str = option(str(GENERATOR_PATH), "Id or path of the generator.")
    dataset: str = option("examples/data/arithmetic", "Dataset, as `semcot distill` takes it.")
    rows: int = option(256, "Training rows.")
    batch_size: int = option(16, "Rows per step.")
    steps: int = option(4, "Timed steps of each block.")
    blocks: int = option(2, "Blocks of each trainer.")
    output: str = option("runs/words_speed", "Folder of the result and of the trainers.")


class Clock(TrainerCallback):
    """Seconds of each step but the first."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step > 1:
            self.seconds.append(time.perf_counter() - self.start)


@dataclass
class Config(SFTConfig):
    """TRL's settings, with bfloat16 only where the device supports it."""

    def __post_init__(self):
        set_device_defaults(self)
        super().__post_init__()


def main() -> None:
    (arguments,) = TrlParser(Arguments).parse_args_and_config()
    peft_config = LoraConfig(r=32, lora_alpha=64, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    rows = load_reasoning_dataset(arguments.dataset)["train"]
    rows = rows.select(range(min(arguments.rows, len(rows))))
    shared = dict(
        per_device_train_batch_size=arguments.batch_size,
        train_sampling_strategy="group_by_length",
        learning_rate=3e-4,
        activation_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    tokenizer = AutoTokenizer.from_pretrained(arguments.host)
    seconds: dict[str, list[float]] = {"words phase": [], "SFTTrainer": []}
    tokens = {}
    for _ in range(arguments.blocks):
        model = SemCoTForCausalLM.from_host_generator_pretrained(
            arguments.host, arguments.generator, recipe="words", num_implicit_tokens=256
        )
        clock = Clock()
        ours = SemCoTDistillationTrainer(
            model=model,
            args=SemCoTDistillationConfig(
                f"{arguments.output}/words",
                alpha=0.0,
                words_max_steps=arguments.steps + 1,
                num_train_epochs=0,
                **shared,
            ),
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=[clock],
        )
        ours.train()
        seconds["words phase"] += clock.seconds
        size = len(model.config.answer_prompt_ids)
        same = Dataset.from_list(
            [
                {
                    "input_ids": row["prompt_ids"][: len(row["prompt_ids"]) - size] + row["thought_ids"],
                    "labels": [-100] * (len(row["prompt_ids"]) - size) + row["thought_targets"],
                }
                for row in ours.train_dataset
            ]
        ).map(lambda row: {"length": len(row["input_ids"])})
        tokens = {"rows": len(same), "mean tokens a row": round(statistics.mean(same["length"]), 1)}
        del model, ours
        clock = Clock()
        sft = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(arguments.generator),
            args=Config(
                f"{arguments.output}/sft",
                max_steps=arguments.steps + 1,
                dataset_kwargs={"skip_prepare_dataset": True},
                **shared,
            ),
            train_dataset=same.remove_columns("length"),
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=[clock],
        )
        sft.train()
        seconds["SFTTrainer"] += clock.seconds
        del sft
    result = {
        **tokens,
        "rows a second": {name: round(arguments.batch_size / statistics.median(s), 3) for name, s in seconds.items()},
        "seconds a step": {name: [round(value, 2) for value in s] for name, s in seconds.items()},
    }
    Path(arguments.output).mkdir(parents=True, exist_ok=True)
    (Path(arguments.output) / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
