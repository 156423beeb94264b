"""What the commands share that choose among variants of a checkpoint on validation questions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from ..options import option


@dataclass(kw_only=True)
class ChoiceArguments:
    """Which checkpoint gets the best variant, and on what questions it is chosen."""

    model: str = field(metadata={"help": "Folder of a SemCoT checkpoint, which gets the best variant."})
    split: str = option("validation", "Split of the dataset whose questions decide.")
    dry_run: bool = option(False, "Print the comparison and leave the checkpoint as it is.")
    dtype: str = option("auto", "Data type of the weights.")
    trust_remote_code: bool = option(False, "Run code that comes with the model.")


def write_best(
    args: Any, model: PreTrainedModel, own: bool, best: str, written: str, write: Callable[[], None]
) -> bool:
    """Write the best variant into the checkpoint unless it is the own one, and print what to know about the choice.

    Args:
        args: with the fields of `ChoiceArguments`.
        model: the checkpoint's model.
        own: whether the best variant is that of the checkpoint.
        best: says so of the own one, for "...: nothing was written."
        written: says so of another one, for "... FOLDER."
        write: writes it.

    Returns:
        Whether it was written.
    """
    print("On new questions the best of several is worth a little less than here.")
    if args.split == "test":
        print("This was the test split: accuracy on it is no longer that on new questions.")
    if own:
        print(f"{best}: nothing was written.")
    elif args.dry_run:
        print("Nothing was written (--dry_run).")
    else:
        calibrated = getattr(model.config, "escalation", None) is not None
        write()
        print(f"{written} {args.model}.")
        if calibrated:
            print("The rule of escalation was removed, since it was calibrated on other answers: calibrate again.")
        return True
    return False
