"""The run of the speed benchmark: each row in a process of its own, stored at once, and the report of all rows."""

import json
import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...storage import write_atomically, write_json
from .measurement import available_memory, needed_bytes
from .plots import plot_speed
from .report import markdown_report, row_line
from .row import run_row
from .settings import FACTORS, PARTS, SpeedSetting, SpeedSettings, plan
from .shapes import GPU_SIZES
from .slopes import growth_of_rows

REPORT, TABLES, PLOT = "report.json", "report.md", "speed.png"
STORED = ("commands", "environments", "rows", "parts", "not_run")


def measure_speed(
    settings: SpeedSettings, command: str = "semcot bench speed", progress: Callable[[str], None] = print
) -> dict:
    """Measure the rows that `output_dir` does not hold yet, and write report.json, report.md and speed.png there.

    Several commands may fill one folder, also on several machines: rows of other settings stay in the report.

    Args:
        settings: what to measure.
        command: the command that the report names for these rows.
        progress: called with one line of text for each row.

    Returns:
        The report: `rows` and `parts`, each with its `setting` and the indices of its `command` and `environment`;
        `slopes`, `not_run`, `commands`, `environments`.

    Raises:
        ValueError: for a setting out of range, or a file in the folder that is not a report of this benchmark.
    """
    planned = plan(settings)
    device = torch.device(planned[0].device)
    for size in dict.fromkeys(setting.size for setting in planned if setting.needs_gpu):
        progress(f"{size}: not run, no GPU")
    planned = [setting for setting in planned if not setting.needs_gpu]
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r}: torch finds no GPU here; use --device cpu.")
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, list] = {name: [] for name in STORED}
    if not settings.overwrite and (folder / REPORT).exists():
        report = _read(folder / REPORT)
    kept = {_key(row["setting"]) for row in [*report["rows"], *report["parts"]]}
    todo = [setting for setting in planned if _key(asdict(setting)) not in kept]
    wanted = {_key(asdict(setting)) for setting in planned}
    report["not_run"] = [row for row in report["not_run"] if row["setting"] and _key(row["setting"]) not in wanted]
    if len(todo) < len(planned):
        progress(f"{len(planned) - len(todo)} of {len(planned)} rows are measured already.")
    begin, measured = time.perf_counter(), 0
    for number, setting in enumerate(todo, start=1):
        figures, title = _figures(setting, device), f"{number}/{len(todo)} {setting.label}"
        where = {"setting": asdict(setting), "command": _index(report["commands"], command)}
        if "not_run" in figures:
            report["not_run"].append({**where, "reason": figures["not_run"], "command": command})
            progress(f"{title}: not run, {figures['not_run']}")
            continue
        environment = _index(report["environments"], figures.pop("environment"))
        row = {**where, "environment": environment, **figures}
        report["parts" if setting.method == PARTS else "rows"].append(row)
        measured += 1
        left = int((time.perf_counter() - begin) / measured * (len(todo) - number))
        progress(f"{title}: {row_line(row)} ({left // 60}:{left % 60:02d} left)")
        write_json(folder / REPORT, report)
    report = complete_report(report, settings.output_dir)
    save_report(report, folder)
    return report


def save_report(report: dict, folder: Path) -> None:
    """Write the JSON, the tables and the plot of a complete report."""
    write_json(folder / REPORT, report)
    write_atomically(folder / TABLES, markdown_report(report))
    if report["rows"]:
        write_atomically(folder / PLOT, plot_speed(report))


def complete_report(report: Mapping[str, list], output_dir: str) -> dict[str, list]:
    """Return the report with its slopes, and with the sizes that need a GPU and are not measured yet."""
    found = {row["setting"]["size"] for row in [*report["rows"], *report["parts"]]}
    command = "semcot bench speed --sizes {} --device cuda --dtype bfloat16 --output_dir {}"
    waiting = [
        {
            "setting": None,
            "size": size,
            "reason": "not selected" if torch.cuda.is_available() else "no GPU",
            "command": command.format(size, output_dir),
        }
        for size in GPU_SIZES
        if size not in found
    ]
    return {
        "commands": report["commands"],
        "environments": report["environments"],
        "slopes": growth_of_rows(report["rows"], tuple(FACTORS)),
        "rows": report["rows"],
        "parts": report["parts"],
        "not_run": [row for row in report["not_run"] if row["setting"]] + waiting,
    }


def _figures(setting: SpeedSetting, device: torch.device) -> dict:
    """Return the row's figures, or the reason under `not_run`."""
    needed, available = sum(needed_bytes(setting).values()), available_memory(device)
    if needed > 0.95 * available:
        return {"not_run": f"needs {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available"}
    # The server process imports the libraries once and runs nothing that would break in its copies.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run_row.__module__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(run_row, setting).result()
        except BrokenProcessPool:
            return {"not_run": "its process was killed, most likely for memory"}


def _read(path: Path) -> dict[str, list]:
    try:
        report = json.loads(path.read_text())
        return {name: report[name] for name in STORED}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"output_dir={str(path.parent)!r} holds a {path.name} that is no speed report: choose another folder, or "
            "pass --overwrite."
        ) from error


def _key(setting: Mapping[str, Any]) -> tuple:
    return tuple(sorted(setting.items()))


def _index(values: list, value: object) -> int:
    if value not in values:
        values.append(value)
    return values.index(value)
