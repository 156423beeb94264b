"""A command forked before some of its writes; each fork goes on with a full disk of its own, and keeps what it left.

A run for each write would repeat the whole command up to it. The fork's disk is a tmpfs with a copy of the folder,
mounted over it in a mount namespace of the fork's own, so that the command itself goes on undisturbed.
"""

import ctypes
import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

CLONE_NEWNS = 0x20000
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
BLOCK = os.sysconf("SC_PAGE_SIZE")


def used(folder: str) -> int:
    """Return the blocks in use on a folder's file system, a tmpfs."""
    usage = os.statvfs(folder)
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize // BLOCK


def mount(source: str, folder: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Call mount(2).

    Raises:
        OSError: if it fails.
    """
    texts = [text if text is None else text.encode() for text in (source, folder, kind, data)]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(*texts[:3], flags, texts[3]):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), folder)


class FullDisks:
    """Forks of a command, each of which has a full disk from a write on.

    Args:
        folder: where the command writes, a tmpfs.
        cases: for each write, numbered from "1", the blocks that are still free before it, one number for each fork.
        results: an existing folder, for what is left: the contents of `folder` by their digests; what each fork
            printed; a line of JSON for each of them (`write`, `free`, `code`, `state`, `printed`) in "cases.jsonl";
            and in "used.json" the blocks in use before each write and at the end.
    """

    def __init__(self, folder: str, cases: dict[str, list[int]], results: str) -> None:
        self.folder, self.cases, self.results = folder, cases, Path(results)
        self.blocks: list[int] = []
        self.case: dict[str, Any] | None = None

    def before(self, write: int) -> None:
        """Fork for the cases of a write, and wait for each fork; return in the command and in each fork."""
        if self.case is not None:
            return
        self.blocks.append(used(self.folder))
        for free in self.cases.get(str(write), []):
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            # os.fork would call what modules do after a fork, such as giving up locks; the fork is to be the command.
            child, parent = ctypes.PyDLL(None).fork(), os.getppid
            if child == 0:
                os.getpid = parent
                self.case = {"write": write, "free": free}
                log = self.results / f"{write}-{free}.log"
                descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                for stream in (1, 2):
                    os.dup2(descriptor, stream)
                self._own_disk(free)
                return
            _, status = os.waitpid(child, 0)
            if code := os.waitstatus_to_exitcode(status):
                raise RuntimeError(f"the fork before write {write} with {free} free blocks ended with code {code}")

    def finish(self, code: int) -> int:
        """Keep what a fork left when its command ended with `code`; return the exit code of this process."""
        if self.case is None:
            (self.results / "used.json").write_text(json.dumps([*self.blocks, used(self.folder)]))
            return code
        digest = hashlib.sha256()
        for path in sorted(Path(self.folder).rglob("*")):
            digest.update(f"{path.relative_to(self.folder)}\0{path.is_dir()}\0".encode())
            digest.update(path.read_bytes() if path.is_file() else b"")
        state = digest.hexdigest()[:16]
        if not (self.results / state).exists():
            shutil.copytree(self.folder, self.results / state, symlinks=True)
        log = self.results / f"{self.case['write']}-{self.case['free']}.log"
        line = {**self.case, "code": code, "state": state, "printed": log.read_text()}
        with (self.results / "cases.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return 0

    def _own_disk(self, free: int) -> None:
        """Mount a tmpfs with the folder's content over it, and leave some blocks free."""
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "no mount namespace of its own")
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        copy = tempfile.mkdtemp(dir=self.results)
        mount("tmpfs", copy, "tmpfs", 0)
        shutil.copytree(self.folder, copy, symlinks=True, dirs_exist_ok=True)
        opened = self._opened()
        mount(copy, self.folder, None, MS_BIND)
        for descriptor, path, flags, position in opened:
            again = os.open(path, flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC))
            os.lseek(again, position, os.SEEK_SET)
            os.dup2(again, descriptor)
            os.close(again)
        # tmpfs takes a size of 0 for none.
        mount("tmpfs", self.folder, None, MS_REMOUNT, f"size={max(1, used(self.folder) + free) * BLOCK}")

    def _opened(self) -> list[tuple[int, str, int, int]]:
        """Return (descriptor, path, flags, position) of each file in the folder that is open."""
        found = []
        for name in os.listdir("/proc/self/fd"):
            link = f"/proc/self/fd/{name}"
            path = os.readlink(link) if os.path.lexists(link) else ""
            if path.startswith(f"{self.folder}/") and os.path.isfile(path):
                lines = Path(f"/proc/self/fdinfo/{name}").read_text().splitlines()
                fields = dict(line.split(":", 1) for line in lines if ":" in line)
                found.append((int(name), path, int(fields["flags"], 8), int(fields["pos"])))
        return found
