"""The benchmark's run: each row in a process of its own, kept as it comes, and the report made of all of them."""

import json
import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

import torch

from ...storage import write_atomically, write_json
from .memory import memory_at_hand, needed_bytes
from .plots import plot_speed
from .report import markdown_report, row_line
from .row import run_row
from .settings import FACTORS, PARTS, SpeedSetting, label, needs_gpu, plan
from .shapes import GPU_SIZES
from .slopes import growth_of_rows
from .targets import check_targets

REPORT, TABLES, PLOT = "report.json", "report.md", "speed.png"


def measure_speed(
    *,
    output_dir: str,
    command: str,
    overwrite: bool = False,
    progress: Callable[[str], None] = print,
    **settings,
) -> dict:
    """Run the rows that `output_dir` does not hold yet, and write report.json, report.md and speed.png there.

    A folder may be filled by several commands, also on several machines: rows of other settings stay in the report.

    Args:
        output_dir: made when missing.
        command: what the report names as the way to get these rows.
        overwrite: discards the rows that the folder holds.
        progress: called with a line of text for each row.
        settings: the arguments of `plan`.

    Returns:
        The report: `rows` and `parts`, each with its `setting` and the indices of its `command` and `environment`;
        `slopes`, `targets`, `not_run`, `commands`, `environments`.

    Raises:
        ValueError: for a setting out of range, or a report in the folder that is none of this benchmark's.
    """
    planned = plan(**settings)
    for size in dict.fromkeys(setting.size for setting in planned if needs_gpu(setting)):
        progress(f"{size}: not run, no GPU")
    planned = [setting for setting in planned if not needs_gpu(setting)]
    device = torch.device(settings["device"])
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={settings['device']!r}: torch finds no GPU here; use --device cpu.")
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    report = {"commands": [], "environments": [], "rows": [], "parts": [], "not_run": []}
    if not overwrite:
        report = _read(folder / REPORT) or report
    kept = {_key(row["setting"]) for row in [*report["rows"], *report["parts"]]}
    todo = [setting for setting in planned if _key(asdict(setting)) not in kept]
    wanted = {_key(asdict(setting)) for setting in planned}
    report["not_run"] = [row for row in report["not_run"] if row["setting"] and _key(row["setting"]) not in wanted]
    if len(todo) < len(planned):
        progress(f"{len(planned) - len(todo)} of {len(planned)} rows are there already.")
    begin, measured = time.perf_counter(), 0
    for number, setting in enumerate(todo, start=1):
        figures = _figures(setting, device)
        where = {"setting": asdict(setting), "command": _index(report["commands"], command)}
        if "not_run" in figures:
            report["not_run"].append({**where, "reason": figures["not_run"], "command": command})
            progress(f"{number}/{len(todo)} {label(setting)}: not run, {figures['not_run']}")
            continue
        environment = _index(report["environments"], figures.pop("environment"))
        row = {**where, "environment": environment, **figures}
        report["parts" if setting.method == PARTS else "rows"].append(row)
        measured += 1
        left = (time.perf_counter() - begin) / measured * (len(todo) - number)
        progress(f"{number}/{len(todo)} {label(setting)}: {row_line(row)} ({_clock(left)} left)")
        write_json(folder / REPORT, report)
    report = _completed(report, output_dir)
    write_json(folder / REPORT, report)
    write_atomically(folder / TABLES, markdown_report(report))
    if report["rows"]:
        write_atomically(folder / PLOT, plot_speed(report))
    return report


def _completed(report: Mapping, output_dir: str) -> dict:
    """The report with its slopes, its targets, and the sizes that wait for a GPU."""
    there = {row["setting"]["size"] for row in [*report["rows"], *report["parts"]]}
    waiting = [
        {
            "setting": None,
            "size": size,
            "reason": "no GPU" if not torch.cuda.is_available() else "not asked for",
            "command": _gpu_command(size, output_dir),
        }
        for size in GPU_SIZES
        if size not in there
    ]
    slopes = growth_of_rows(report["rows"], tuple(FACTORS))
    order = ("commands", "environments", "targets", "slopes", "rows", "parts", "not_run")
    filled = {
        **report,
        "slopes": slopes,
        "targets": check_targets(report["rows"], report["parts"], slopes),
        "not_run": [row for row in report["not_run"] if row["setting"]] + waiting,
    }
    return {name: filled[name] for name in order}


def _figures(setting: SpeedSetting, device: torch.device) -> dict:
    """The row's figures, or the reason why it was `not_run`."""
    needed, there = sum(needed_bytes(setting).values()), memory_at_hand(device)
    if needed > 0.95 * there:
        return {"not_run": f"needs {needed / 1e9:.1f} GB of memory, {there / 1e9:.1f} GB are there"}
    # The server of processes has imported the libraries once, and has run nothing that a copy could not go on from.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run_row.__module__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(run_row, setting).result()
        except BrokenProcessPool:
            return {"not_run": "its process was killed, most likely for memory"}


def _read(path: Path) -> dict | None:
    if not path.exists():
        return None
    try:
        report = json.loads(path.read_text())
        return {name: report[name] for name in ("commands", "environments", "rows", "parts", "not_run")}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"output_dir={str(path.parent)!r} holds a {path.name} that is no speed report: choose another folder, or "
            "pass --overwrite."
        ) from error


def _key(setting: Mapping) -> tuple:
    return tuple(sorted(setting.items()))


def _index(values: list, value) -> int:
    if value not in values:
        values.append(value)
    return values.index(value)


def _gpu_command(size, output_dir):
    return f"semcot bench speed --sizes {size} --device cuda --dtype bfloat16 --output_dir {output_dir}"


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
