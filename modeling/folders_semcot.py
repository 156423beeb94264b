"""Folders whose files are replaced together: what a loader finds is the old model, the new one, or refused."""

import os
import re
import shutil
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TypeVar

UNFINISHED = ".unfinished"
_Self = TypeVar("_Self", bound="ReplacedFolder")


class ReplacedFolder:
    """A new folder inside `folder`, whose files move into it when the block ends without an error.

    A model that was saved there before stays whole if the disk is full, files behind links are not written to, and
    config.json moves last: until then the old one does not fit the new weights, which loading notices.

    Args:
        folder: the folder, created if it is missing.
        variant: the variant that weights are saved as; older weights of other variants are kept.

    Attributes:
        path: the new folder, inside the block.
    """

    def __init__(self, folder: str | PathLike, variant: str | None = None) -> None:
        self.target, self._variant, self._made = Path(folder), variant, False
        self.path = str(self.target / UNFINISHED)

    def __enter__(self: _Self) -> _Self:
        self._made = not self.target.exists()
        # What a killed process left.
        shutil.rmtree(self.path, ignore_errors=True)
        Path(self.path).mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.publish()
        finally:
            shutil.rmtree(self.path, ignore_errors=True)
            if self._made and kind is not None and not any(self.target.iterdir()):
                self.target.rmdir()

    def publish(self) -> None:
        """Move the files that were written so far, and remove weights of an older model in files of other names."""
        made = Path(self.path)
        names = [path.relative_to(made) for path in made.rglob("*") if path.is_file()]
        for name in sorted(names, key=lambda name: (str(name) == "config.json", name)):
            (self.target / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).replace(self.target / name)
        kind = f"\\.{re.escape(self._variant)}" if self._variant else ""
        weights = rf"model{kind}(-\d{{5}}-of-\d{{5}})?\.safetensors|model\.safetensors\.index{kind}\.json"
        if any(re.fullmatch(weights, str(name)) for name in names):
            for old in self.target.glob("model*"):
                # A loader could prefer them.
                if re.fullmatch(weights, old.name) and old.relative_to(self.target) not in names:
                    old.unlink()
        shutil.rmtree(made, ignore_errors=True)


def is_folder(name: str | PathLike | None) -> bool:
    """Return whether a model's name is a path on this machine, rather than a Hub id."""
    text = str(name or "")
    return bool(text) and (os.path.isabs(text) or text[0] in ".~" or text.count("/") > 1 or os.path.isdir(text))
