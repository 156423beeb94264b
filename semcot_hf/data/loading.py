"""`load_reasoning_dataset`: generated tasks, Hub sets and files, all in one schema with real splits."""

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, concatenate_datasets

from ..storage import write_json_lines
from . import cells, hub, schema
from .cells import decoded, no_row, read_cells
from .splits import SPLITS, normalise_question, question_fraction
from .tasks import arithmetic, coin_flip, graph, multiplication

TASKS = {"coin_flip": coin_flip, "arithmetic": arithmetic, "multiplication": multiplication, "graph": graph}

_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
    "eval": ("eval", "evaluation"),
}
# datasets names an importable function in the key of its cache, but leaves its code out of it.
_CODE = "".join(inspect.getsource(module) for module in (schema, hub, cells, sys.modules[__name__]))


def load_reasoning_dataset(
    name_or_path: str | os.PathLike, split: str | None = None, **task_options
) -> Dataset | DatasetDict:
    """Load a dataset in the schema `query, reasoning, condensed_reasoning, answer, steps`.

    `name_or_path` is one of
      - a generated task (`coin_flip`, `arithmetic`, `multiplication`, `graph`). Options: `num_samples` (rows of train,
        10,000 by default; of `split` when one is asked for), `num_validation` and `num_test` (1,000 each), `seed`, and
        the difficulty options of the task's `generate`;
      - a file (JSON, JSONL, CSV, Parquet, or text lines `question||reasoning #### answer`), a folder of files whose
        names tell their splits (train; valid, val, dev; test, eval) such as the paper's `train_42.json` and
        `eval_42.json`, or a folder written by `save_to_disk`;
      - a Hub id: the paper's five (`openai/gsm8k`, `ChilleD/SVAMP`, `ChilleD/MultiArith`, `tau/commonsense_qa`,
        `skrishna/coin_flip`) need no options.
    Options of files and Hub sets: `columns`, a mapping from schema field to the source's column (TRL's `prompt` and
    `completion` are found without it); `config`, the Hub configuration; `num_proc`, the processes that prepare rows;
    `validation_fraction` and `test_fraction` (0.1 each) and `seed`, for what is cut from train, by a hash of the
    question, when the source has no such split. A source whose name says that it is all test or all validation,
    such as `eval_42.json` alone, stays that one split. Text in JSON and CSV, and numbers, stay as they are written.

    Returns:
        The `Dataset` of `split`; without `split`, a `DatasetDict` of train, validation and test.

    Raises:
        ValueError: for an unknown name, split, option or column, or for rows that cannot be read.
        FileNotFoundError: when `name_or_path` looks like a path and nothing is there.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown: choose one of {', '.join(SPLITS)}, or None for all of them.")
    name, path = os.fspath(name_or_path), Path(name_or_path).expanduser()
    if name in TASKS:
        return _generate(name, split, **task_options)
    if path.exists():
        _check_options(name, task_options, _load_path)
        loaded = _load_path(path, **task_options)
    elif re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and path.suffix not in _READERS:
        _check_options(name, task_options, _load_hub)
        loaded = _load_hub(name, **task_options)
    elif len(path.parts) > 1 or path.suffix in _READERS:
        raise FileNotFoundError(f"name_or_path={name!r}: no file or folder is there. Check the path.")
    else:
        raise ValueError(
            f"name_or_path={name!r} is no generated task ({', '.join(TASKS)}), no file or folder, and no Hub id of "
            f"the form owner/name (such as {', '.join(hub.HUB_SETS)}). Check the spelling."
        )
    if split is None:
        return loaded
    return pick_split(loaded, split, name)


def pick_split(splits: Mapping[str, Dataset], split: str, source: str) -> Dataset:
    """Return the rows of `split`.

    Raises:
        ValueError: when `source` has no such split.
    """
    if split not in splits:
        raise ValueError(
            f"split={split!r}: {source!r} has only {', '.join(splits)}. Pass a source with {split} rows: a folder "
            f"with a {split} file or, where a file's name tells the wrong split, the file renamed."
        )
    return splits[split]


def write_splits(splits: Mapping[str, Iterable[Mapping]], folder: str | os.PathLike) -> None:
    """Write each split as `folder/<split>.jsonl`, which `load_reasoning_dataset(folder)` reads.

    Args:
        splits: rows in the schema by the split's name; other columns are left out.
        folder: created when missing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        write_json_lines(folder / f"{name}.jsonl", ({c: row[c] for c in schema.COLUMNS} for row in rows))


def _generate(
    task: str,
    split: str | None,
    *,
    num_samples: int | None = None,
    num_validation: int = 1_000,
    num_test: int = 1_000,
    **options,
) -> Dataset | DatasetDict:
    generate = TASKS[task].generate
    _check_options(task, options, generate, "num_samples", "num_validation", "num_test")
    sizes = {"train": 10_000 if num_samples is None else num_samples, "validation": num_validation, "test": num_test}
    if split is not None and num_samples is not None:
        sizes[split] = num_samples

    def dataset(wanted: str) -> Dataset:
        rows = generate(sizes[wanted], split=wanted, **options)
        return Dataset.from_list(rows, features=schema.FEATURES)

    return dataset(split) if split else DatasetDict({wanted: dataset(wanted) for wanted in SPLITS})


def _check_options(source: str, options: Mapping, function: Callable, *others: str) -> None:
    known = inspect.signature(function).parameters.values()
    known = [option.name for option in known if option.kind is option.KEYWORD_ONLY and option.name != "split"]
    for option, value in options.items():
        if option not in known and option not in others:
            raise ValueError(
                f"{option}={value!r} is no option of {source!r}: choose among {', '.join([*others, *known])}."
            )


def _load_path(
    path: Path,
    *,
    columns: Mapping[str, str] | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    num_proc: int | None = None,
) -> DatasetDict:
    if (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
        saved = datasets.load_from_disk(str(path))
        parts = [(s, rows, None) for s, rows in (saved if isinstance(saved, dict) else {"train": saved}).items()]
    else:
        parts = [
            (split, _read_files(files, reader), _ADAPT.get(reader)) for split, reader, files in _files_by_split(path)
        ]
    splits = _prepare(str(path), parts, columns, num_proc)
    return _complete(str(path), splits, validation_fraction, test_fraction, seed)


def _load_hub(
    name: str,
    *,
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    num_proc: int | None = None,
) -> DatasetDict:
    known = hub.HUB_SETS.get(name)
    try:
        loaded = datasets.load_dataset(name, config or (known.config if known else None))
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"name_or_path={name!r} is no file or folder here, and as a Hub id it cannot be loaded: {error}. Check "
            "the spelling and the connection."
        ) from error
    if known and columns is None:
        missing = [c for c in known.columns for rows in loaded.values() if c not in rows.column_names]
        if missing:
            raise ValueError(
                f"name_or_path={name!r}: its columns have changed, {missing[0]!r} is missing. Pass columns."
            )
        parts = [(ours, loaded[theirs], known.adapt) for ours, theirs in known.splits.items() if theirs in loaded]
    else:
        parts = [(_split_named(split) or "train", rows, None) for split, rows in loaded.items()]
    splits = _prepare(name, parts, columns, num_proc)
    return _complete(name, splits, validation_fraction, test_fraction, seed)


def _split_named(text: str) -> str | None:
    words = re.split(r"[^a-z]+", text.lower())
    return next((split for split, names in _SPLIT_WORDS.items() if any(word in names for word in words)), None)


def split_files(folder: Path) -> list[Path]:
    """Return the files of `folder` that loading it would read as a split."""
    saved = [file for file in (folder / "dataset_dict.json", folder / "dataset_info.json") if file.exists()]
    return saved or [file for file in _data_files(folder) if _split_named(file.stem)]


def _data_files(folder: Path) -> list[Path]:
    files = sorted([*folder.glob("*"), *folder.glob("data/*")])
    return [file for file in files if file.suffix in _READERS and not file.name.startswith(".")]


def _files_by_split(path: Path) -> list[tuple[str, str, list[str]]]:
    """Return (split, reader, files) for one file or for the data files of a folder."""
    files = [path] if path.is_file() else _data_files(path)
    files = [file for file in files if file.suffix in _READERS]
    if not files:
        raise ValueError(f"name_or_path={str(path)!r} has no data file: need one of {', '.join(_READERS)}.")
    named = [(split, file) for file in files if (split := _split_named(file.stem))]
    groups: dict[tuple[str, str], list[str]] = {}
    for split, file in named or [("train", file) for file in files]:
        groups.setdefault((split, _READERS[file.suffix]), []).append(str(file))
    return [(split, reader, group) for (split, reader), group in groups.items()]


def _read_files(files: list[str], reader: str) -> Dataset:
    if reader in ("json", "csv"):
        return read_cells(files, reader, _CODE)
    for file in files if reader == "text" else []:
        with open(file, encoding="utf-8", errors="replace") as lines:
            if not any(line.strip() for line in lines):
                raise no_row(file)
    try:
        rows = datasets.load_dataset(reader, data_files=files, split="train")
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"name_or_path: {', '.join(files)} cannot be read as {reader}: {error.__cause__}.") from error
    return rows.filter(lambda text: bool(text.strip()), input_columns="text") if reader == "text" else rows


def _text_line(row: Mapping) -> dict:
    question, mark, rest = row["text"].partition("||")
    if not mark or "####" not in rest:
        raise ValueError(f"the text line {row['text']!r} is not of the form 'question||reasoning #### answer'.")
    return {"query": question, "answer": rest}


_ADAPT = {"json": decoded, "csv": decoded, "text": _text_line}


def _prepare(
    source: str,
    parts: list[tuple[str, Dataset, Callable | None]],
    columns: Mapping[str, str] | None,
    num_proc: int | None,
) -> dict[str, Dataset]:
    """Map every (split, rows, adapt) to the schema; parts of one split are joined."""
    names = {split for split, _, _ in parts}
    present = [column for _, rows, _ in parts for column in rows.column_names]
    prepared: dict[str, list[Dataset]] = {}
    for split, rows, adapt in parts:
        if split == "eval":
            split = "validation" if "test" in names else "test"
        mapping = {} if adapt not in (None, decoded) else _mapping(source, rows.column_names, present, columns or {})
        rows = rows.map(
            _to_row,
            fn_kwargs={"adapt": adapt, "columns": mapping, "code": _CODE},
            remove_columns=rows.column_names,
            features=schema.FEATURES,
            num_proc=num_proc,
            desc=f"Preparing {split} of {source}",
        )
        prepared.setdefault(split, []).append(rows)
    return {split: concatenate_datasets(rows) for split, rows in prepared.items()}


def _to_row(example: Mapping, adapt: Callable | None, columns: Mapping[str, str], code: str) -> dict:
    fields = adapt(example) if adapt else example
    return schema.to_row(fields, columns or {field: field for field in fields})


def _mapping(source: str, names: list[str], all_names: list[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Return the column of each field that the rows have, the user's choice before the field's own name."""
    fields = (*schema.COLUMNS, "prompt", "completion")
    listed = ", ".join(sorted(set(all_names)))
    for field, column in columns.items():
        if field not in fields:
            raise ValueError(f"columns={dict(columns)!r}: {field!r} is no field; choose among {', '.join(fields)}.")
        if column not in all_names:
            raise ValueError(f"columns={dict(columns)!r}: {source!r} has no column {column!r}, but {listed}.")
    mapping = {field: columns.get(field, field) for field in fields if columns.get(field, field) in names}
    for field, stand_in in (("query", "prompt"), ("answer", "completion")):
        if field in mapping:
            mapping.pop(stand_in, None)
        elif stand_in not in mapping and not (field == "answer" and "reasoning" in mapping):
            raise ValueError(
                f"columns={dict(columns)!r}: {source!r} has no column for {field!r}; its columns are {listed}. "
                f"Pass columns={{{field!r}: '<one of these>'}} (on the command line --columns {field}=<one of these>)."
            )
    return mapping


def _complete(
    source: str, splits: dict[str, Dataset], validation_fraction: float, test_fraction: float, seed: int
) -> DatasetDict:
    """Cut what is missing of test and validation from train."""
    for split, option, fraction in (
        ("test", "test_fraction", test_fraction),
        ("validation", "validation_fraction", validation_fraction),
    ):
        if "train" in splits and split not in splits:
            if not 0 < fraction < 1:
                raise ValueError(f"{option}={fraction} must lie between 0 and 1.")
            splits["train"], splits[split] = _cut(source, splits["train"], split, fraction, seed)
    return DatasetDict({split: splits[split] for split in SPLITS if split in splits})


def _cut(source: str, rows: Dataset, split: str, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Divide `rows` so that the questions of lowest hash, `fraction` of the different ones, form the second part."""
    questions = [normalise_question(question) for question in rows["query"]]
    ranked = sorted(set(questions), key=lambda question: question_fraction(question, seed))
    if len(ranked) < 2:
        raise ValueError(
            f"name_or_path={source!r}: {len(ranked)} different question(s) in train are too few to cut {split} from; "
            f"need 2. Add rows or a {split} file."
        )
    taken = set(ranked[: max(1, round(fraction * len(ranked)))])
    kept = [i for i, question in enumerate(questions) if question not in taken]
    cut = [i for i, question in enumerate(questions) if question in taken]
    return rows.select(kept), rows.select(cut)
