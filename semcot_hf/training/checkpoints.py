"""Find the checkpoint to resume from: the newest one that was written completely."""

import json
import os
import re

from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

logger = logging.get_logger(__name__)


def last_complete_checkpoint(folder: str | os.PathLike) -> str | None:
    """Return the path of the newest complete checkpoint of a run; `None`, with a warning, if all are incomplete.

    `Trainer` writes its state last, so a checkpoint with a readable state is complete.

    Raises:
        ValueError: when `folder` has no checkpoint at all.
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    steps = [int(name[11:]) for name in names if re.fullmatch(r"checkpoint-\d+", name)]
    if not steps:
        raise ValueError(
            f"resume_from_checkpoint=True, but output_dir={str(folder)!r} has no checkpoint: leave it out to start "
            "a new run."
        )
    for step in sorted(steps, reverse=True):
        path = os.path.join(folder, f"checkpoint-{step}")
        if _is_complete(path):
            return path
        logger.warning(f"{path} is incomplete (its writing was interrupted): skipped.")
    return None


def _is_complete(path: str) -> bool:
    try:
        with open(os.path.join(path, TRAINER_STATE_NAME)) as file:
            json.load(file)
    except (OSError, ValueError):
        return False
    return True
