"""The methods of the bench: name, title and training function of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .methods import semcot
from .methods.coconut import train_coconut, train_staged_pause
from .methods.codi import train_codi
from .methods.finetuning import train_condensed, train_cot, train_no_cot
from .methods.icot import train_icot
from .methods.lrt import train_lrt
from .methods.pause import train_pause, train_prompt_tuning
from .methods.queries import train_more_queries, train_proposer
from .methods.simcot import train_simcot_coconut, train_simcot_codi
from .methods.softcot import train_softcot
from .methods.training import Trained, TrainingSetup


@dataclass(frozen=True)
class Method:
    """A method of the bench.

    Args:
        title: its name in reports.
        train: trains a model from a `TrainingSetup`.
        frozen_host: whether the host's weights stay unchanged.
        peer: whether it is a published method that, like SemCoT, answers without reasoning in words.
    """

    title: str
    train: Callable[[TrainingSetup], Trained]
    frozen_host: bool = False
    peer: bool = False


SOFT_WORDS, UNTRAINED = "semcot_soft_words", "semcot_untrained"
BENCH_METHODS = {
    "no_cot": Method("no CoT (fine-tuned)", train_no_cot),
    "cot": Method("explicit CoT (fine-tuned)", train_cot),
    "condensed": Method("condensed CoT (fine-tuned)", train_condensed),
    "pause": Method("Pause", train_pause, peer=True),
    "pause_staged": Method("Pause on Coconut's curriculum", train_staged_pause, peer=True),
    "icot": Method("ICoT-SI", train_icot, peer=True),
    "coconut": Method("Coconut", train_coconut, peer=True),
    "codi": Method("CODI", train_codi, peer=True),
    "prompt_tuning": Method("Prompt tuning", train_prompt_tuning, frozen_host=True, peer=True),
    "softcot": Method("SoftCoT", train_softcot, frozen_host=True),
    "lrt": Method("Latent Recurrent Thoughts", train_lrt, frozen_host=True, peer=True),
    "simcot_coconut": Method("SIM-CoT on Coconut", train_simcot_coconut, peer=True),
    "simcot_codi": Method("SIM-CoT on CODI", train_simcot_codi, peer=True),
    "semcot": Method("SemCoT (paper)", semcot.train_semcot, frozen_host=True),
    "semcot_no_encoder": Method("SemCoT without encoder", semcot.train_without_encoder, frozen_host=True),
    "semcot_no_alignment": Method("SemCoT without alignment loss", semcot.train_without_alignment, frozen_host=True),
    "semcot_no_warmup": Method("SemCoT without warm-up", semcot.train_without_warmup, frozen_host=True),
    "semcot_host_generator": Method(
        "SemCoT, host + LoRA as generator", semcot.train_host_as_generator, frozen_host=True
    ),
    "semcot_more_queries": Method("SemCoT, 4 of 32 trained tokens kept", train_more_queries, frozen_host=True),
    "semcot_proposer": Method(
        "SemCoT, 4 of 32 kept, new layers on the host's words", train_proposer, frozen_host=True
    ),
    UNTRAINED: Method("SemCoT (soft words), untrained pair", semcot.leave_untrained, frozen_host=True),
    SOFT_WORDS: Method("SemCoT (soft words)", semcot.train_soft_words, frozen_host=True),
}
# Further rows of the runs of SemCoT (soft words), by the method of `AnswerSettings` that gives them.
PARTS = {
    "no_cot": "no CoT (untouched host)",
    "semcot_hard": "SemCoT (hard words)",
    "words": "the same words as text, read by the host",
    "generator": "generator alone (its words, then its own answer)",
    "generator_no_cot": "generator alone, at once",
}


def chosen(names: Sequence[str]) -> list[str]:
    """Return the named methods in the catalogue's order; "all" selects all of them.

    Raises:
        ValueError: for an unknown name.

    >>> chosen(["cot", "no_cot"])
    ['no_cot', 'cot']
    """
    unknown = [name for name in names if name not in (*BENCH_METHODS, "all")]
    if unknown:
        raise ValueError(f"methods={unknown}: choose among {', '.join(BENCH_METHODS)}, or all.")
    return [name for name in BENCH_METHODS if name in names or "all" in names]
