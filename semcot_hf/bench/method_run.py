"""One training and evaluation of one method, and the small search that comes before it; finished ones are kept."""

import copy
import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..answers import check_answer
from ..evaluation import answer_questions, evaluate, measure_latency
from ..modeling import SemCoTForCausalLM
from ..storage import as_json, text_digest, write_json
from .catalogue import BENCH_METHODS
from .methods.training import TrainingSetup
from .recipe import Recipe


@dataclass(frozen=True)
class QuestionSet:
    """The rows that every method of a task gets, and how they are judged.

    Args:
        train, validation, test: rows in the dataset schema.
        answer_type: of `check_answer`.
        max_new_tokens: longest answer, explicit reasoning included.
    """

    train: list[dict]
    validation: list[dict]
    test: list[dict]
    answer_type: str
    max_new_tokens: int

    def split_digests(self) -> dict:
        """The number of rows of each split and a digest of them, by which runs of other questions are told apart."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: {"rows": len(rows), "digest": text_digest(rows)} for name, rows in splits.items()}


@dataclass(frozen=True)
class RunSettings:
    """What decides a run's result; a finished run is taken over only under the same ones.

    Args:
        task, method, seed: which run.
        host, generator: folders or ids.
        num_implicit_tokens, steps_per_token, soft_words: see `TrainingSetup`.
        steps, batch_size: the budget, steps * batch_size seen questions; SemCoT's other stages see some on top, which
            `seen_questions` of the result counts.
        learning_rates: candidates of the search; with one there is no search.
        search_share: share of the steps that each candidate is trained for.
        train_questions, eval_questions, validation_questions: numbers of different questions, at most.
        latency_samples: questions whose latency is measured.
        device: where it runs.
    """

    task: str
    method: str
    seed: int
    host: str
    generator: str
    num_implicit_tokens: int
    steps_per_token: int
    soft_words: Recipe
    steps: int
    batch_size: int
    learning_rates: tuple[float, ...]
    search_share: float
    train_questions: int
    eval_questions: int
    validation_questions: int
    latency_samples: int
    device: str

    @property
    def name(self):
        return f"{self.task}/{self.method}/seed{self.seed}"


def run_method(settings: RunSettings, questions: QuestionSet, folder, compiled_latency: bool = False) -> dict:
    """Train and evaluate, or take the finished run over from `folder`; returns its figures.

    The figures are those of `evaluate`'s report with `training`: seconds, seen questions, operations, trainable
    parameters, the generator's size in those of the host, learning rate, losses; `questions`: the number of rows of
    each split and their digest; and `latency`: seconds per question against the untouched host's answer at once,
    measured in turn.

    Args:
        compiled_latency: measure a SemCoT model in two ways more: with its generator compiled, and with the hosts'
            forward compiled too, its own and the untouched one. A finished run is not measured again for it.

    Raises:
        ValueError: when the folder holds a finished run of other settings or questions, which stays untouched.
    """
    folder, told = Path(folder), questions.split_digests()
    path = folder / "run.json"
    if path.exists():
        known, wanted = json.loads(path.read_text()), as_json(asdict(settings))
        if known["settings"] == wanted:
            other = [split for split in told if known.get("questions", told)[split] != told[split]]
            if not other:
                return known
            raise ValueError(
                f"{folder} holds a finished run of other questions ({', '.join(other)}): choose another output_dir, "
                "or delete it."
            )
        differing = {
            name: known["settings"].get(name) for name in wanted if known["settings"].get(name) != wanted[name]
        }
        raise ValueError(
            f"{folder} holds a finished run of other settings ({differing}): choose another output_dir, or delete it."
        )
    work = folder / "work"
    shutil.rmtree(folder, ignore_errors=True)
    work.mkdir(parents=True)
    rate, search = _search(settings, questions, folder.parent / "search.json", work)
    trained, seconds = _train(settings, questions, rate, settings.steps, work)
    report = _evaluate(settings, trained, questions, folder)
    run = {
        "settings": asdict(settings),
        "questions": told,
        "training": {
            "seconds": round(seconds, 1),
            "seen_questions": trained.seen_questions or settings.steps * settings.batch_size,
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


def _train(settings, questions, rate, steps, work):
    """A trained model from a fresh copy of the host, and the seconds that its training took."""
    setup = TrainingSetup(
        host=AutoModelForCausalLM.from_pretrained(settings.host).to(settings.device),
        generator=settings.generator,
        tokenizer=AutoTokenizer.from_pretrained(settings.host),
        train_rows=questions.train,
        num_implicit_tokens=settings.num_implicit_tokens,
        steps_per_token=settings.steps_per_token,
        soft_words=settings.soft_words,
        steps=steps,
        batch_size=settings.batch_size,
        learning_rate=rate,
        seed=settings.seed,
        device=settings.device,
        work_dir=work,
    )
    began = time.monotonic()
    trained = BENCH_METHODS[settings.method].train(setup)
    trained.model.eval()
    return trained, time.monotonic() - began


def _generator_share(model):
    """Parameters of a SemCoT model beside its host's, word embeddings and projection included, over the host's."""
    if not isinstance(model, SemCoTForCausalLM):
        return None
    host = model.host.num_parameters()
    return (model.num_parameters() - host) / host


def _search(settings, questions, path, work):
    """The learning rate that answers most validation questions, after a short training each; one search a method.

    Of equal ones the smaller wins.
    """
    if len(settings.learning_rates) == 1:
        return settings.learning_rates[0], None
    asked = as_json({**asdict(settings), "seed": 0, "eval_questions": 0, "latency_samples": 0})
    told = {split: rows for split, rows in questions.split_digests().items() if split != "test"}
    known = json.loads(path.read_text()) if path.exists() else {}
    if known.get("settings") == asked and known.get("questions", told) == told:
        found = known["accuracy"]
    else:
        steps = max(1, round(settings.steps * settings.search_share))
        found = []
        for rate in sorted(settings.learning_rates):
            trained, _ = _train(replace(settings, seed=0), questions, rate, steps, work)
            found.append([rate, _accuracy(trained, settings, questions, questions.validation)])
        write_json(path, {"settings": asked, "questions": told, "steps": steps, "accuracy": found})
    best = max(found, key=lambda pair: (pair[1], -pair[0]))
    return best[0], found


def _answers(trained, tokenizer, questions, queries, batch_size):
    options = {} if trained.answer_prompt is None else {"answer_prompt": trained.answer_prompt}
    return answer_questions(
        trained.model,
        tokenizer,
        queries,
        method=trained.answered_by,
        batch_size=batch_size,
        max_new_tokens=questions.max_new_tokens,
        **options,
    )


def _accuracy(trained, settings, questions, rows):
    tokenizer = AutoTokenizer.from_pretrained(settings.host)
    answers = _answers(trained, tokenizer, questions, [row["query"] for row in rows], 64)
    right = [
        check_answer(answer.output, row["answer"], questions.answer_type)
        for answer, row in zip(answers, rows, strict=True)
    ]
    return sum(right) / len(right)


def _evaluate(settings, trained, questions, folder):
    semcot = trained.answered_by == "semcot"
    return evaluate(
        trained.model,
        AutoTokenizer.from_pretrained(settings.host),
        questions.test,
        answer_type=questions.answer_type,
        methods=("no_cot", "semcot") if semcot else (trained.answered_by,),
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


@torch.no_grad()
def _latency(settings, trained, questions, compiled_latency):
    """Median seconds per question of the method and of the untouched host that answers at once, in turn."""
    if settings.latency_samples == 0:
        return None
    tokenizer = AutoTokenizer.from_pretrained(settings.host)
    host = AutoModelForCausalLM.from_pretrained(settings.host).to(settings.device)

    def reference(batch):
        return answer_questions(
            host, tokenizer, batch, method="no_cot", batch_size=1, max_new_tokens=questions.max_new_tokens
        )

    def method(model):
        return lambda batch: _answers(replace(trained, model=model), tokenizer, questions, batch, 1)

    calls = {"method": method(trained.model), "host": reference}
    if compiled_latency and isinstance(trained.model, SemCoTForCausalLM):
        # Only so many graphs are kept, whosever they are.
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
        # Compiling takes the first few lengths.
        warmup=2 if len(calls) == 2 else 4,
    )
    seconds = {name: rows[0]["median"] for name, rows in measured.items()}
    latency = {
        "seconds": seconds["method"],
        "no_cot_seconds": seconds["host"],
        "ratio": seconds["method"] / seconds["host"],
        "samples": settings.latency_samples,
    }
    if len(calls) > 2:
        latency["compiled_generator_ratio"] = seconds["method, generator compiled"] / seconds["host"]
        latency["compiled_ratio"] = seconds["method, compiled"] / seconds["host, compiled"]
    return latency


def _with_compiled_forward(host, answer):
    """`answer`, whose calls find the host's forward compiled, and leave the host as it was."""
    forward = torch.compile(host.forward, dynamic=True)

    def timed(batch):
        host.forward = forward
        try:
            return answer(batch)
        finally:
            del host.forward

    return timed
