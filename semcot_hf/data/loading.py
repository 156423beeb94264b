"""`load_reasoning_dataset`: generated tasks, Hub sets and files in one schema with separate splits."""

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, concatenate_datasets

from ..storage import write_json_lines
from . import hub, reading, schema
from .splits import SPLITS, normalise_question, question_fraction
from .tasks import GENERATED_TASKS

# The cache key of datasets contains the name of an importable function, but not its code.
_CODE = "".join(inspect.getsource(module) for module in (schema, hub, reading, sys.modules[__name__]))

# Split, rows, and the function that turns a row into fields of the schema.
_Part = tuple[str, Dataset, Callable[[Mapping], dict] | None]


def load_reasoning_dataset(
    name_or_path: str | os.PathLike, split: str | None = None, **task_options: Any
) -> Dataset | DatasetDict:
    """Load a dataset in the schema `query, reasoning, condensed_reasoning, answer, steps`.

    `name_or_path` is one of
      - a generated task (`facts`, `elements`, `coin_flip`, `arithmetic`, `multiplication`, `graph`, `countdown`).
        Options: `num_samples` (rows of train, 10,000 by default; of `split` when given), `num_validation` and
        `num_test` (1,000 each), `seed`, and the difficulty options of the task's `generate`;
      - a file (JSON, JSONL, CSV, Parquet, or text lines `question||reasoning #### answer`), a folder of files named
        after their splits (train; valid, val, dev; test, eval) such as the paper's `train_42.json` and `eval_42.json`,
        or a folder written by `save_to_disk`;
      - a Hub id: the paper's five (`openai/gsm8k`, `ChilleD/SVAMP`, `ChilleD/MultiArith`, `tau/commonsense_qa`,
        `skrishna/coin_flip`) need no options.
    Options of files and Hub sets: `columns`, a mapping from schema field to the source's column (TRL's `prompt` and
    `completion` are found without it); `config`, the Hub configuration; `num_proc`, the number of processes that
    prepare rows; `validation_fraction` and `test_fraction` (0.1 each) and `seed`, for splits that the source lacks:
    they are cut from train by a hash of the question. A source named after one split, such as `eval_42.json` alone,
    stays that one split. Texts in JSON and CSV, and numbers, are kept exactly as written.

    Returns:
        The `Dataset` of `split`; without `split`, a `DatasetDict` of train, validation and test.

    Raises:
        ValueError: for an unknown name, split, option or column, or for rows that cannot be read.
        FileNotFoundError: when `name_or_path` looks like a path and nothing is there.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown: choose one of {', '.join(SPLITS)}, or None for all of them.")
    name, path = os.fspath(name_or_path), Path(name_or_path).expanduser()
    if name in GENERATED_TASKS:
        return _generate(name, split, **task_options)
    if path.exists():
        _check_options(name, task_options, _assemble)
        loaded = _assemble(str(path), _path_parts(path), **task_options)
    elif re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and path.suffix not in reading.READERS:
        _check_options(name, task_options, _assemble, "config")
        parts = _hub_parts(name, task_options.pop("config", None), task_options.get("columns"))
        loaded = _assemble(name, parts, **task_options)
    elif len(path.parts) > 1 or path.suffix in reading.READERS:
        raise FileNotFoundError(f"name_or_path={name!r}: no file or folder is there. Check the path.")
    else:
        raise ValueError(
            f"name_or_path={name!r} is no generated task ({', '.join(GENERATED_TASKS)}), no file or folder, and no "
            f"Hub id of the form owner/name (such as {', '.join(hub.HUB_SETS)}). Check the spelling."
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
            f"with a {split} file or, where a file's name says another split, the file renamed."
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
    **options: Any,
) -> Dataset | DatasetDict:
    generate = GENERATED_TASKS[task].generate
    _check_options(task, options, generate, "num_samples", "num_validation", "num_test")
    sizes = {"train": 10_000 if num_samples is None else num_samples, "validation": num_validation, "test": num_test}
    if split is not None and num_samples is not None:
        sizes[split] = num_samples

    def dataset(wanted: str) -> Dataset:
        rows = generate(sizes[wanted], split=wanted, **options)
        return Dataset.from_list(rows, features=schema.FEATURES)

    return dataset(split) if split else DatasetDict({wanted: dataset(wanted) for wanted in SPLITS})


def _check_options(source: str, options: Mapping, function: Callable, *others: str) -> None:
    parameters = inspect.signature(function).parameters.values()
    known = [option.name for option in parameters if option.kind is option.KEYWORD_ONLY and option.name != "split"]
    for option, value in options.items():
        if option not in known and option not in others:
            raise ValueError(
                f"{option}={value!r} is no option of {source!r}: choose among {', '.join([*others, *known])}."
            )


def _path_parts(path: Path) -> list[_Part]:
    if (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
        saved = datasets.load_from_disk(str(path))
        return [(s, rows, None) for s, rows in (saved if isinstance(saved, dict) else {"train": saved}).items()]
    return [
        (split, reading.read_files(files, reader, _CODE), reading.ADAPTERS.get(reader))
        for split, reader, files in reading.files_by_split(path)
    ]


def _hub_parts(name: str, config: str | None, columns: Mapping[str, str] | None) -> list[_Part]:
    known = hub.HUB_SETS.get(name)
    try:
        loaded = datasets.load_dataset(name, config or (known.config if known else None))
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"name_or_path={name!r} is no file or folder here, and as a Hub id it cannot be loaded: {error}. Check "
            "the spelling and the connection."
        ) from error
    if known is None or columns is not None:
        return [(reading.split_named(split) or "train", rows, None) for split, rows in loaded.items()]
    parts: list[_Part] = []
    for ours, theirs in known.splits.items():
        if theirs in loaded:
            rows = loaded[theirs]
            missing = [column for column in known.columns if column not in rows.column_names]
            if missing:
                raise ValueError(
                    f"name_or_path={name!r}: its columns have changed, {missing[0]!r} is missing. Pass columns."
                )
            rows = rows.select_columns(list(known.columns))
            if known.adapt is None:
                rows = rows.rename_columns(dict(zip(known.columns, ("query", "answer"), strict=True)))
            parts.append((ours, rows, known.adapt))
    return parts


def _assemble(
    source: str,
    parts: Sequence[_Part],
    *,
    columns: Mapping[str, str] | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    num_proc: int | None = None,
) -> DatasetDict:
    """Map the parts to the schema, join those of one split, and cut missing test and validation from train."""
    names = {split for split, _, _ in parts}
    present = [column for _, rows, _ in parts for column in rows.column_names]
    prepared: dict[str, list[Dataset]] = {}
    for split, rows, adapt in parts:
        if split == "eval":
            split = "validation" if "test" in names else "test"
        mapping = (
            {} if adapt not in (None, reading.decoded) else _mapping(source, rows.column_names, present, columns or {})
        )
        rows = rows.map(
            _to_row,
            fn_kwargs={"adapt": adapt, "columns": mapping, "code": _CODE},
            remove_columns=rows.column_names,
            features=schema.FEATURES,
            num_proc=num_proc,
            desc=f"Preparing {split} of {source}",
        )
        prepared.setdefault(split, []).append(rows)
    splits = {split: concatenate_datasets(rows) for split, rows in prepared.items()}
    for split, fraction in (("test", test_fraction), ("validation", validation_fraction)):
        if "train" in splits and split not in splits:
            if not 0 < fraction < 1:
                raise ValueError(f"{split}_fraction={fraction} must lie between 0 and 1.")
            splits["train"], splits[split] = _cut(source, splits["train"], split, fraction, seed)
    return DatasetDict({split: splits[split] for split in SPLITS if split in splits})


def _to_row(example: Mapping, adapt: Callable | None, columns: Mapping[str, str], code: str) -> dict:
    fields = adapt(example) if adapt else example
    return schema.to_row(fields, columns or {field: field for field in fields})


def _mapping(source: str, names: list[str], all_names: list[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Return the column of each field that the rows have: the user's choice, else the column named like the field."""
    fields = (*schema.COLUMNS, "prompt", "completion")
    listed = ", ".join(sorted(set(all_names)))
    for field, column in columns.items():
        if field not in fields:
            raise ValueError(f"columns={dict(columns)!r}: {field!r} is no field; choose among {', '.join(fields)}.")
        if column not in all_names:
            raise ValueError(f"columns={dict(columns)!r}: {source!r} has no column {column!r}, but {listed}.")
    mapping = {field: columns.get(field, field) for field in fields if columns.get(field, field) in names}
    for field, stand_in in (("query", "prompt"), ("answer", "completion")):
        if not {field, stand_in} & set(mapping) and not (field == "answer" and "reasoning" in mapping):
            raise ValueError(
                f"columns={dict(columns)!r}: {source!r} has no column for {field!r}; its columns are {listed}. "
                f"Pass columns={{{field!r}: '<one of these>'}} (on the command line --columns {field}=<one of these>)."
            )
    return mapping


def _cut(source: str, rows: Dataset, split: str, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Divide `rows` into a first part and a second part with the `fraction` of questions of lowest hash."""
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
