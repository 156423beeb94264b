"""Flags that several commands share, and the datasets and models that they select."""

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from trl import ModelConfig, TrlParser, get_peft_config

from ..data import load_reasoning_dataset
from ..data.loading import pick_split
from ..demo import GENERATOR_PATH, HOST_PATH
from ..modeling.checksums_semcot import tokenizer_checksum
from ..modeling.sources_semcot import readable
from ..options import check_range, option

if TYPE_CHECKING:
    from peft import PeftConfig

logger = logging.get_logger(__name__)


@dataclass
class DataArguments:
    """The dataset, and how many of its rows are used."""

    dataset: str = option(
        "facts",
        "A task (facts, elements, coin_flip, arithmetic, multiplication, graph, countdown), Hub id, file or folder.",
    )
    columns: list[str] | None = option(
        None, "Column names of a file or Hub set that differ from the schema: query=question answer=a."
    )
    max_train_samples: int | None = option(None, "Use only the first N training rows.")
    max_eval_samples: int | None = option(None, "Use only the first N evaluation rows.")

    def __post_init__(self) -> None:
        check_range(self, "[1, inf)", "max_train_samples", "max_eval_samples", optional=True)

    def flags(self) -> str:
        """Return the flags that select this dataset.

        >>> DataArguments("mine.jsonl", columns=["query=q"]).flags()
        '--dataset mine.jsonl --columns query=q'
        """
        columns = f" --columns {shlex.join(self.columns)}" if self.columns else ""
        return f"--dataset {shlex.quote(self.dataset)}{columns}"


@dataclass
class ModelArguments:
    """Host and generator; the embedded demo models by default."""

    host: str = option(str(HOST_PATH), "Id or path of the host causal LM (frozen).")
    generator: str = option(str(GENERATOR_PATH), "Id or path of the generator.")


@dataclass
class CountArguments:
    """What is measured of a training."""

    count_operations: bool = option(
        False,
        "Estimate the floating point operations from some twenty steps, for train_results.json. These steps take "
        "longer and round otherwise.",
    )


@dataclass
class PeftArguments:
    """Adapters instead of whole layers, with TRL's flags."""

    use_peft: bool = option(False, "Train LoRA adapters, merged into what is saved.")
    lora_r: int = option(16, "LoRA rank.")
    lora_alpha: int = option(32, "LoRA alpha.")
    lora_dropout: float = option(0.05, "LoRA dropout.")
    lora_target_modules: list[str] | None = option(
        None, "Names of the modules that get adapters, or all-linear. None: PEFT's default for the architecture."
    )
    use_rslora: bool = option(False, "Scale by lora_alpha / sqrt(lora_r).")
    use_dora: bool = option(False, "Weight-decomposed adapters.")

    @property
    def peft_config(self) -> "PeftConfig | None":
        """The `LoraConfig`, or `None` without `use_peft`.

        >>> PeftArguments().peft_config is None, PeftArguments(use_peft=True, lora_r=4).peft_config.r
        (True, 4)
        >>> PeftArguments(use_peft=True, lora_target_modules=["q_proj"]).peft_config.target_modules
        {'q_proj'}
        >>> PeftArguments(use_peft=True, lora_target_modules=["all-linear"]).peft_config.target_modules
        'all-linear'
        """
        config = cast(Any, get_peft_config(ModelConfig(**vars(self))))
        if config is not None and isinstance(config.target_modules, str) and config.target_modules != "all-linear":
            # TRL takes a single name out of its list, and peft would read it as a pattern of whole module names.
            config.target_modules = {config.target_modules}
        return config


def parse(
    prog: str,
    dataclasses: Iterable[Any],
    argv: Sequence[str],
    defaults: Mapping[str, Any] | None = None,
    *,
    wanted: Iterable[Any] | None = None,
) -> tuple[Any, ...]:
    """Parse flags and `--config FILE.yaml` into instances of the dataclasses.

    Args:
        defaults: values of flags that neither the command line nor the file sets.
        wanted: those of the dataclasses that are made, and so checked, first; all of them by default. The flags of
            the others follow in a namespace.
    """
    epilog = "--config FILE.yaml sets any of these flags by name; flags on the command line take precedence."
    parser = TrlParser(dataclasses, prog=prog, epilog=epilog)
    parser.set_defaults_with_config(**(defaults or {}))
    if wanted is not None:
        parser.dataclass_types = list(wanted)
    return parser.parse_args_and_config(args=argv)


def load_splits(arguments: DataArguments, *needed: str) -> dict[str, Dataset]:
    """Return the train, validation and test rows that the dataset has, limited to the maximum numbers of samples.

    Args:
        needed: the splits that the command cannot do without.

    Raises:
        ValueError: for columns that are not of the form `name=column`, or a missing split of `needed`.
    """
    options: dict[str, Any] = {}
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


def check_place(model: str) -> None:
    """Raise ValueError for a model that is no folder and cannot be an id of the Hub either.

    >>> check_place("runs/model/checkpoint-7")
    Traceback (most recent call last):
    ...
    ValueError: model='runs/model/checkpoint-7': there is no such folder, and ids of the Hub have the form owner/name.
    """
    if not os.path.exists(model) and (model.count("/") > 1 or model[:1] in ("", ".", "/", "~")):
        raise ValueError(f"model={model!r}: there is no such folder, and ids of the Hub have the form owner/name.")


def load_model(arguments: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model of `--model` in its `--dtype`, on a GPU if there is one, and its tokenizer.

    Args:
        arguments: with the fields `model`, `dtype` and `trust_remote_code`.
    """
    check_place(arguments.model)
    options = {"trust_remote_code": arguments.trust_remote_code}
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=arguments.dtype, **options)
    with readable(f"The model {arguments.model!r}", "its tokenizer (tokenizer.json, tokenizer_config.json)"):
        tokenizer = AutoTokenizer.from_pretrained(arguments.model, **options)
    checksum = getattr(model.config, "tokenizer_checksum", None)
    if checksum is not None and checksum != tokenizer_checksum(tokenizer):
        logger.warning(
            f"The tokenizer of {arguments.model!r} is not the one that the model was trained with: its files "
            "(tokenizer.json, tokenizer_config.json, chat_template.jinja) were changed, damaged, or are another "
            "model's. If you did not change them, copy or download the checkpoint again."
        )
    model.to(cast(Any, "cuda" if torch.cuda.is_available() else "cpu"))
    return model, tokenizer


def resume_point(value: str | bool | None) -> str | bool | None:
    """Return the value of `--resume_from_checkpoint`: a folder, "true" (the last complete checkpoint) or "false".

    >>> resume_point("true"), resume_point("False"), resume_point("runs/model/checkpoint-10"), resume_point(None)
    (True, False, 'runs/model/checkpoint-10', None)
    """
    return {"true": True, "false": False}.get(str(value).lower(), value)
