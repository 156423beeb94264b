"""`semcot bench alignment`: the runs that are not done yet, the best encoder, what it is good for, and the report."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from datasets import Dataset, disable_progress_bars
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from ...alignment.config import SemCoTAlignmentConfig
from ...alignment.data import hold_out, reasoning_pairs
from ...alignment.decoder_layers import backbone_of, layer_list
from ...alignment.encoder import load_alignment_encoder
from ...storage import Journal
from .alphas import AlphaRuns, compare_alphas
from .embeddings import embed_and_plot
from .report import save_report
from .runs import SweepInputs, key_of, run_point
from .settings import FACTORS, AlignmentBenchSettings, Point, plan

if TYPE_CHECKING:
    from peft import PeftConfig

RUNS = "runs.jsonl"
# Of the runs' own files, in the folder of the sweep, which may hold what is not the sweep's.
WORK = ".alignment-sweep"


def sweep_alignment(
    settings: AlignmentBenchSettings,
    splits: Mapping[str, Dataset],
    host: str,
    generator: str,
    args: SemCoTAlignmentConfig,
    peft_config: "Callable[[], PeftConfig | None]" = lambda: None,
    command: str = "semcot bench alignment",
    progress: Callable[[str], object] = print,
) -> dict:
    """Sweep the settings of stage 1 one at a time, and write runs.jsonl, report.md, report.json and embeddings.png.

    Runs that `runs.jsonl` in `args.output_dir` holds are not made again; those of other settings stay in it. Of their
    encoders only the best is kept, in the folder that the report names; what else is in there stays. No run sees the
    test split; only `alphas` answers its questions.

    Args:
        settings: what is swept.
        splits: `train` and, where there are any, `validation` and `test` rows; without validation rows
            `args.validation_fraction` of the training rows is held out.
        host, generator: id or path of the models; the generator is needed for `alphas`.
        args: the centre of the sweep.
        peft_config: returns new adapters, or `None` for whole layers.
        command: the command that the report names.
        progress: called with one line of text for each run.

    Returns:
        The report: `command`, `pairs`, `rows` (each `factor`, `value`, `label` and the record of `run_point`), `best`
        and `encoder`, `embeddings`, `alphas`.

    Raises:
        ValueError: for settings out of range, or pairs that `reasoning_pairs` refuses.
    """
    disable_progress_bars()
    folder = Path(str(args.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    train, validation = _pairs(splits, args)
    model = AutoModelForCausalLM.from_pretrained(host, **cast(dict, args.model_init_kwargs or {}))
    points = plan(settings, args, len(layer_list(backbone_of(model))[1]))
    tokenizer, work = AutoTokenizer.from_pretrained(host), folder / WORK
    inputs = SweepInputs(model, tokenizer, train, validation, args, peft_config, work)
    sweep = _Sweep(inputs, folder, progress)
    rows = sweep.rows(points)
    if settings.combine:
        rows += sweep.rows([point for point in [_best_of_each(points, rows)] if point not in points])
    best = max((row for row in rows if row["factor"] != "untrained"), key=lambda row: row["retrieval"]["mrr"])
    encoder_folder = sweep.encoder_of(best)
    report = {
        "command": command,
        "pairs": {name: best["config"][name]["pairs"] for name in ("train", "validation")},
        "rows": rows,
        "best": best["label"],
        "encoder": str(encoder_folder),
        "alphas": None,
    }
    # The host's memory is needed for what follows.
    del model, inputs.host
    if settings.alphas:
        data = {"train": train, "validation": validation, **({"test": splits["test"]} if "test" in splits else {})}
        runs = AlphaRuns(folder / "alphas", host, generator, encoder_folder, settings, args.seed)
        report["alphas"] = compare_alphas(runs, data, progress)
    shown = {"given": settings.model} if settings.model else _models_of(report["alphas"])
    encoder = load_alignment_encoder(SentenceTransformer(str(encoder_folder)))
    report["embeddings"] = embed_and_plot(encoder, validation, shown, settings.plot_samples, folder)
    save_report(report, folder)
    return report


class _Sweep:
    """The runs in a folder: done ones from its journal, others made; of their encoders it keeps the best."""

    def __init__(self, inputs: SweepInputs, folder: Path, progress: Callable[[str], object]):
        self.inputs, self.folder, self.progress = inputs, folder, progress
        self.best = -1.0
        # Of all runs in the journal.
        self.keys: set[str] = set()

    def rows(self, points: list[Point]) -> list[dict]:
        """Return a row for each run; those that are not in the journal are made."""
        rows = []
        with Journal(self.folder / RUNS) as journal:
            done = {key_of(record["config"]): record for record in journal.read()}
            self.keys |= set(done)
            wanted = [key_of(self.inputs.config_of(point)) for point in points]
            if known := sum(key in done for key in wanted):
                self.progress(f"{known} of {len(points)} runs are done already.")
            for point, key in zip(points, wanted, strict=True):
                if point.trained and key in done:
                    self.best = max(self.best, done[key]["retrieval"]["mrr"])
            for number, (point, key) in enumerate(zip(points, wanted, strict=True), start=1):
                if key not in done:
                    shutil.rmtree(self.inputs.work, ignore_errors=True)
                    record = run_point(point, self.inputs, lambda trainer, made: self._save_best(trainer, made))
                    journal.append(record)
                    done[key] = record
                    self.keys.add(key)
                    told = f"MRR {record['retrieval']['mrr']:.3f} in {record['seconds']:.0f} s"
                    self.progress(f"{number}/{len(points)} {point.label}: {told}")
                rows.append(_row(point, done[key]))
        shutil.rmtree(self.inputs.work, ignore_errors=True)
        return rows

    def _save_best(self, trainer: Any, record: dict) -> None:
        """Save an encoder that is better than those of the other runs, and drop theirs."""
        if record["config"]["trained"] and record["retrieval"]["mrr"] > self.best:
            self._save(trainer, record)
            self._drop_others(self._folder(record))
            self.best = record["retrieval"]["mrr"]

    def _save(self, trainer: Any, record: dict) -> None:
        folder = self._folder(record)
        unfinished = self.inputs.work / "encoder"
        trainer.save_model(str(unfinished))
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)

    def _folder(self, record: dict) -> Path:
        return self._folder_of(key_of(record["config"]))

    def _folder_of(self, key: str) -> Path:
        return self.folder / f"encoder-{key}"

    def encoder_of(self, row: dict) -> Path:
        """Return the folder of a run's encoder, which is trained again if it was not kept, and drop all others."""
        folder = self._folder(row)
        if not folder.is_dir():
            self.progress(f"{row['label']}: its encoder was not kept and is trained again.")
            run_point(Point(row["factor"], _values(row)), self.inputs, lambda trainer, _: self._save(trainer, row))
            shutil.rmtree(self.inputs.work, ignore_errors=True)
        self._drop_others(folder)
        return folder

    def _drop_others(self, folder: Path) -> None:
        for other in map(self._folder_of, self.keys):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)


def _pairs(splits: Mapping[str, Dataset], args: SemCoTAlignmentConfig) -> tuple[Dataset, Dataset]:
    """Return training and validation rows with both texts, and with their other columns."""
    train = _with_both(splits["train"], "train_dataset")
    if "validation" in splits:
        return train, _with_both(splits["validation"], "eval_dataset")
    return hold_out(train, args.validation_fraction)


def _with_both(dataset: Dataset, name: str) -> Dataset:
    # `reasoning_pairs` checks the columns, and drops those that stage 2 needs.
    reasoning_pairs(dataset, name)
    wanted = [
        index
        for index, pair in enumerate(zip(dataset["reasoning"], dataset["condensed_reasoning"], strict=True))
        if all(text and text.strip() for text in pair)
    ]
    return dataset.select(wanted)


def _row(point: Point, record: dict) -> dict:
    value = point.values[point.factor] if point.factor in FACTORS else None
    return {"factor": point.factor, "value": value, "label": point.label, "values": point.values, **record}


def _values(row: dict) -> dict:
    return {**row["values"], "layers": tuple(row["values"]["layers"])}


def _best_of_each(points: list[Point], rows: list[dict]) -> Point:
    """Return the best value of each factor together; the centre's is the first of equal ones."""
    centre, values = points[1].values, {}
    for factor in FACTORS:
        of_factor = [row for row in rows if row["factor"] in ("centre", factor)]
        values[factor] = max(of_factor, key=lambda row: row["retrieval"]["mrr"])["values"][factor]
    same = [point for point in points if point.trained and point.values == values]
    return same[0] if same else Point("best of each", {name: values[name] for name in centre})


def _models_of(alphas: dict | None) -> dict[str, str]:
    """Return the checkpoints of the alphas, by name."""
    return {} if alphas is None else {f"alpha {row['alpha']:g}": row["model"] for row in alphas["rows"]}
