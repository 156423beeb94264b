"""Folders of models and data in pieces of at most 60 MB, for a machine that no network reaches; and joined again.

    python examples/gpu/pieces.py split /models/qwen-1.5b /models/qwen-0.5b --output build/gpu/pieces
    python examples/gpu/pieces.py join build/gpu/pieces --output build/gpu/models

`split` packs each folder into <folder>/<folder>.tar.000, .001, ... with a checksum of each; pieces may be carried one
at a time. `join` unpacks the folders whose pieces are all whole, else names what is missing and ends with status 1.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

MOST_MB = 60


class Pieces:
    """A file to write to that is cut into pieces of at most `size` bytes; `done` lists [name, checksum]."""

    def __init__(self, stem: Path, size: int):
        self.stem, self.size, self.done, self.kept = stem, size, [], bytearray()

    def write(self, data: bytes) -> int:
        self.kept += data
        while len(self.kept) > self.size:
            self.flush_piece(self.size)
        return len(data)

    def flush_piece(self, count: int) -> None:
        piece, self.kept = bytes(self.kept[:count]), self.kept[count:]
        path = self.stem.with_name(f"{self.stem.name}.{len(self.done):03d}")
        path.write_bytes(piece)
        self.done.append([path.name, hashlib.sha256(piece).hexdigest()])


def split(folder: Path, output: Path, size: int) -> None:
    """Write the pieces of a folder, and last their manifest."""
    target = output / folder.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    pieces = Pieces(target / f"{folder.name}.tar", size)
    with tarfile.open(fileobj=pieces, mode="w|", dereference=True) as tar:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            tar.add(path, arcname=str(path.relative_to(folder)))
    pieces.flush_piece(len(pieces.kept))
    (target / "manifest.json").write_text(json.dumps({"pieces": pieces.done}, indent=1) + "\n")
    print(f"{folder.name}: {len(pieces.done)} pieces")


def join(folder: Path, output: Path) -> bool:
    """Unpack a folder of pieces; return False, and say what is missing or damaged, if it cannot be."""
    listed = json.loads((folder / "manifest.json").read_text())["pieces"]
    found = {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, _ in listed if (path := folder / name).is_file()
    }
    if wrong := [name for name, checksum in listed if found.get(name) != checksum]:
        print(f"{folder.name}: of {len(listed)} pieces are missing or damaged: {' '.join(wrong)}")
        return False
    target, unfinished, joined = (output / (folder.name + end) for end in ("", ".unfinished", ".tar"))
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with joined.open("wb") as file:
        for name, _ in listed:
            file.write((folder / name).read_bytes())
    with tarfile.open(joined) as tar:
        tar.extractall(unfinished, filter="data")
    joined.unlink()
    shutil.rmtree(target, ignore_errors=True)
    os.replace(unfinished, target)
    return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("split", "join"), help="What to do.")
    parser.add_argument("folders", nargs="+", type=Path, help="Folders to split, or the folder of pieces to join.")
    parser.add_argument("--output", type=Path, required=True, help="Folder of what is made.")
    parser.add_argument("--piece_mb", type=float, default=MOST_MB, help="Largest piece in MB (1,000,000 bytes).")
    arguments = parser.parse_args(argv)
    if missing := [str(each) for each in arguments.folders if not each.is_dir()]:
        parser.error(f"folders={missing} do not exist: give folders.")
    if not 0 < arguments.piece_mb <= MOST_MB:
        parser.error(f"--piece_mb {arguments.piece_mb:g} must be above 0 and at most {MOST_MB}.")
    if arguments.action == "split":
        for folder in arguments.folders:
            split(folder.resolve(), arguments.output, max(1, int(arguments.piece_mb * 1_000_000)))
        return 0
    manifests = sorted(path for each in arguments.folders for path in each.glob("*/manifest.json"))
    if not manifests:
        parser.error(f"folders={list(map(str, arguments.folders))} hold no <folder>/manifest.json of a split.")
    return int(not all([join(path.parent, arguments.output) for path in manifests]))


if __name__ == "__main__":
    sys.exit(main())
