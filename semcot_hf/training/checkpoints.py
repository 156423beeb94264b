"""The last complete checkpoint of a run: one that was cut off while it was written is passed over."""

import json
import os
import re

from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

logger = logging.get_logger(__name__)


def last_complete_checkpoint(folder):
    """The newest checkpoint of a run whose writing was not cut off.

    The trainer's state is written behind all else of all processes: a checkpoint that has it whole is complete.

    Returns:
        Its path; `None` where there are only unfinished ones, which is said.

    Raises:
        ValueError: when `folder` has no checkpoint at all.
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    steps = [int(name[11:]) for name in names if re.fullmatch(r"checkpoint-\d+", name)]
    if not steps:
        raise ValueError(
            f"resume_from_checkpoint=True, but output_dir={folder!r} has no checkpoint: leave it out to start anew."
        )
    for step in sorted(steps, reverse=True):
        path = os.path.join(folder, f"checkpoint-{step}")
        if _is_complete(path):
            return path
        logger.warning(f"{path} was cut off while it was written, and is passed over.")
    return None


def _is_complete(path):
    try:
        with open(os.path.join(path, TRAINER_STATE_NAME)) as file:
            json.load(file)
    except (OSError, ValueError):
        return False
    return True
