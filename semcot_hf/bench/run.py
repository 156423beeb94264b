"""The whole bench: every method, task and seed in turn, resumable, with one report at the end."""

import json
import shlex
import sys
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from datasets import disable_progress_bars
from rich.console import Console
from transformers import AutoTokenizer

from ..answers import infer_answer_type
from ..data import load_reasoning_dataset
from ..demo import GENERATOR_PATH, HOST_PATH
from ..inference.prompting import shares_tokenizer
from .catalogue import BENCH_METHODS, chosen
from .method_run import QuestionSet, RunSettings, run_method
from .recipe import Recipe
from .report import folder_name, write_report
from .summary import own_row
from .tasks.definitions import BENCH_TASKS
from .tasks.pretraining import make_models

# Of questions, apart from the seeds of runs, so that every run of a task sees the same ones.
DATA_SEED = 0


@dataclass
class BenchSettings:
    """What `semcot bench methods` runs."""

    output_dir: str = field(metadata={"help": "Folder of all runs and the report; finished runs there are kept."})
    task: list[str] = field(
        default_factory=lambda: ["coin_flip"],
        metadata={
            "help": f"Of {', '.join(BENCH_TASKS)}, or all; or, with --host, a dataset's Hub id, file or folder."
        },
    )
    methods: list[str] = field(
        default_factory=lambda: ["all"], metadata={"help": f"Of {', '.join(BENCH_METHODS)}, or all."}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of the trainings."})
    steps: int = field(default=300, metadata={"help": "Training steps of each method."})
    batch_size: int = field(default=32, metadata={"help": "QuestionSet a step."})
    learning_rates: list[float] = field(
        default_factory=lambda: [3e-4, 1e-3, 2e-3],
        metadata={"help": "Searched on validation questions for every method alike; one means no search."},
    )
    search_share: float = field(default=0.2, metadata={"help": "Share of the steps each candidate is trained for."})
    train_questions: int = field(default=20_000, metadata={"help": "Different training questions."})
    validation_questions: int = field(default=200, metadata={"help": "Validation questions of the search."})
    eval_questions: int = field(default=500, metadata={"help": "Test questions."})
    latency_samples: int = field(default=40, metadata={"help": "QuestionSet whose latency is measured."})
    compiled_latency: bool = field(
        default=False,
        metadata={"help": "Measure SemCoT also with its generator compiled, and with the hosts compiled too."},
    )
    host: str | None = field(
        default=None, metadata={"help": "Id or path of the host; one made for the task when left out."}
    )
    generator: str | None = field(
        default=None, metadata={"help": "Id or path of the generator; one made for the task when left out."}
    )
    num_implicit_tokens: int | None = field(default=None, metadata={"help": "k; the task's own when left out."})
    steps_per_token: int | None = field(
        default=None, metadata={"help": "Reasoning steps that one token stands for; the task's own when left out."}
    )
    soft_words_tokens: int | None = field(
        default=None,
        metadata={"help": "k of SemCoT (soft words); num_implicit_tokens if that is given, else the task's own."},
    )
    soft_words_layers: list[int] | None = field(
        default=None,
        metadata={
            "help": "Layers that the generator of SemCoT (soft words) keeps, from 0; the task's own if left out."
        },
    )
    soft_words_mode: str | None = field(
        default=None,
        metadata={"help": "Generator of SemCoT (soft words): parallel or sequential; the task's own if left out."},
    )
    soft_words_projection: str | None = field(
        default=None,
        metadata={
            "help": "Projection of SemCoT (soft words): linear, identity or vocabulary; the task's own if left out."
        },
    )
    soft_words_step_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of the step decoder in SemCoT (soft words); the task's own when left out."},
    )
    soft_words_thought: str | None = field(
        default=None,
        metadata={"help": "Word that <thought> of SemCoT (soft words) starts from; the task's own by default."},
    )
    soft_words_words: float | None = field(
        default=None,
        metadata={
            "help": "Steps, for each one of the budget, in which the generator of SemCoT (soft words) learns to "
            "reason in one word a step (condensed_reasoning of a dataset); the task's own by default."
        },
    )
    max_new_tokens: int = field(default=256, metadata={"help": "Longest answer to questions of a --host's dataset."})
    models_dir: str | None = field(
        default=None, metadata={"help": "Folder of models made for the tasks; output_dir/models when left out."}
    )
    models_steps_factor: float = field(
        default=1.0, metadata={"help": "Multiplies the steps that those models are made with (for a quick try)."}
    )
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    report_only: bool = field(default=False, metadata={"help": "Write the report of what is finished, run nothing."})


def run_bench(settings: BenchSettings) -> dict:
    """Run what is not finished yet, and write `report.md`, `report.json` and the plots; returns the report.

    Raises:
        ValueError: for unknown tasks or methods, or settings that do not go together.
    """
    tasks = list(BENCH_TASKS) if "all" in settings.task else settings.task
    methods = chosen(settings.methods)
    _check(settings, tasks)
    # Each training would draw bars of its own; the bench says how far it has come.
    disable_progress_bars()
    console, output = Console(stderr=True), Path(settings.output_dir)
    plan = [(task, seed, method) for task in tasks for seed in settings.seeds for method in methods]
    runs, began, done = [], time.monotonic(), 0
    questions, models = {}, {}
    for index, (task, seed, method) in enumerate(plan):
        folder = output / folder_name(task) / method / f"seed{seed}"
        if settings.report_only:
            if (folder / "run.json").exists():
                runs.append((json.loads((folder / "run.json").read_text()), folder))
            continue
        if task not in models:
            models[task] = _models(settings, task, console)
            questions[task] = _questions(settings, task)
        run_settings = _run_settings(settings, task, method, seed, *models[task])
        fresh = not (folder / "run.json").exists()
        started = time.monotonic()
        run = run_method(run_settings, questions[task], folder, settings.compiled_latency)
        runs.append((run, folder))
        done += fresh
        left = (time.monotonic() - began) / done * (len(plan) - index - 1) if done else 0
        console.print(
            f"[{index + 1}/{len(plan)}] {run_settings.name}: {100 * own_row(run)['accuracy']:.1f} % "
            f"({time.monotonic() - started:.0f} s; about {left / 60:.0f} min left)",
            highlight=False,
        )
    if not runs:
        raise ValueError(f"output_dir={settings.output_dir!r} holds no finished run of these tasks and methods.")
    return write_report(runs, output, command=shlex.join(["semcot", "bench", "methods", *_arguments()]))


def _arguments():
    return sys.argv[3:] if sys.argv[1:3] == ["bench", "methods"] else []


def _check(settings, tasks):
    unknown = [task for task in tasks if task not in BENCH_TASKS]
    if unknown and (settings.host is None or settings.generator is None):
        raise ValueError(
            f"task={unknown}: choose among {', '.join(BENCH_TASKS)}, or pass --host and --generator with a dataset."
        )
    if (settings.host is None) != (settings.generator is None):
        raise ValueError("host and generator go together: pass both, or neither for models made for the task.")


def _models(settings, task, console):
    """Paths of host and generator: those given, the embedded ones, or ones made for the task."""
    if settings.host is not None:
        if not shares_tokenizer(*map(AutoTokenizer.from_pretrained, (settings.host, settings.generator))):
            raise ValueError(
                f"generator={settings.generator!r} has other tokens than host={settings.host!r}: the methods of the "
                "bench take two that share a tokenizer, such as two sizes of one family."
            )
        return settings.host, settings.generator
    if task == "coin_flip":
        return str(HOST_PATH), str(GENERATOR_PATH)
    folder = Path(settings.models_dir or Path(settings.output_dir) / "models") / task
    if not (folder / "host").exists():
        console.print(f"Making the models of {task} in {folder} ...", highlight=False)
    host, generator = make_models(
        BENCH_TASKS[task], folder, steps_factor=settings.models_steps_factor, device=settings.device
    )
    return str(host), str(generator)


def _questions(settings, task):
    counts = (settings.train_questions, settings.validation_questions, settings.eval_questions)
    if task in BENCH_TASKS:
        own = BENCH_TASKS[task]
        train, validation, test = (
            own.generate(count, DATA_SEED, split)
            for count, split in zip(counts, ("train", "validation", "test"), strict=True)
        )
        return QuestionSet(train, validation, test, own.answer_type, own.max_new_tokens)
    splits = load_reasoning_dataset(task)
    rows = [list(splits[name])[:count] for name, count in zip(("train", "validation", "test"), counts, strict=True)]
    kind = infer_answer_type([row["answer"] for row in rows[2]])
    return QuestionSet(*rows, kind, settings.max_new_tokens)


def _run_settings(settings, task, method, seed, host, generator):
    own = BENCH_TASKS.get(task)

    def choice(name, default):
        given = getattr(settings, name)
        return given if given is not None else getattr(own, name, default)

    return RunSettings(
        task=task,
        method=method,
        seed=seed,
        host=host,
        generator=generator,
        num_implicit_tokens=choice("num_implicit_tokens", 5),
        steps_per_token=choice("steps_per_token", 1),
        soft_words=_recipe(settings, own),
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rates=tuple(settings.learning_rates),
        search_share=settings.search_share,
        train_questions=settings.train_questions,
        eval_questions=settings.eval_questions,
        validation_questions=settings.validation_questions,
        latency_samples=settings.latency_samples,
        device=settings.device,
    )


def _recipe(settings, task):
    """The task's own, or the default of a dataset, with what the flags say otherwise."""
    recipe = task.soft_words if task is not None else Recipe()
    if settings.num_implicit_tokens is not None:
        recipe = replace(recipe, tokens=None)
    given = {part.name: getattr(settings, f"soft_words_{part.name}") for part in fields(Recipe)}
    if given["layers"] is not None:
        given["layers"] = tuple(given["layers"])
    return replace(recipe, **{name: value for name, value in given.items() if value is not None})
