"""Flags that several sub-commands share, and how they become datasets and models."""

import shlex
from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, TrlParser, get_peft_config

from ..data import load_reasoning_dataset
from ..data.loading import pick_split
from ..demo import GENERATOR_PATH, HOST_PATH


@dataclass
class DataArguments:
    """Which questions."""

    dataset: str = field(
        default="coin_flip",
        metadata={"help": "A task (coin_flip, arithmetic, multiplication, graph), a Hub id, a file or a folder."},
    )
    columns: list[str] | None = field(
        default=None,
        metadata={"help": "Columns by other names than the schema's, of a file or Hub set: query=question answer=a."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use the first so many training rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use the first so many evaluation rows."})

    def flags(self):
        """The flags that name these questions once more.

        >>> DataArguments("mine.jsonl", columns=["query=q"]).flags()
        '--dataset mine.jsonl --columns query=q'
        """
        columns = f" --columns {shlex.join(self.columns)}" if self.columns else ""
        return f"--dataset {shlex.quote(self.dataset)}{columns}"


@dataclass
class ModelArguments:
    """Which models; the embedded ones by default."""

    host: str = field(default=str(HOST_PATH), metadata={"help": "Id or path of the host causal LM (frozen)."})
    generator: str = field(default=str(GENERATOR_PATH), metadata={"help": "Id or path of the generator."})


@dataclass
class PeftArguments:
    """Adapters instead of whole layers, with TRL's flags."""

    use_peft: bool = field(default=False, metadata={"help": "Train LoRA adapters, merged into what is saved."})
    lora_r: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA alpha."})
    lora_dropout: float = field(default=0.05, metadata={"help": "LoRA dropout."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules that get adapters, or all-linear; PEFT's choice when left out."}
    )
    use_rslora: bool = field(default=False, metadata={"help": "Scale by lora_alpha / sqrt(lora_r)."})
    use_dora: bool = field(default=False, metadata={"help": "Weight-decomposed adapters."})

    @property
    def peft_config(self):
        """The `LoraConfig`, or `None` without `use_peft`.

        >>> PeftArguments().peft_config is None, PeftArguments(use_peft=True, lora_r=4).peft_config.r
        (True, 4)
        """
        return get_peft_config(ModelConfig(**vars(self)))


def parse(prog, dataclasses, argv):
    """Parse TRL-style flags and `--config file.yaml` into the dataclasses."""
    epilog = "--config FILE.yaml sets any of these flags by their names; flags given beside it win."
    return TrlParser(dataclasses, prog=prog, epilog=epilog).parse_args_and_config(args=argv)


def load_splits(arguments, *needed):
    """Train, validation and test rows of the dataset, as far as it has them, cut to the sample limits.

    Raises:
        ValueError: for columns that are no `name=column`, or where one of the `needed` splits is missing.
    """
    options = {}
    if arguments.columns:
        options["columns"] = {}
        for pair in arguments.columns:
            name, sign, column = pair.partition("=")
            if not (name and sign and column):
                raise ValueError(f"columns={pair!r}: write the schema's name and yours, as query=question.")
            options["columns"][name] = column
    splits = load_reasoning_dataset(arguments.dataset, **options)
    for name in needed:
        pick_split(splits, name, arguments.dataset)
    limits = {
        "train": arguments.max_train_samples,
        "validation": arguments.max_eval_samples,
        "test": arguments.max_eval_samples,
    }
    return {
        name: splits[name].select(range(min(limit, len(splits[name])))) if limit else splits[name]
        for name, limit in limits.items()
        if name in splits
    }


def load_model(arguments):
    """The model and the tokenizer of a command's `--model`, in its `--dtype`, on the GPU where there is one."""
    options = {"trust_remote_code": arguments.trust_remote_code}
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=arguments.dtype, **options)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, **options)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def resume_point(value):
    """`--resume_from_checkpoint`: a checkpoint's folder, or "true" for the last one in the output folder.

    >>> resume_point("true"), resume_point("runs/model/checkpoint-10"), resume_point(None)
    (True, 'runs/model/checkpoint-10', None)
    """
    return True if str(value).lower() == "true" else value
