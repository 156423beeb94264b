"""`compare_candidates`: answers with several numbers of candidate thoughts, and the best of these for a checkpoint."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..inference.settings import thinks_in_words, with_overrides
from ..modeling.configuration_semcot import SemCoTConfig
from ..options import option
from .variants import Change, VariantConfig, compare_variants, write_variant


@dataclass
class CandidatesConfig(VariantConfig):
    """The numbers of candidates and weights of the host that are compared, and how."""

    num_candidates: list[int] = option([1, 8], "Numbers of thoughts to choose among; the model's own is always tried.")
    host_weights: list[float] = option(
        [0.0, 0.5, 1.0], "Weights of the host in the choice; with 0 the generator chooses alone."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("num_candidates", 1), ("host_weights", 0)):
            values = getattr(self, name)
            if isinstance(values, int | float) or not values or any(value < least for value in values):
                raise ValueError(f"{name}={values!r}: give a list of one or more numbers from {least} on.")


class Candidates(NamedTuple):
    """How a thought is chosen: `num_candidates` and `candidate_host_weight` of `SemCoTConfig`."""

    number: int
    host_weight: float


@dataclass(frozen=True)
class CandidatesResult:
    """What a model is worth with one number of candidates and one weight.

    Args:
        candidates: number and weight.
        own: whether they are the model's own.
        semcot: row of the report of `evaluate`, with `accuracy` and `ci95`; fractions.
        seconds: mean time of an answer, that of its batch divided by the batch's questions.
        generator: that of the generator alone, after the most probable of as many thoughts.
        difference: to the model's own, with implicit tokens, as `compare_runs` gives it; `None` for its own.
    """

    candidates: Candidates
    own: bool
    semcot: dict[str, Any]
    seconds: float
    generator: dict[str, Any]
    difference: dict[str, Any] | None


def change_candidates(
    config: SemCoTConfig, tokenizer: PreTrainedTokenizerBase, candidates: Candidates
) -> PreTrainedTokenizerBase:
    """Have a model choose among other numbers of thoughts; a rule of escalation for others is removed."""
    config.num_candidates, config.candidate_host_weight, config.escalation = *candidates, None
    config.check_candidates()
    return tokenizer


def compare_candidates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Iterable[Mapping[str, Any]],
    config: CandidatesConfig | None = None,
    *,
    progress: bool | Callable[[str, float], object] = True,
    **overrides: Any,
) -> list[CandidatesResult]:
    """Answer questions with each number of candidates and weight, and by the generator alone with each number.

    The model is as before afterwards; `write_candidates` puts a number and a weight into a checkpoint.

    Args:
        model: a SemCoT model whose tokens are words.
        tokenizer: its tokenizer.
        dataset: rows with `query` and `answer` that the model was not trained on, and that its accuracy is not
            reported on.
        config: see `CandidatesConfig`.
        progress: see `progress_bar`'s `show`.
        overrides: fields of the config, such as `num_candidates`.

    Returns:
        One result for each pair, the best first: by right answers; among equals the model's own, then the smaller
        number. One thought is tried once, since there is nothing to choose.

    Raises:
        TypeError: for an override that is not a field.
        ValueError: for a model without words; no question is answered then.
    """
    config = with_overrides(config, overrides) if config else CandidatesConfig(**overrides)
    if not thinks_in_words(model):
        raise ValueError(
            f"a model of type {model.config.model_type!r} without words has no thoughts that could be candidates: "
            "pass a SemCoT checkpoint of the recipe 'words'."
        )
    settings = cast(Any, model.config)
    own = Candidates(settings.num_candidates, float(settings.candidate_host_weight))
    tried = {
        Candidates(number, own.host_weight if number == 1 else float(weight))
        for number in config.num_candidates
        for weight in config.host_weights
    }
    named = {str(tuple(one)): one for one in (own, *sorted(tried - {own}))}
    changes: dict[str, Change] = {name: partial(change_candidates, candidates=one) for name, one in named.items()}
    # The generator alone chooses by its own probabilities.
    firsts: dict[int, str] = {}
    for name, one in named.items():
        firsts.setdefault(one.number, name)
    further = {name: ["generator"] for name in firsts.values()}
    compared = compare_variants(model, tokenizer, dataset, changes, config, further=further, progress=progress)
    found = [
        CandidatesResult(
            named[name],
            named[name] == own,
            one.rows["semcot"],
            one.seconds,
            compared[firsts[named[name].number]].rows["generator"],
            one.difference,
        )
        for name, one in compared.items()
    ]
    return sorted(found, key=lambda result: -result.semcot["accuracy"])


def write_candidates(folder: str | Path, candidates: Candidates, *, trust_remote_code: bool = False) -> None:
    """Change the number of candidates and the host's weight of a checkpoint in place; see `write_variant`.

    Args:
        folder: the checkpoint.
        candidates: number and weight.
        trust_remote_code: whether code of the tokenizer's own is run.

    Raises:
        ValueError: as `write_variant`, or for a number or weight out of range; nothing is changed then.
    """
    write_variant(folder, partial(change_candidates, candidates=candidates), trust_remote_code=trust_remote_code)
