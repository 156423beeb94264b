"""One run of the bench: train one method, search its learning rate, evaluate it; finished runs are kept."""

import copy
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..answers import check_answer
from ..evaluation import Answer, answer_questions, evaluate, measure_latency
from ..inference.settings import WORD_METHODS, thinks_in_words
from ..modeling import SemCoTForCausalLM
from ..storage import as_json, check_same_run, text_digest, write_json
from .catalogue import BENCH_METHODS, PARTS, UNTRAINED
from .methods.training import Trained, TrainingSetup


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a task, the same for every method, and how their answers are checked.

    Args:
        train, validation, test: rows in the dataset schema.
        answer_type: see `check_answer`.
        max_new_tokens: maximum answer length, including explicit reasoning.
    """

    train: list[dict]
    validation: list[dict]
    test: list[dict]
    answer_type: str
    max_new_tokens: int

    def identity(self) -> dict[str, Any]:
        """Return what identifies the questions of a run: rows and digest of each split, and how they are answered."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        digests = {name: {"rows": len(rows), "digest": text_digest(rows)} for name, rows in splits.items()}
        return {**digests, "answer_type": self.answer_type, "max_new_tokens": self.max_new_tokens}


@dataclass(frozen=True)
class RunSettings:
    """Everything that determines a run's result besides its questions; it is only reused where both are the same.

    The fields are those of `BenchSettings` and `TrainingSetup`, for one run; `budget` is one of `budgets`. A run has
    steps * budget * batch_size questions; SemCoT's other stages see further ones, which `seen_questions` of the result
    includes.
    """

    task: str
    method: str
    seed: int
    host: str
    generator: str
    num_implicit_tokens: int
    steps_per_token: int
    coconut: tuple[int, int]
    words_column: str | None
    words_limit: int
    joint_share: float
    steps: int
    batch_size: int
    learning_rates: tuple[float, ...]
    search_share: float
    train_questions: int
    eval_questions: int
    validation_questions: int
    latency_samples: int
    device: str
    budget: float = 1.0

    @property
    def name(self) -> str:
        """The run's name in reports and progress lines."""
        return f"{self.task}/{self.method}/{run_name(self.seed, self.budget)}"

    @property
    def all_steps(self) -> int:
        """Training steps with the budget."""
        return max(1, round(self.steps * self.budget))


def run_name(seed: int, budget: float) -> str:
    """Return the name of a run's folder among those of its method.

    >>> run_name(0, 1.0), run_name(2, 16.0)
    ('seed0', 'seed2-x16')
    """
    return f"seed{seed}" + ("" if budget == 1 else f"-x{budget:g}")


def run_method(
    settings: RunSettings, questions: QuestionSet, folder: str | Path, compiled_latency: bool = False
) -> dict:
    """Train and evaluate a method, or reuse the finished run in `folder`.

    Args:
        settings, questions: what to run.
        folder: of the run; an unfinished run there is made anew, and other files in it stay.
        compiled_latency: also measure a SemCoT model with its generator compiled, and with the forward of both hosts
            (its own and the untouched one) compiled too. A finished run is not measured again for it.

    Returns:
        `settings`; `questions`, as `QuestionSet.identity` gives them; `training`: seconds, seen questions, operations,
        trainable parameters, the generator's size relative to the host, learning rate, losses; `latency`: seconds per
        question and the ratio to the untouched host answering at once, measured in turn; and `report` of `evaluate`.

    Raises:
        ValueError: when the folder holds a finished run of other settings or questions, which stays untouched.
    """
    folder, identity = Path(folder), questions.identity()
    path, work = folder / "run.json", folder / "work"
    if path.exists():
        known = json.loads(path.read_text())
        check_same_run(
            # Runs of earlier versions had one budget, and did not tell all of their questions.
            {"budget": 1.0, **identity, **known["settings"], **known.get("questions", {})},
            {**asdict(settings), **identity},
            place=str(folder),
            remedy="Choose another output_dir, or delete it.",
        )
        return known
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    trains = settings.method != UNTRAINED
    rate, search = _search(settings, questions, folder.parent / "search.json", work) if trains else (0.0, None)
    trained, seconds = _train(settings, questions, rate, settings.all_steps, work)
    report = _evaluate(settings, trained, questions, folder)
    run = {
        "settings": asdict(settings),
        "questions": identity,
        "training": {
            "seconds": round(seconds, 1),
            "seen_questions": trained.seen_questions or trained.trained * settings.all_steps * settings.batch_size,
            "operations": trained.operations,
            "trainable_parameters": trained.trainable_parameters,
            "generator_share": _generator_share(trained.model),
            "learning_rate": rate,
            "search": search,
            "losses": trained.losses,
        },
        "latency": _latency(settings, trained, questions, compiled_latency),
        "report": {key: value for key, value in report.items() if key not in ("latency", "command")},
    }
    shutil.rmtree(work)
    write_json(path, run)
    return json.loads(path.read_text())


def _train(
    settings: RunSettings, questions: QuestionSet, rate: float, steps: int, work: Path
) -> tuple[Trained, float]:
    """Train a fresh copy of the host; return the result and the seconds that it took."""
    shared = ["generator", "num_implicit_tokens", "steps_per_token", "batch_size", "seed", "device"]
    shared += ["coconut", "words_column", "words_limit", "joint_share"]
    setup = TrainingSetup(
        host=_host(settings),
        tokenizer=_tokenizer(settings),
        train_rows=questions.train,
        steps=steps,
        learning_rate=rate,
        work_dir=work,
        **{name: getattr(settings, name) for name in shared},
    )
    start = time.monotonic()
    trained = BENCH_METHODS[settings.method].train(setup)
    trained.model.eval()
    return trained, time.monotonic() - start


def _host(settings: RunSettings) -> PreTrainedModel:
    host: torch.nn.Module = AutoModelForCausalLM.from_pretrained(settings.host)
    return cast(PreTrainedModel, host.to(settings.device))


def _tokenizer(settings: RunSettings) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(settings.host)


def _generator_share(model: torch.nn.Module) -> float | None:
    """Return a SemCoT model's parameters besides its host's, relative to the host's."""
    if not isinstance(model, SemCoTForCausalLM):
        return None
    host = model.host.num_parameters()
    return (model.num_parameters() - host) / host


def _search(
    settings: RunSettings, questions: QuestionSet, path: Path, work: Path
) -> tuple[float, list[list[float]] | None]:
    """Find the learning rate with the highest validation accuracy after a short training, once for each method.

    All budgets share it: the short training is a share of the steps of budget 1.

    Returns:
        The rate, the smallest of several best ones, and all (rate, accuracy) pairs; `None` without a search.
    """
    if len(settings.learning_rates) == 1:
        return settings.learning_rates[0], None
    fixed = {"seed": 0, "eval_questions": 0, "latency_samples": 0}
    asked = as_json({name: fixed.get(name, value) for name, value in asdict(settings).items() if name != "budget"})
    identity = {name: value for name, value in questions.identity().items() if name != "test"}
    known = json.loads(path.read_text()) if path.exists() else {}
    if known.get("settings") == asked and {**identity, **known.get("questions", {})} == identity:
        found = known["accuracy"]
    else:
        steps = max(1, round(settings.steps * settings.search_share))
        found = []
        for rate in sorted(settings.learning_rates):
            trained, _ = _train(replace(settings, seed=0), questions, rate, steps, work)
            found.append([rate, _accuracy(trained, settings, questions, questions.validation)])
        write_json(path, {"settings": asked, "questions": identity, "steps": steps, "accuracy": found})
    best = max(found, key=lambda pair: (pair[1], -pair[0]))
    return best[0], found


def _answers(
    trained: Trained,
    tokenizer: PreTrainedTokenizerBase,
    questions: QuestionSet,
    queries: Sequence[str],
    batch_size: int,
) -> list[Answer]:
    options: dict[str, Any] = {} if trained.answer_prompt is None else {"answer_prompt": trained.answer_prompt}
    return answer_questions(
        # A LatentModel has the interface that answering needs.
        cast(PreTrainedModel, trained.model),
        tokenizer,
        queries,
        method=trained.answered_by,
        batch_size=batch_size,
        max_new_tokens=questions.max_new_tokens,
        **options,
    )


def _accuracy(trained: Trained, settings: RunSettings, questions: QuestionSet, rows: Sequence[dict]) -> float:
    answers = _answers(trained, _tokenizer(settings), questions, [row["query"] for row in rows], 64)
    checked = zip(answers, rows, strict=True)
    return sum(check_answer(answer.output, row["answer"], questions.answer_type) for answer, row in checked) / len(
        rows
    )


def _evaluate(settings: RunSettings, trained: Trained, questions: QuestionSet, folder: Path) -> dict:
    return evaluate(
        cast(PreTrainedModel, trained.model),
        _tokenizer(settings),
        questions.test,
        answer_type=questions.answer_type,
        methods=_evaluated(trained),
        output_dir=folder / "evaluation",
        overwrite=True,
        max_new_tokens=questions.max_new_tokens,
        answer_prompt=trained.answer_prompt,
        latency_samples=0,
        seed=settings.seed,
        model_name=settings.name,
        dataset_name=settings.task,
        progress=False,
    )


def _evaluated(trained: Trained) -> tuple[str, ...]:
    """Return the methods of `AnswerSettings` that a run is evaluated with: its own, and those of its parts."""
    if trained.answered_by != "semcot":
        return (trained.answered_by,)
    return ("no_cot", "semcot", *(WORD_METHODS if thinks_in_words(cast(PreTrainedModel, trained.model)) else ()))


@torch.no_grad()
def _latency(
    settings: RunSettings, trained: Trained, questions: QuestionSet, compiled_latency: bool
) -> dict[str, Any] | None:
    """Measure median seconds per question of the method and of the untouched host answering at once, in turn."""
    if settings.latency_samples == 0:
        return None
    tokenizer, host = _tokenizer(settings), _host(settings)

    def timed(answering: Trained) -> Callable[[list[str]], object]:
        return lambda batch: _answers(answering, tokenizer, questions, batch, 1)

    def method(model: torch.nn.Module) -> Callable[[list[str]], object]:
        return timed(replace(trained, model=model))

    reference = timed(Trained(host, "no_cot", 0))
    calls = {"method": method(trained.model), "host": reference}
    parts = [name for name in PARTS if name in _evaluated(trained) and name != "no_cot"]
    calls |= {name: timed(replace(trained, answered_by=name)) for name in parts}
    if compiled_latency and isinstance(trained.model, SemCoTForCausalLM):
        # torch's limit on compiled graphs is shared by all models.
        torch.compiler.reset()
        # The copy shares its modules with the model.
        compiled = copy.copy(trained.model)
        compiled.compile_generator()
        calls |= {
            "method, generator compiled": method(compiled),
            "method, compiled": _with_compiled_forward(compiled.host, method(compiled)),
            "host, compiled": _with_compiled_forward(host, reference),
        }
    measured = measure_latency(
        calls,
        [row["query"] for row in questions.test[: settings.latency_samples]],
        device=torch.device(settings.device),
        # Compiling happens at the first few lengths.
        warmup=2 if len(calls) == 2 + len(parts) else 4,
    )
    seconds = {name: rows[0]["median"] for name, rows in measured.items()}
    latency = {
        "seconds": seconds["method"],
        "no_cot_seconds": seconds["host"],
        "ratio": seconds["method"] / seconds["host"],
        "samples": settings.latency_samples,
        "parts": {name: seconds[name] / seconds["host"] for name in parts},
    }
    if "method, compiled" in calls:
        latency["compiled_generator_ratio"] = seconds["method, generator compiled"] / seconds["host"]
        latency["compiled_ratio"] = seconds["method, compiled"] / seconds["host, compiled"]
    return latency


def _with_compiled_forward(
    host: PreTrainedModel, answer: Callable[[list[str]], object]
) -> Callable[[list[str]], object]:
    """Return `answer` with the host's forward compiled during each call, and restored after it."""
    forward = torch.compile(host.forward, dynamic=True)

    def timed(batch: list[str]) -> object:
        host.forward = forward
        try:
            return answer(batch)
        finally:
            del host.forward

    return timed
