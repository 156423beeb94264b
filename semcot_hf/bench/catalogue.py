"""The methods of the bench by name: what each is called, and what trains it."""

from collections.abc import Callable
from dataclasses import dataclass

from .methods.coconut import train_coconut
from .methods.codi import train_codi
from .methods.finetuning import train_cot, train_no_cot
from .methods.icot import train_icot
from .methods.pause import train_pause
from .methods.semcot import (
    train_host_as_generator,
    train_semcot,
    train_semcot_soft_words,
    train_without_alignment,
    train_without_encoder,
    train_without_warmup,
)
from .methods.simcot import train_simcot_coconut, train_simcot_codi
from .methods.softcot import train_softcot
from .methods.training import Trained, TrainingSetup


@dataclass(frozen=True)
class Method:
    """A method of the bench.

    Args:
        title: what reports call it.
        train: makes the trained model of a `TrainingSetup`.
        frozen_host: whether the host's weights stay as they were.
        peer: whether it is a method of others that answers without reasoning in words, as SemCoT does.
    """

    title: str
    train: Callable[[TrainingSetup], Trained]
    frozen_host: bool = False
    peer: bool = False


BENCH_METHODS = {
    "no_cot": Method("no CoT (fine-tuned)", train_no_cot),
    "cot": Method("explicit CoT (fine-tuned)", train_cot),
    "pause": Method("Pause", train_pause, peer=True),
    "icot": Method("ICoT-SI", train_icot, peer=True),
    "coconut": Method("Coconut", train_coconut, peer=True),
    "codi": Method("CODI", train_codi, peer=True),
    "softcot": Method("SoftCoT", train_softcot, frozen_host=True),
    "simcot_coconut": Method("SIM-CoT on Coconut", train_simcot_coconut, peer=True),
    "simcot_codi": Method("SIM-CoT on CODI", train_simcot_codi, peer=True),
    "semcot": Method("SemCoT (paper)", train_semcot, frozen_host=True),
    "semcot_no_encoder": Method("SemCoT without encoder", train_without_encoder, frozen_host=True),
    "semcot_no_alignment": Method("SemCoT without alignment loss", train_without_alignment, frozen_host=True),
    "semcot_no_warmup": Method("SemCoT without warm-up", train_without_warmup, frozen_host=True),
    "semcot_host_generator": Method("SemCoT, host + LoRA as generator", train_host_as_generator, frozen_host=True),
    "semcot_soft_words": Method("SemCoT (soft words)", train_semcot_soft_words, frozen_host=True),
}


def chosen(names) -> list[str]:
    """The methods named, in the catalogue's order; "all" is all of them.

    Raises:
        ValueError: for a name that is none.

    >>> chosen(["cot", "no_cot"])
    ['no_cot', 'cot']
    """
    if "all" in names:
        return list(BENCH_METHODS)
    unknown = [name for name in names if name not in BENCH_METHODS]
    if unknown:
        raise ValueError(f"methods={unknown}: choose among {', '.join(BENCH_METHODS)}, or all.")
    return [name for name in BENCH_METHODS if name in names]
