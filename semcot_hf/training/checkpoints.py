"""Checkpoints of a run: their checksums, and the newest complete one, from which a run is resumed."""

import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..storage import name_path, write_json

logger = logging.get_logger(__name__)

# The checksums of a checkpoint's files, by their paths in it. It is written last.
CHECKSUMS_NAME = "checksums.json"
_BLOCK = 2**24
# Bytes that a full disk may still have free.
_FULL = 2**20
_NO_SPACE = os.strerror(errno.ENOSPC)


def last_complete_checkpoint(folder: str | os.PathLike) -> str | None:
    """Return the path of the newest complete checkpoint of a run; `None`, with a warning, if all are incomplete.

    `Trainer` writes its state after the model, so a checkpoint with a readable state is complete, unless a file that
    its checksums name is missing.

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
        return all(os.path.isfile(os.path.join(path, name)) for name in _checksums(path))
    except (OSError, ValueError):
        return False


def write_checksums(folder: str | os.PathLike) -> None:
    """Write the checksums of all files of a checkpoint, by which `check_checkpoint` notices damage."""
    root = Path(folder)
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != CHECKSUMS_NAME)
    write_json(root / CHECKSUMS_NAME, {path.relative_to(root).as_posix(): _checksum(path) for path in files})


def check_checkpoint(folder: str | os.PathLike) -> None:
    """Raise ValueError for a checkpoint whose files are not those that were saved; one without checksums passes."""
    for name, wanted in _checksums(folder).items():
        path = Path(folder) / name
        if not path.is_file() or _checksum(path) != wanted:
            state = "damaged, or another checkpoint's" if path.is_file() else "missing"
            raise ValueError(
                f"{path} is {state}: delete the folder {str(folder)!r} and resume from an earlier checkpoint, or copy "
                f"it again. To go on with it as it is, delete its {CHECKSUMS_NAME}."
            )


def _checksums(folder: str | os.PathLike) -> dict[str, str]:
    path = Path(folder) / CHECKSUMS_NAME
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it to go on without it.") from error
    return {str(name): str(value) for name, value in found.items()}


def _checksum(path: Path) -> str:
    """Return the CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


@contextmanager
def name_full_disk(folder: str | os.PathLike) -> Iterator[None]:
    """Raise an OSError that names a folder and says why in place of errors of writing that do not.

    Those of safetensors and tokenizers are no OSErrors, and those of `torch.save` do not say that the disk is full.

    Args:
        folder: an existing folder, in which the block writes.

    Raises:
        OSError: with `errno.ENOSPC` where the disk is full, else with `errno.EIO` or the block's own number.
    """
    try:
        with name_path(folder):
            yield
    except OSError:
        raise
    except Exception as error:
        if not _is_writing_error(error):
            raise
        full = _NO_SPACE in str(error) or shutil.disk_usage(folder).free < _FULL
        code = errno.ENOSPC if full else errno.EIO
        raise OSError(code, f"{os.strerror(code)}: a file could not be written ({error})", str(folder)) from error


def _is_writing_error(error: BaseException | None) -> bool:
    """Return whether an error, or the one it was raised for, is of a file that torch or code in Rust writes."""
    while error is not None:
        if _NO_SPACE in str(error):
            return True
        if isinstance(error, RuntimeError) and re.search(r"iostream error|inline_container\.cc", str(error)):
            return True
        error = error.__context__
    return False
