"""Folders that models are saved in: files are replaced together, and never those of a model that is still needed."""

import filecmp
import os
import re
import shutil
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TypeVar

UNFINISHED = ".unfinished"
# Where a checkpoint has its tokenizers, if host and generator do not share one.
TOKENIZERS = ("host_tokenizer", "generator_tokenizer")
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


def copy_code(source: str | PathLike, target: str | PathLike) -> str | None:
    """Copy files of Python code, where no file of the target is replaced by another.

    Args:
        source: the folder that holds the files.
        target: the folder, which exists.

    Returns:
        The name of a file that is another one in `target`; `None` if all could be copied.
    """
    for code in sorted(Path(source).glob("*.py")):
        beside = Path(target, code.name)
        if beside.exists() and not filecmp.cmp(code, beside, shallow=False):
            return code.name
        shutil.copyfile(code, beside)
    return None


def is_folder(name: str | PathLike | None) -> bool:
    """Return whether a model's name is a path on this machine, rather than a Hub id."""
    text = str(name or "")
    return bool(text) and (os.path.isabs(text) or text[0] in ".~" or text.count("/") > 1 or os.path.isdir(text))


def check_target(
    target: str | PathLike, sources: Iterable[tuple[str, str | PathLike | None]], argument: str = "save_directory"
) -> None:
    """Raise ValueError if saving to `target` would overwrite a model that the checkpoint needs, or was made of.

    Args:
        target: the folder that is to be written.
        sources: (role, id or path) of such models. An id counts as the relative path of this name, too, since
            transformers would find the new folder under it.
        argument: name of the argument that gave `target`.
    """
    sources = list(sources)
    if re.fullmatch(r"checkpoint-\d+", os.path.basename(os.path.abspath(target))):
        # A trainer's, which deletes older ones beside it, and ends by saving in the folder above.
        check_run_folder(os.path.dirname(os.path.abspath(target)), sources)
    # The tokenizers of a checkpoint have folders of their own.
    targets = [str(target), *(os.path.join(target, name) for name in TOKENIZERS)]
    for role, source in sources:
        if source and any(_same_place(folder, str(source)) for folder in targets):
            raise ValueError(
                f"{argument}={str(target)!r} is where the {role} comes from, which would be overwritten: choose "
                "another folder."
            )


def check_run_folder(folder: str | PathLike, sources: Iterable[tuple[str, str | PathLike | None]]) -> None:
    """Raise ValueError if a training run in `folder` would overwrite or delete a model in it.

    That are models in `folder` itself, and in the places of its checkpoints, which `Trainer` also deletes.
    """
    sources = list(sources)
    check_target(folder, sources, "output_dir")
    for role, source in sources:
        path = os.path.realpath(source) if source else ""
        is_checkpoint = os.path.basename(path).startswith("checkpoint-")
        if is_checkpoint and _same_place(os.path.dirname(path), str(folder)):
            raise ValueError(
                f"output_dir={str(folder)!r} holds the {role}, {os.path.basename(path)}, which this run's "
                "checkpoints could replace: choose another folder."
            )


def _same_place(first: str, second: str) -> bool:
    """Return whether two paths lead to one place, which need not exist."""
    if os.path.exists(first) and os.path.exists(second):
        return os.path.samefile(first, second)
    return os.path.realpath(first) == os.path.realpath(second)
