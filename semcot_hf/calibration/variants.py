"""Variants of a checkpoint with the same weights: other prompts, other numbers of candidates; compared and written."""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.evaluate import evaluate
from ..evaluation.predictions import read_predictions
from ..evaluation.summary import compare_runs
from ..inference.answering import Answerer
from ..inference.settings import AnswerSettings
from ..modeling.checksums_semcot import tokenizer_checksum
from ..modeling.configuration_semcot import SemCoTConfig, file_checksum
from ..modeling.folders_semcot import ReplacedFolder
from ..options import check_range, option
from ..storage import text_digest, write_atomically
from .calibrate import check_checkpoint

# What differs in the configs of variants.
_CHANGED = (
    "answer_prompt_ids",
    "few_shot_ids",
    "num_candidates",
    "candidate_host_weight",
    "tokenizer_checksum",
    "escalation",
)
# Changes a config in place, and returns the tokenizer that belongs to it.
Change = Callable[[SemCoTConfig, PreTrainedTokenizerBase], PreTrainedTokenizerBase]


@dataclass(kw_only=True)
class VariantConfig:
    """How the variants of a checkpoint are compared."""

    output_dir: str | None = option(
        None, "Folder of the answers, from which an interrupted comparison continues; by default they are not kept."
    )
    answer_type: str | None = option(
        None, "numeric, choice, yes_no, sequence or expression; by default inferred from the answers."
    )
    overwrite: bool = option(False, "Discard another run's answers in output_dir.")
    batch_size: int = option(64, "Questions answered at once.")
    max_new_tokens: int = option(24, "Most tokens of one answer.")
    seed: int = option(0, "Seed of the bootstrap intervals.")

    def __post_init__(self) -> None:
        check_range(self, "[1, inf)", "batch_size", "max_new_tokens")


@dataclass(frozen=True)
class Compared:
    """What one variant of a model is worth.

    Args:
        rows: rows of the report of `evaluate`, by method.
        difference: to the first variant, with implicit tokens, as `compare_runs` gives it; `None` for that itself.
        seconds: mean time of an answer with implicit tokens, that of its batch divided by the batch's questions.
    """

    rows: dict[str, dict[str, Any]]
    difference: dict[str, Any] | None
    seconds: float


def compare_variants(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Iterable[Mapping[str, Any]],
    changes: Mapping[str, Change],
    config: VariantConfig,
    *,
    methods: Sequence[str] = ("semcot",),
    further: Mapping[str, Sequence[str]] | None = None,
    progress: bool | Callable[[str, float], object] = True,
) -> dict[str, Compared]:
    """Answer questions by each variant of a SemCoT model, which is as before afterwards.

    Args:
        model, tokenizer: the model and its tokenizer.
        dataset: rows with `query` and `answer`.
        changes: by a text that tells the variants apart, what makes them; the first one is the model as it is.
        config: see `VariantConfig`.
        methods: of `evaluate`, "semcot" among them.
        further: more of them for some variants, where the others do not change their answers.
        progress: see `progress_bar`'s `show`.

    Raises:
        ValueError: as the changes, or for a variant whose prompts leave no room in the context; no question is
            answered then.
    """
    rows, settings = list(dataset), cast(Any, model.config)
    before = {name: getattr(settings, name) for name in _CHANGED}
    with tempfile.TemporaryDirectory() as temporary:
        try:
            # All are made before the first question is answered, each from the model as it was.
            made = []
            for name, change in changes.items():
                settings.update(before)
                changed = change(settings, tokenizer)
                answering = AnswerSettings(method="semcot", max_new_tokens=config.max_new_tokens)
                _check_context(name, Answerer(model, changed, answering), rows)
                made.append((changed, {name: getattr(settings, name) for name in _CHANGED}))
            folders = [Path(config.output_dir or temporary, text_digest([name])[:16]) for name in changes]
            found = {}
            for name, (changed, values), folder in zip(changes, made, folders, strict=True):
                settings.update(values)
                report = evaluate(
                    model,
                    changed,
                    rows,
                    output_dir=str(folder),
                    methods=[*methods, *(further or {}).get(name, ())],
                    controls=False,
                    answer_type=config.answer_type,
                    overwrite=config.overwrite,
                    batch_size=config.batch_size,
                    max_new_tokens=config.max_new_tokens,
                    seed=config.seed,
                    latency_samples=0,
                    progress=progress,
                )
                compared = {row["method"]: row for row in compare_runs(folder, folders[0], seed=config.seed)}
                difference = None if folder == folders[0] else compared["semcot"]
                answers = read_predictions(folder / "predictions-semcot.jsonl")
                seconds = sum(answer["seconds"] for answer in answers) / len(answers)
                found[name] = Compared({row["method"]: row for row in report["rows"]}, difference, seconds)
        finally:
            settings.update(before)
    return found


def _check_context(name: str, answerer: Answerer, rows: Sequence[Mapping[str, Any]]) -> None:
    prompts = answerer.prompts(row["query"] for row in rows)
    problem = next(filter(None, map(answerer.context_problem, prompts)), None)
    if problem is not None:
        raise ValueError(f"{name}: {problem}. Leave this out, or choose shorter examples or questions.")


def write_variant(folder: str | Path, change: Change, *, trust_remote_code: bool = False) -> None:
    """Change a checkpoint in place: its config and tokenizer, not its weights.

    Where the new files cannot be written, the old ones stay.

    Args:
        folder: the checkpoint.
        change: what is changed.
        trust_remote_code: whether code of the tokenizer's own is run.

    Raises:
        ValueError: as `check_checkpoint` and the change, or when the tokenizer is not the one that the model was
            trained with; nothing is changed then.
    """
    path = check_checkpoint(folder)
    content = json.loads(path.read_text(encoding="utf-8"))
    config = SemCoTConfig.from_pretrained(str(folder))
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        str(folder), trust_remote_code=trust_remote_code
    )
    if config.tokenizer_checksum not in (None, tokenizer_checksum(tokenizer)):
        raise ValueError(
            f"The tokenizer of {str(folder)!r} is not the one that the model was trained with: its files were changed "
            "or damaged, or are another model's. Copy or download the checkpoint again."
        )
    tokenizer = change(config, tokenizer)
    changed = {name: getattr(config, name) for name in _CHANGED}
    content |= {name: value for name, value in changed.items() if name in content or value is not None}
    if "config_checksum" in content:
        content["config_checksum"] = file_checksum(content)
    with ReplacedFolder(folder) as new:
        tokenizer.save_pretrained(new.path)
        write_atomically(Path(new.path, "config.json"), json.dumps(content, indent=2, sort_keys=True) + "\n")
