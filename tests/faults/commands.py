"""The commands that are killed and run out of disk: their flags, and what counts as the same result."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SERVER = Path(__file__).parent / "fork_server.py"
# Flags of `semcot distill` for each phase; `MODELS` is the folder of the tiny models.
DISTILL = [
    "--dataset",
    "coin_flip",
    "--max_train_samples",
    "24",
    "--max_eval_samples",
    "4",
    "--bf16",
    "false",
    "--use_cpu",
    "true",
]
DISTILL += ["--max_steps", "6", "--save_steps", "2", "--save_strategy", "steps", "--per_device_train_batch_size", "4"]
DISTILL += ["--num_implicit_tokens", "2", "--alpha", "0", "--learning_rate", "0.01", "--disable_tqdm", "true"]
DISTILL += ["--generator_mode", "sequential", "--save_total_limit", "2"]
WORDS = ["--projection", "vocabulary", "--thought_length", "adaptive", "--num_implicit_tokens", "80"]
WORDS += ["--words_max_steps", "3", "--words_column", "condensed_reasoning", "--max_steps", "3"]
PHASES = {
    "words": [*WORDS, "--projection_warmup", "0"],
    "projection": ["--projection_warmup", "0.9"],
    "generator": ["--projection_warmup", "0.5", "--step_weight", "1.0", "--keep_step_decoder", "false"],
    "adapters": [
        "--projection_warmup",
        "0",
        "--use_peft",
        "true",
        "--lora_r",
        "2",
        "--lora_target_modules",
        "q_proj",
        "v_proj",
    ],
}
COMMANDS = ("evaluate", "generate", "condense", *(f"distill-{phase}" for phase in PHASES))


def arguments(name: str, models: Path, output: Path, few_checkpoints: bool = False) -> list[str]:
    """Return the arguments of `semcot` for a command that writes to the folder `output`.

    With `few_checkpoints`, training keeps one of two checkpoints instead of two of three.
    """
    command, _, phase = name.partition("-")
    if command == "distill":
        parts = ["--host", str(models / "host"), "--generator", str(models / "generator")]
        saves = ["--save_steps", "4", "--save_total_limit", "1"] if few_checkpoints else []
        return [command, *parts, *DISTILL, *PHASES[phase], *saves, "--output_dir", str(output / "run")]
    if command == "condense":
        source = ["--source", "equations", "--dataset", str(models / "rows")]
        return [command, *source, "--output_dir", str(output / "run")]
    model = ["--model", str(models / "semcot"), "--max_new_tokens", "4"]
    if command == "generate":
        files = ["--input", str(models / "questions.jsonl"), "--output", str(output / "answers.jsonl")]
        return [command, *model, *files, "--tokens_per_batch", "300"]
    data = ["--dataset", "coin_flip", "--max_eval_samples", "12", "--batch_size", "3", "--latency_samples", "2"]
    return [command, *model, *data, "--command", "x", "--output_dir", str(output / "run")]


def resumed(name: str, made: list[str]) -> list[str]:
    """Return the arguments that continue a command: the same; for training, from the last checkpoint."""
    if not name.startswith("distill"):
        return made
    folder = Path(made[made.index("--output_dir") + 1])
    return [*made, "--resume_from_checkpoint", "true"] if any(folder.glob("checkpoint-*")) else made


def result(name: str, output: Path) -> dict[str, Any]:
    """Return what must be the same after a fault: files and their content, without times and places."""
    found: dict[str, Any] = {}
    for path in sorted(output.rglob("*")):
        if not path.is_file() or "checkpoint-" in str(path) or path.suffix in (".py", ".png", ".bin"):
            continue
        content: Any = path.read_bytes()
        place = str(output).encode()
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in content.splitlines()]
            content = [
                {key: value for key, value in line.items() if key not in ("seconds", "crc32")} for line in lines
            ]
        elif path.name == "report.json" and name == "evaluate":
            content = json.loads(content)
            del content["latency"]
            for row in content["rows"]:
                for key in ("seconds_per_query", "seconds_per_query_p95", "share_of_cot_time"):
                    row.pop(key, None)
        elif path.name == "train_results.json":
            results = json.loads(content)
            content = {name: results[name] for name in ("train_samples", "train_steps")}
        elif path.suffix != ".safetensors":
            content = content.replace(place, b"PLACE")
        if path.name != "report.md" or name != "evaluate":
            found[str(path.relative_to(output))] = content
    return found


class Server:
    """The process of `fork_server.py`.

    Args:
        folder: for what the commands print.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.runs = folder, 0
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER)], stdin=pipe, stdout=pipe, text=True, env=environment
        )

    def run(self, argv: list[str], **request: Any) -> dict[str, Any]:
        """Run a command in a fork; return its answer with what it printed."""
        self.runs += 1
        log = self.folder / f"{self.runs}.log"
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"argv": argv, "log": str(log), **request}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        # A fork that is killed at once has not opened it.
        return {**answer, "printed": log.read_text() if log.exists() else ""}

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a file system of `size` bytes at `folder`.

    Raises:
        PermissionError: where mounting is not permitted.
    """
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        raise PermissionError(mounted.stderr.strip() or "mount failed")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
