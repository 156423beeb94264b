"""The table's SemCoT rows at larger budgets on one GPU: two trainings, their rows, latency and throughput.

    python examples/gpu/run.py --host build/gpu/models/qwen-1.5b --generator build/gpu/models/qwen-0.5b \\
        --train gsm8k/train.txt --test gsm8k/test.txt --output runs/gpu

The steps are `words` (the words phase on all rows, and its rows of the table), `paper` (five tokens trained through
the host), `latency` (of both models; for five tokens also with captured graphs) and `speed` (latency and throughput in
the shapes of a 7B host); `--steps` chooses some. Each goes on where it was cut off, and finished ones are kept; with
`--limit SECONDS` a run ends itself in time with status 75, and the same command continues. `--scale tiny` tries all
steps on a CPU, where the figures mean nothing; without it a machine without GPU is told what would be run, and the
status is 3.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from scales import SCALES, STEPS, command_of
from summary import summary

CUT_OFF, NO_GPU = 75, 3


def run_within(command: list[str], seconds: float | None) -> int:
    """Run a command and return its status; when the seconds are over, end it with all that it started."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return CUT_OFF
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", required=True, help="Id or path of the host.")
    parser.add_argument("--generator", required=True, help="Id or path of the generator.")
    parser.add_argument("--train", nargs="+", required=True, help="Files of training rows.")
    parser.add_argument("--test", required=True, help="File of test rows.")
    parser.add_argument("--output", type=Path, required=True, help="Folder of all runs.")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS, help="Steps.")
    parser.add_argument("--scale", default="full", choices=list(SCALES), help="Budgets.")
    parser.add_argument("--limit", type=float, help="Seconds after which the run ends itself.")
    given = parser.parse_args(argv)
    models = (given.host, given.generator, given.train, given.test)
    commands = {
        step: [sys.executable, *map(str, command_of(step, SCALES[given.scale], given.output, *models))]
        for step in given.steps
    }
    if given.scale != "tiny" and not torch.cuda.is_available():
        print("No GPU is found: nothing is run (--scale tiny tries the steps without one). With a GPU it would be:")
        print("\n".join(shlex.join(command) for command in commands.values()))
        return NO_GPU
    given.output.mkdir(parents=True, exist_ok=True)
    path, device = given.output / "run.json", torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    state = (
        json.loads(path.read_text())
        if path.is_file()
        else {"scale": given.scale, "device": device, "seconds": {}, "done": []}
    )
    if state["scale"] != given.scale:
        parser.error(f"--output {given.output} holds a run at the scale {state['scale']}: choose another folder.")
    begin = time.monotonic()
    for step, command in commands.items():
        if step in state["done"]:
            continue
        start = time.monotonic()
        left = None if given.limit is None else max(1.0, given.limit - (start - begin))
        status = run_within(command, left)
        state["seconds"][step] = round(state["seconds"].get(step, 0) + time.monotonic() - start)
        state["done"] += [] if status else [step]
        path.write_text(json.dumps(state, indent=1) + "\n")
        (given.output / "summary.md").write_text(summary(state, given.output))
        if status:
            print(f"{step}: " + ("cut off; repeat the command to go on." if status == CUT_OFF else f"status {status}"))
            return status
    print((given.output / "summary.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
