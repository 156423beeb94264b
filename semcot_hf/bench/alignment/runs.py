"""One run of the sweep of stage 1: train an encoder, or leave it untrained, and judge it by retrieval."""

import gc
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from ...alignment.config import SemCoTAlignmentConfig
from ...alignment.data import PAIR_COLUMNS
from ...alignment.encoder import takes_hidden_states
from ...alignment.state_cache import StoredStatesEncoder
from ...alignment.trainer import PairRetrievalEvaluator, SemCoTAlignmentTrainer
from ...evaluation.environment import environment
from ...storage import as_json, text_digest, weights_digest
from .settings import Point

if TYPE_CHECKING:
    from peft import PeftConfig

# Settings that change neither the encoder nor its judgement.
_BOOKKEEPING = ("output_dir", "run_name", "report_to", "disable_tqdm", "state_cache_gb", "cache_head_features")
_BOOKKEEPING_STARTS = ("logging_", "log_", "save_", "eval_", "hub_", "push_to_hub", "dataloader_")


@dataclass
class SweepInputs:
    """What all runs of a sweep share.

    Args:
        host, tokenizer: the host and its tokenizer.
        train, validation: pairs with `PAIR_COLUMNS`.
        centre: the configuration around which is swept.
        peft_config: returns new adapters, or `None` for whole layers.
        work: folder of a run's own files, which nothing else uses.
    """

    host: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    validation: Dataset
    centre: SemCoTAlignmentConfig
    peft_config: "Callable[[], PeftConfig | None]"
    work: Path

    def __post_init__(self) -> None:
        self._shared = {
            "host_weights": weights_digest(self.host),
            **{
                name: {"pairs": len(pairs), "digest": text_digest([list(pairs[column]) for column in PAIR_COLUMNS])}
                for name, pairs in (("train", self.train), ("validation", self.validation))
            },
        }

    def config_of(self, point: Point) -> dict[str, Any]:
        """Return everything that determines the result of a run, as JSON."""
        peft = self.peft_config()
        adapters = {} if peft is None else {"adapters": _adapters(peft)}
        settings = determining(point.config(self.centre, str(self.work)))
        return {"trained": point.trained, **settings, **adapters, **self._shared}


def determining(args: SemCoTAlignmentConfig) -> dict[str, Any]:
    """Return the settings that determine an encoder: those of stage 1, and others that are not at their defaults."""
    values, defaults = (each.to_dict() for each in (args, SemCoTAlignmentConfig("x")))
    own = set(SemCoTAlignmentConfig.__annotations__)
    names = [
        name
        for name, value in values.items()
        if name not in _BOOKKEEPING and not name.startswith(_BOOKKEEPING_STARTS)
        if name in own or value != defaults.get(name)
    ]
    return json.loads(json.dumps({name: values[name] for name in sorted(names)}, default=str))


def key_of(config: Mapping[str, Any]) -> str:
    """Return a short hash of a run's configuration, as `SweepInputs.config_of` returns it."""
    return text_digest([json.dumps(as_json(dict(config)), sort_keys=True)])


def run_point(point: Point, inputs: SweepInputs, keep: Callable[[SemCoTAlignmentTrainer, dict], object]) -> dict:
    """Train the encoder of a run and return its record.

    Args:
        point: the run.
        inputs: what it shares with others.
        keep: called with the trainer and the record, to save the encoder.

    Returns:
        `config`; `seconds` of the training; `steps`; `losses`, [step, loss] as logged; `evaluations`, what
        `eval_strategy` asked for; `retrieval`, the metrics of `PairRetrievalEvaluator`; `ranks` of the right text for
        each validation pair, by the reasoning and by the condensed reasoning; `environment`.
    """
    args = point.config(inputs.centre, str(inputs.work))
    trainer = SemCoTAlignmentTrainer(
        model=inputs.host,
        args=args,
        train_dataset=inputs.train,
        eval_dataset=inputs.validation,
        processing_class=inputs.tokenizer,
        peft_config=inputs.peft_config(),
    )
    trainer.remove_callback(PrinterCallback)
    start = time.monotonic()
    if point.trained:
        trainer.train()
    seconds, history = time.monotonic() - start, trainer.state.log_history
    ranks = ranks_of(trainer, inputs.validation)
    record = {
        "config": inputs.config_of(point),
        "seconds": round(seconds, 1),
        "steps": trainer.state.global_step,
        "losses": [[entry["step"], round(entry["loss"], 4)] for entry in history if "loss" in entry],
        "evaluations": [entry for entry in history if "eval_mrr" in entry],
        "retrieval": {name: round(value, 4) for name, value in ranks["metrics"].items()},
        "ranks": ranks["pairs"],
        "environment": environment(trainer.model.device),
    }
    keep(trainer, record)
    del trainer
    # The optimizer and the copies of the layers hold each other.
    gc.collect()
    return record


def ranks_of(trainer: SemCoTAlignmentTrainer, pairs: Dataset) -> dict[str, Any]:
    """Return the retrieval metrics of a trainer's encoder, and the ranks for each pair in both directions."""
    evaluator = PairRetrievalEvaluator(pairs, trainer.args.eval_batch_size)
    encoder: Any = trainer.model
    with trainer.accelerator.autocast():
        if takes_hidden_states(encoder) and trainer.args.state_cache_gb > 0:
            texts: Iterable[str] = [text for column in evaluator.texts for text in column]
            budget = trainer.args.state_cache_gb * 2**30
            encoder = StoredStatesEncoder(encoder, texts, trainer.args.eval_batch_size, budget)
        forth, back = evaluator.ranks(encoder)
    listed = [ranks[columns].tolist() for ranks, columns in zip((forth, back), evaluator.columns, strict=True)]
    return {"metrics": evaluator.metrics(forth, back), "pairs": listed}


def _adapters(peft: "PeftConfig") -> dict[str, Any]:
    return json.loads(json.dumps(peft.to_dict(), default=lambda value: sorted(map(str, value))))
