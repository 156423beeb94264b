"""The demo: a generator learns its words; the pair is saved, evaluated, and reloaded without semcot_hf."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets import DatasetDict
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..data import load_reasoning_dataset
from ..distillation.config import SemCoTDistillationConfig
from ..distillation.trainer import SemCoTDistillationTrainer
from ..evaluation import evaluate
from ..modeling import SemCoTForCausalLM
from ..progress import stage
from ..storage import write_json
from . import GENERATOR_PATH, HOST_PATH

# For a Python process that cannot import semcot_hf, as on the machine of a user without it.
RELOAD = """
import json, sys
sys.modules["semcot_hf"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
folder, questions = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
answer = pipeline("text-generation", model=model, tokenizer=tokenizer)
chats = [[{"role": "user", "content": question}] for question in questions]
replies = answer(chats, max_new_tokens=8, do_sample=False, return_full_text=False)
print(json.dumps([reply[0]["generated_text"].strip() for reply in replies]))
"""

# Rows of the report: host and generator, each alone with and without reasoning, and together.
DEMO_METHODS = ["no_cot", "cot", "semcot", "generator", "generator_no_cot"]


@dataclass
class DemoSettings:
    """Sizes of the demo; an unfinished run continues only with the same ones.

    Args:
        train_samples, eval_samples: numbers of training and test questions of `facts`.
        min_steps, max_steps: number of people who carry the letter.
        max_words: largest number of words in a thought, its end included.
        words_steps, batch_size, learning_rate: of the words phase.
        seed: of the questions and of the training.
    """

    train_samples: int = 12_000
    eval_samples: int = 500
    min_steps: int = 2
    max_steps: int = 5
    max_words: int = 48
    words_steps: int = 400
    batch_size: int = 32
    learning_rate: float = 1e-3
    seed: int = 0


FULL = DemoSettings(train_samples=100_000, eval_samples=2_000, words_steps=8_000)


def run_demo(
    output_dir: str | os.PathLike, settings: DemoSettings, *, overwrite: bool = False, command: str | None = None
) -> tuple[dict, list[tuple[str, str]]]:
    """Train and evaluate; leave `model/`, `report.md`, `report.json` and the plot in `output_dir`.

    All work is done in `<output_dir>.unfinished`, which is renamed to `output_dir` at the end. A run that was stopped
    continues from its last training checkpoint, its trained model or its stored answers.

    Args:
        output_dir: the folder of the result.
        settings: sizes of the demo.
        overwrite: whether to replace an earlier result.
        command: the command line that the report names.

    Returns:
        The report, and three questions with the answers of the process without semcot_hf.

    Raises:
        ValueError: when `output_dir` is not empty and `overwrite` is not set.
        RuntimeError: when the reloaded checkpoint cannot answer.
    """
    output = Path(output_dir)
    if output.exists() and any(output.iterdir()) and not overwrite:
        raise ValueError(f"output_dir={str(output)!r} holds a result already: choose another, or pass --overwrite.")
    work = output.with_name(output.name + ".unfinished")
    _start(work, settings)
    with stage("1/4 task"):
        data = load_reasoning_dataset(
            "facts",
            num_samples=settings.train_samples,
            num_validation=500,
            num_test=settings.eval_samples,
            seed=settings.seed,
            min_steps=settings.min_steps,
            max_steps=settings.max_steps,
        )
    with stage("2/4 words") as update:
        folder = _distill(work, settings, data, update)
    with stage("3/4 evaluation") as update:
        report = evaluate(
            AutoModelForCausalLM.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
            data["test"],
            methods=DEMO_METHODS,
            output_dir=work / "evaluation",
            overwrite=True,
            max_new_tokens=80,
            seed=settings.seed,
            model_name="demo",
            dataset_name="facts",
            command=command,
            progress=lambda _, share: update(share),
        )
    with stage("4/4 reload"):
        answers = _reload(folder, data["test"]["query"][:3])
    for name in ("report.md", "report.json", "accuracy_vs_latency.png"):
        shutil.copy(work / "evaluation" / name, work / name)
    shutil.rmtree(work / "distillation", ignore_errors=True)
    os.remove(work / "settings.json")
    if output.exists():
        shutil.rmtree(output)
    os.replace(work, output)
    return report, answers


def _start(work: Path, settings: DemoSettings) -> None:
    """Create the work folder; one of other settings is deleted."""
    path, wanted = work / "settings.json", asdict(settings)
    if work.exists() and (not path.exists() or json.loads(path.read_text() or "null") != wanted):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


def _distill(work: Path, settings: DemoSettings, data: DatasetDict, update: Callable[[float], None]) -> Path:
    """Teach the generator its words, from the last checkpoint, unless the model exists, and return its folder."""
    folder, runs = work / "model", work / "distillation"
    if not folder.exists():
        tokenizer = AutoTokenizer.from_pretrained(str(HOST_PATH))
        trainer = SemCoTDistillationTrainer(
            model=SemCoTForCausalLM.from_host_generator_pretrained(
                str(HOST_PATH),
                str(GENERATOR_PATH),
                recipe="words",
                tokenizer=tokenizer,
                num_implicit_tokens=settings.max_words,
            ),
            args=SemCoTDistillationConfig(
                str(runs),
                words_max_steps=settings.words_steps,
                # The towns alone are not learned in so few steps: nothing in them says which move comes next.
                words_column="reasoning",
                words_learning_rate=settings.learning_rate,
                num_train_epochs=0,
                alpha=0.0,
                per_device_train_batch_size=settings.batch_size,
                warmup_steps=50,
                include_host=True,
                seed=settings.seed,
                save_steps=100,
                save_total_limit=1,
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset=data["train"],
            processing_class=tokenizer,
        )
        _train(trainer, folder, update, resume=any(runs.glob("checkpoint-*")))
    return folder


def _train(trainer: Trainer, folder: Path, update: Callable[[float], None], resume: bool = False) -> None:
    """Train and save into `folder`, which appears as a whole."""
    trainer.add_callback(_StageCallback(update))
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    unfinished = folder.with_suffix(".tmp")
    trainer.save_model(str(unfinished))
    os.replace(unfinished, folder)


class _StageCallback(TrainerCallback):
    """Report a trainer's share of steps done to the display of its stage."""

    def __init__(self, update: Callable[[float], None]):
        self.update = update

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.update(state.global_step / state.max_steps)


def _reload(folder: Path, questions: list[str]) -> list[tuple[str, str]]:
    """Return (question, answer) pairs from a new process in which semcot_hf cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, str(folder.resolve()), json.dumps(questions)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode != 0:
        raise RuntimeError(f"the reloaded checkpoint in {folder} failed:\n{done.stderr[-2000:]}")
    return list(zip(questions, json.loads(done.stdout.strip().splitlines()[-1]), strict=True))
