"""A process that imports the package once and runs `semcot` commands in forks of itself, which it may kill.

    python tests/faults/fork_server.py

Each line on its standard input is a request, as JSON: `argv` (of `semcot`), `log` (file of what the command prints),
and optionally `folder`, `kill_at` (number of a write in that folder, before which the fork kills itself), `disks`
(arguments of `FullDisks`, with `folder` a mounted tmpfs) and `kill_after` (seconds after which it is killed). Each
line on its standard output is the answer: `code` (-9 if killed), `writes` (in the folder, until then) and `seconds`.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from full_disks import FullDisks

# What changes a folder: opening to write, and these.
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


def counter(
    folder: str, count_file: int, kill_at: int | None, before: Callable[[int], None] | None
) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook that counts writes in a folder, and kills the process or calls a function before one."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            flags = arguments[2] or 0
            if not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event not in EVENTS:
            return
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike) or not os.fsdecode(path).startswith(folder):
            return
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        os.pwrite(count_file, f"{count:08d}".encode(), 0)
        if before is not None:
            before(count)

    return hook


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run one command in a fork."""
    from semcot_hf.cli.main import main

    count_file = os.open(f"{request['log']}.writes", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.environ.update(request.get("environment", {}))
        disks = FullDisks(request["folder"], **request["disks"]) if "disks" in request else None
        if "folder" in request:
            sys.addaudithook(
                counter(request["folder"], count_file, request.get("kill_at"), disks.before if disks else None)
            )
        code = 70
        try:
            code = main(request["argv"])
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            try:
                code = disks.finish(code) if disks else code
            except BaseException:
                code = 71
                traceback.print_exc()
            finally:
                os._exit(code)
    limit = request.get("kill_after")
    while True:
        pid, status = os.waitpid(child, os.WNOHANG if limit is not None else 0)
        if pid:
            break
        if limit is not None and time.monotonic() - start > limit:
            os.kill(child, signal.SIGKILL)
            limit = None
        time.sleep(0.002)
    writes = int(os.pread(count_file, 8, 0) or 0)
    os.close(count_file)
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "writes": writes, "seconds": time.monotonic() - start}


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    from semcot_hf.cli import condense, distill, evaluate, generate  # noqa: F401  # imported once for all forks

    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
