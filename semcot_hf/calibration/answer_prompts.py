"""`compare_answer_prompts`: answers after several answer prompts, and the best of these for a checkpoint."""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.evaluate import evaluate
from ..evaluation.summary import compare_runs
from ..inference.settings import answer_prompt_of, with_overrides
from ..inference.templates import change_answer_prompt
from ..modeling.checksums_semcot import tokenizer_checksum
from ..modeling.configuration_semcot import SemCoTConfig, file_checksum
from ..modeling.folders_semcot import ReplacedFolder
from ..options import check_range, option
from ..storage import text_digest, write_atomically
from .calibrate import check_checkpoint

# What `change_answer_prompt` changes in a config.
_CHANGED = ("answer_prompt_ids", "few_shot_ids", "tokenizer_checksum", "escalation")


@dataclass
class AnswerPromptConfig:
    """The answer prompts that are compared, and how."""

    answer_prompts: list[str] = option([], "Texts to try before an answer; the model's own is always tried.")
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
        if isinstance(self.answer_prompts, str) or not self.answer_prompts or not all(self.answer_prompts):
            raise ValueError(
                f"answer_prompts={self.answer_prompts!r}: give a list of one or more texts, such as 'The answer is:'."
            )


@dataclass(frozen=True)
class AnswerPromptResult:
    """What a model is worth after one answer prompt.

    Args:
        answer_prompt: the text.
        own: whether it is the model's own.
        semcot, no_cot: rows of the report of `evaluate`, with `accuracy` and `ci95`; fractions.
        difference: to the model's own prompt, with implicit tokens, as `compare_runs` gives it; `None` for its own.
    """

    answer_prompt: str
    own: bool
    semcot: dict[str, Any]
    no_cot: dict[str, Any]
    difference: dict[str, Any] | None


def compare_answer_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Iterable[Mapping[str, Any]],
    config: AnswerPromptConfig | None = None,
    *,
    progress: bool | Callable[[str, float], object] = True,
    **overrides: Any,
) -> list[AnswerPromptResult]:
    """Answer questions with implicit tokens and at once after each answer prompt.

    A generator that learned its words without the host does not depend on the answer prompt, and a frozen host was
    never taught to answer after these words: the text between them decides much. The model is as before afterwards;
    `write_answer_prompt` puts a prompt into a checkpoint.

    Args:
        model: a SemCoT model.
        tokenizer: its tokenizer.
        dataset: rows with `query` and `answer` that the model was not trained on, and that its accuracy is not
            reported on.
        config: see `AnswerPromptConfig`.
        progress: see `progress_bar`'s `show`.
        overrides: fields of the config, such as `answer_prompts`.

    Returns:
        One result for each prompt, the best first: by right answers with implicit tokens; among equals the model's
        own, then in the order given.

    Raises:
        TypeError: for an override that is not a field.
        ValueError: for a model that is not a SemCoT model, or a text that the tokenizer joins with the question; no
            question is answered then.
    """
    config = with_overrides(config, overrides) if config else AnswerPromptConfig(**overrides)
    if not hasattr(model.config, "tokenizer_checksum"):
        raise ValueError(
            f"a model of type {model.config.model_type!r} has no implicit tokens, after which the answer prompt "
            "stands: pass a SemCoT checkpoint."
        )
    rows, own = list(dataset), answer_prompt_of(model.config, tokenizer)
    prompts = list(dict.fromkeys([own, *config.answer_prompts]))
    settings: Any = model.config
    before = {name: getattr(settings, name) for name in _CHANGED}
    with tempfile.TemporaryDirectory() as temporary:
        try:
            # All are checked before the first question is answered, each on the model as it was.
            made = []
            for prompt in prompts:
                settings.update(before)
                changed = change_answer_prompt(settings, tokenizer, prompt)
                made.append((prompt, changed, {name: getattr(settings, name) for name in _CHANGED}))
            folders = [Path(config.output_dir or temporary, text_digest([prompt])[:16]) for prompt in prompts]
            found = []
            for (prompt, changed, values), folder in zip(made, folders, strict=True):
                settings.update(values)
                report = evaluate(
                    model,
                    changed,
                    rows,
                    output_dir=str(folder),
                    methods=["no_cot", "semcot"],
                    controls=False,
                    answer_type=config.answer_type,
                    overwrite=config.overwrite,
                    batch_size=config.batch_size,
                    max_new_tokens=config.max_new_tokens,
                    seed=config.seed,
                    latency_samples=0,
                    progress=progress,
                )
                row = {row["method"]: row for row in report["rows"]}
                compared = {row["method"]: row for row in compare_runs(folder, folders[0], seed=config.seed)}
                difference = None if prompt == own else compared["semcot"]
                found.append(AnswerPromptResult(prompt, prompt == own, row["semcot"], row["no_cot"], difference))
        finally:
            settings.update(before)
    return sorted(found, key=lambda result: -result.semcot["accuracy"])


def write_answer_prompt(folder: str | Path, answer_prompt: str, *, trust_remote_code: bool = False) -> None:
    """Change the answer prompt of a checkpoint in place: its config and tokenizer, not its weights.

    Where the new files cannot be written, the old ones stay.

    Args:
        folder: the checkpoint.
        answer_prompt: see `change_answer_prompt`.
        trust_remote_code: whether code of the tokenizer's own is run.

    Raises:
        ValueError: as `check_checkpoint` and `change_answer_prompt`, or when the tokenizer is not the one that the
            model was trained with; nothing is changed then.
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
    tokenizer = change_answer_prompt(config, tokenizer, answer_prompt)
    changed = {name: getattr(config, name) for name in _CHANGED}
    content |= {name: value for name, value in changed.items() if name in content or value is not None}
    if "config_checksum" in content:
        content["config_checksum"] = file_checksum(content)
    with ReplacedFolder(folder) as new:
        tokenizer.save_pretrained(new.path)
        write_atomically(Path(new.path, "config.json"), json.dumps(content, indent=2, sort_keys=True) + "\n")
