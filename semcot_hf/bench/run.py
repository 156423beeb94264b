"""`semcot bench methods`: prepare models, questions and the settings of each run, do all runs, write one report."""

import json
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from transformers import AutoTokenizer

from ..answers import check_answer, infer_answer_type
from ..data import load_reasoning_dataset
from ..data.loading import pick_split
from ..demo import GENERATOR_PATH, HOST_PATH
from ..modeling.sources_semcot import shares_tokenizer
from ..options import option
from ..progress import progress_bar
from .catalogue import BENCH_METHODS, UNTRAINED, chosen
from .method_run import QuestionSet, RunSettings, run_method, run_name
from .methods.coconut import LATENTS_PER_STEP, NUM_STAGES
from .report import folder_name, write_report
from .summary import own_row
from .tasks.definitions import BENCH_TASKS
from .tasks.pretraining import make_models

# Seed of the questions; the seeds of runs do not change it, so that every run of a task sees the same questions.
DATA_SEED = 0
COCONUT = (LATENTS_PER_STEP, NUM_STAGES)


@dataclass
class BenchSettings:
    """What to train and evaluate, and how."""

    output_dir: str = field(metadata={"help": "Folder of all runs and of the report; finished runs there are kept."})
    task: list[str] = option(
        ["facts"], f"{', '.join(BENCH_TASKS)}, or all; with --host, a dataset's Hub id, file or folder."
    )
    methods: list[str] = option(["all"], f"{', '.join(BENCH_METHODS)}, or all.")
    seeds: list[int] = option([0, 1, 2], "Training seeds.")
    steps: int = option(300, "Training steps of each method, at budget 1.")
    budgets: list[float] = option(
        [1.0], "Multiples of steps; each method is trained anew with each, at the learning rate found for budget 1."
    )
    batch_size: int = option(32, "Questions per step.")
    learning_rates: list[float] = option(
        [3e-4, 1e-3, 2e-3], "Learning rates to try on validation questions, for each method; one value: no search."
    )
    search_share: float = option(0.2, "Length of each training of the search, as a share of steps.")
    train_questions: int = option(20_000, "Number of distinct training questions.")
    validation_questions: int = option(200, "Number of validation questions of the search.")
    eval_questions: int = option(500, "Number of test questions.")
    latency_samples: int = option(40, "Number of questions whose latency is measured; 0 measures none.")
    compiled_latency: bool = option(
        False, "Also measure SemCoT's latency with its generator compiled, and with the hosts compiled too."
    )
    host: str | None = option(None, "Id or path of the host; by default the task's, which is made on first use.")
    generator: str | None = option(None, "Id or path of the generator; by default the task's.")
    num_implicit_tokens: int | None = option(None, "Number k of implicit tokens; by default the task's.")
    steps_per_token: int | None = option(None, "Reasoning steps per implicit token; by default the task's.")
    words_column: str | None = option(
        None,
        "Column of the words of SemCoT (soft words), as in `semcot distill`; by default the task's, or for a dataset "
        "the one that `semcot distill` chooses.",
    )
    words_limit: int = option(96, "Largest number of words in a thought of SemCoT (soft words), its end included.")
    joint_share: float = option(
        0.0, "Further steps of SemCoT (soft words) that train the words through the host, as a share of steps."
    )
    max_new_tokens: int = option(256, "Maximum answer length for a dataset given with --host.")
    models_dir: str | None = option(None, "Folder of the models made for the tasks; by default output_dir/models.")
    models_steps_factor: float = option(1.0, "Factor on the training steps of those models (for a quick try).")
    device: str = option("cpu", "cpu or cuda.")
    report_only: bool = option(False, "Only write the report of the finished runs.")


def run_bench(settings: BenchSettings, command: str = "semcot bench methods") -> dict:
    """Run what is not finished yet, write `report.md`, `report.json` and the plots, and return the report.

    Args:
        settings: what to run.
        command: the command that the report names.

    Raises:
        ValueError: for unknown tasks or methods, settings that contradict each other, or a dataset without one of the
            splits or with an answer that cannot be checked.
    """
    tasks = list(BENCH_TASKS) if "all" in settings.task else settings.task
    methods = chosen(settings.methods)
    _check(settings, tasks)
    # Each training would draw bars of its own; the bench prints a line for each run.
    disable_progress_bars()
    output, runs = Path(settings.output_dir), []
    # A pair that is left untrained is the same with every budget.
    plan = [
        (task, budget, seed, method)
        for budget in dict.fromkeys(settings.budgets)
        for task in tasks
        for seed in settings.seeds
        for method in methods
        if budget == settings.budgets[0] or method != UNTRAINED
    ]
    folders = [output / folder_name(task) / method / run_name(seed, budget) for task, budget, seed, method in plan]
    finished = [(folder / "run.json").exists() for folder in folders]
    # Of all tasks before the first run, since those of a dataset may be refused.
    questions = {} if settings.report_only else {task: _questions(settings, task) for task in tasks}
    models: dict[str, tuple[str, str]] = {}
    with progress_bar("bench", len(plan), sum(finished), not settings.report_only, lines=True) as advance:
        for number, ((task, budget, seed, method), folder) in enumerate(zip(plan, folders, strict=True)):
            if settings.report_only:
                if finished[number]:
                    runs.append((json.loads((folder / "run.json").read_text()), folder))
                continue
            if task not in models:
                models[task] = _models(settings, task)
            run_settings = _run_settings(settings, task, method, seed, budget, *models[task])
            start = time.monotonic()
            run = run_method(run_settings, questions[task], folder, settings.compiled_latency)
            runs.append((run, folder))
            if not finished[number]:
                accuracy, seconds = 100 * own_row(run)["accuracy"], time.monotonic() - start
                text = f"[{number + 1}/{len(plan)}] {run_settings.name}: {accuracy:.1f} % in {seconds:.0f} s"
                advance(1, text)
    if not runs:
        raise ValueError(f"output_dir={settings.output_dir!r} holds no finished run of these tasks and methods.")
    return write_report(runs, output, command=command)


def _check(settings: BenchSettings, tasks: list[str]) -> None:
    unknown = [task for task in tasks if task not in BENCH_TASKS]
    if unknown and (settings.host is None or settings.generator is None):
        raise ValueError(
            f"task={unknown}: choose among {', '.join(BENCH_TASKS)}, or pass --host and --generator with a dataset."
        )
    if not settings.budgets or min(settings.budgets) <= 0:
        raise ValueError(f"budgets={settings.budgets}: give one number or more, each above 0.")
    if (settings.host is None) != (settings.generator is None):
        raise ValueError("host and generator go together: pass both, or neither to use the task's models.")


def _models(settings: BenchSettings, task: str) -> tuple[str, str]:
    """Return the paths of host and generator: those given, the embedded ones, or models made for the task."""
    if settings.host is not None and settings.generator is not None:
        if not shares_tokenizer(*map(AutoTokenizer.from_pretrained, (settings.host, settings.generator))):
            raise ValueError(
                f"generator={settings.generator!r} has other tokens than host={settings.host!r}: the bench needs two "
                "models that share a tokenizer, such as two sizes of one family."
            )
        return settings.host, settings.generator
    if task == "facts":
        return str(HOST_PATH), str(GENERATOR_PATH)
    folder = Path(settings.models_dir or Path(settings.output_dir) / "models") / task
    if BENCH_TASKS[task].by_script and not (folder / "host").exists():
        raise ValueError(
            f"task={task!r}: {folder} has no models, and a generator for this task needs a training aid: make them "
            f"with `python examples/pretrain_task_models.py --task {task} --output_dir {folder}`, or "
            "pass --models_dir."
        )
    host, generator = make_models(
        BENCH_TASKS[task],
        folder,
        steps_factor=settings.models_steps_factor,
        eval_samples=settings.eval_questions,
        device=settings.device,
    )
    return str(host), str(generator)


def _questions(settings: BenchSettings, task: str) -> QuestionSet:
    counts = {
        "train": settings.train_questions,
        "validation": settings.validation_questions,
        "test": settings.eval_questions,
    }
    if task in BENCH_TASKS:
        own = BENCH_TASKS[task]
        made = {split: own.generate(count, DATA_SEED, split) for split, count in counts.items()}
        return QuestionSet(**made, answer_type=own.answer_type, max_new_tokens=own.max_new_tokens)
    splits = load_reasoning_dataset(task)
    found = {split: list(pick_split(splits, split, task))[:count] for split, count in counts.items()}
    answer_type = infer_answer_type([row["answer"] for row in found["test"]])
    # The search checks answers of validation questions.
    for split in ("test", *(["validation"] if len(settings.learning_rates) > 1 else [])):
        _check_golds(task, split, [row["answer"] for row in found[split]], answer_type)
    return QuestionSet(**found, answer_type=answer_type, max_new_tokens=settings.max_new_tokens)


def _check_golds(task: str, split: str, golds: list[str], answer_type: str) -> None:
    for index, gold in enumerate(golds):
        try:
            check_answer("", gold, answer_type)
        except ValueError as error:
            raise ValueError(
                f"task={task!r}: row {index} of {split} has the answer {gold!r}, which is not {answer_type} as those "
                "of test are: correct the row, or drop it."
            ) from error


def _run_settings(
    settings: BenchSettings, task: str, method: str, seed: int, budget: float, host: str, generator: str
) -> RunSettings:
    own = BENCH_TASKS.get(task)
    values: dict[str, Any] = {part.name: getattr(settings, part.name, None) for part in fields(RunSettings)}
    values |= {"task": task, "method": method, "seed": seed, "host": host, "generator": generator}
    values |= {"learning_rates": tuple(settings.learning_rates), "budget": budget}
    defaults = {"num_implicit_tokens": 5, "steps_per_token": 1, "words_column": None, "coconut": COCONUT}
    for name, default in defaults.items():
        if values[name] is None:
            values[name] = getattr(own, name, default)
    return RunSettings(**values)
