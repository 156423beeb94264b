"""Every kind of source loads in one schema with real, disjoint splits."""

import json

import datasets
import pytest
from datasets import Dataset, DatasetDict

from semcot_hf.data import COLUMNS, SPLITS, load_reasoning_dataset, normalise_question
from semcot_hf.data.loading import pick_split
from semcot_hf.data.tasks import coin_flip


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets_cache"))


def questions(count, word="What is"):
    return [
        {"query": f"{word} {i} + {i}?", "reasoning": f"<<{i}+{i}={2 * i}>>", "answer": 2 * i} for i in range(count)
    ]


def write(path, rows):
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    return path


def normalised(rows):
    return {normalise_question(query) for query in rows["query"]}


def assert_sound(loaded):
    assert list(loaded) == list(SPLITS)
    for rows in loaded.values():
        assert tuple(rows.column_names) == COLUMNS and len(rows) > 0
        assert isinstance(rows[0]["steps"], list) and all(isinstance(rows[0][name], str) for name in COLUMNS[:4])
    assert not normalised(loaded["train"]) & normalised(loaded["validation"])


# Generated tasks


@pytest.mark.parametrize("task", ["coin_flip", "arithmetic", "multiplication", "graph", "facts", "elements"])
def test_generated_tasks(task):
    loaded = load_reasoning_dataset(task, num_samples=60, num_validation=20, num_test=30, seed=3)
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 60, "validation": 20, "test": 30}
    assert_sound(loaded)
    assert not normalised(loaded["train"]) & normalised(loaded["test"])
    test = load_reasoning_dataset(task, split="test", num_samples=10, seed=3)
    assert isinstance(test, Dataset) and test[:] == loaded["test"][:10]


def test_generated_task_options():
    rows = load_reasoning_dataset("coin_flip", split="train", num_samples=40, min_people=4, max_people=5)
    assert rows.to_list() == coin_flip.generate(40, min_people=4, max_people=5)
    with pytest.raises(ValueError, match="max_peple=5 is no option of 'coin_flip': choose among .*max_people"):
        load_reasoning_dataset("coin_flip", max_peple=5)


# Files


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_one_file_is_cut_by_question(tmp_path, suffix):
    rows = questions(100)
    path = tmp_path / f"sums{suffix}"
    if suffix == ".csv":
        Dataset.from_list(rows).to_csv(path)
    elif suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        write(path, rows)
    loaded = load_reasoning_dataset(path)
    assert_sound(loaded)
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 81, "validation": 9, "test": 10}
    assert set().union(*(rows["query"] for rows in loaded.values())) == {row["query"] for row in rows}
    row = loaded["train"][0]
    number = row["query"].split()[2]
    assert row["answer"] == str(2 * int(number)) and row["steps"] == [row["reasoning"]]
    assert row["condensed_reasoning"] == ""


def test_validation_depends_on_the_question_and_the_seed_alone(tmp_path):
    rows = questions(60) + questions(20)
    one = load_reasoning_dataset(write(tmp_path / "a.jsonl", rows))
    other = load_reasoning_dataset(write(tmp_path / "b.jsonl", rows[::-1]))
    assert set(one["validation"]["query"]) == set(other["validation"]["query"])
    reseeded = load_reasoning_dataset(tmp_path / "a.jsonl", seed=1)
    assert set(one["validation"]["query"]) != set(reseeded["validation"]["query"])
    assert_sound(one)


def test_validation_has_at_least_one_question_and_fractions_are_options(tmp_path):
    loaded = load_reasoning_dataset(write(tmp_path / "few.jsonl", questions(4)))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 2, "validation": 1, "test": 1}
    path = write(tmp_path / "many.jsonl", questions(40))
    loaded = load_reasoning_dataset(path, validation_fraction=0.5, test_fraction=0.25, num_proc=2)
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 15, "validation": 15, "test": 10}
    with pytest.raises(ValueError, match="validation_fraction=1.5 must lie between 0 and 1"):
        load_reasoning_dataset(path, validation_fraction=1.5)
    with pytest.raises(ValueError, match=r"1 different question\(s\) in train are too few to cut test from"):
        load_reasoning_dataset(write(tmp_path / "one.jsonl", questions(1)))


def test_paper_files(tmp_path):
    write(
        tmp_path / "train_42.json",
        [{**row, "full_answer": "x", "condensed_reasoning": "sum"} for row in questions(30)],
    )
    write(tmp_path / "eval_42.json", [{**row, "full_answer": "x"} for row in questions(8, "How much is")])
    loaded = load_reasoning_dataset(tmp_path)
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 27, "validation": 3, "test": 8}
    assert_sound(loaded)
    assert set(loaded["train"]["condensed_reasoning"]) == {"sum"}
    assert set(loaded["test"]["condensed_reasoning"]) == {""}
    alone = load_reasoning_dataset(tmp_path / "eval_42.json")
    assert list(alone) == ["test"] and len(alone["test"]) == 8
    with pytest.raises(ValueError, match="split='train': .*eval_42.json' has only test. Pass a source with train"):
        load_reasoning_dataset(tmp_path / "eval_42.json", split="train")


def test_equation_files(tmp_path):
    line = "Bo has {0} figs,  eats one?||<<{0}-1={1}>> <<{1}+0={1}>> #### {1}\n"
    for name, start in (("train", 100), ("valid", 200), ("test", 300)):
        (tmp_path / f"{name}.txt").write_text("".join(line.format(i, i - 1) for i in range(start, start + 5)) + "\n")
    loaded = load_reasoning_dataset(tmp_path)
    assert_sound(loaded)
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 5, "validation": 5, "test": 5}
    assert loaded["test"][0] == {
        "query": "Bo has 300 figs,  eats one?",
        "reasoning": "<<300-1=299>> <<299+0=299>>",
        "condensed_reasoning": "",
        "answer": "299",
        "steps": ["<<300-1=299>>", "<<299+0=299>>"],
    }
    (tmp_path / "notes.txt").write_text("just words\n")
    with pytest.raises(ValueError, match="'just words' is not of the form 'question||reasoning #### answer'"):
        load_reasoning_dataset(tmp_path / "notes.txt")


# Readers that infer types would alter all of these.
AS_WRITTEN = ["2021-05-17", "2021-05-17T10:00:00Z", "003", "None", "NA", "null", "n/a", "True", "1,5", "18.0", "0.50"]


@pytest.mark.parametrize("form", ["list", "lines", "csv"])
def test_text_of_files_stays_as_written(tmp_path, form):
    rows = [{"query": text, "answer": text} for text in AS_WRITTEN]
    path = tmp_path / {"list": "test.json", "lines": "test.jsonl", "csv": "test.csv"}[form]
    if form == "csv":
        lines = ["query,answer", *(f'"{text}","{text}"' for text in AS_WRITTEN)]
    else:
        lines = [json.dumps(rows)] if form == "list" else ["", *map(json.dumps, rows), "  "]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    test = load_reasoning_dataset(path, split="test")
    assert list(test["query"]) == list(test["answer"]) == AS_WRITTEN


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_numbers_of_json_keep_their_digits(tmp_path, suffix):
    numbers = ["12345678901234567890", "9007199254740993", "0.5", "-1.50", "1e3", "true", "null", "NaN"]
    rows = [f'{{"query": "Question {i}", "answer": {number}}}' for i, number in enumerate(numbers)]
    path = tmp_path / f"test{suffix}"
    path.write_text("[" + ",\n".join(rows) + "]" if suffix == ".json" else "\n".join(rows))
    answers = load_reasoning_dataset(path, split="test")["answer"]
    assert list(answers) == ["12345678901234567890", "9007199254740993", "0.5", "-1.50", "1e3", "yes", "", ""]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_column_of_dates_stays_as_written(tmp_path, suffix):
    dates = ["2021-05-17", "2021-05-18"]
    path = write(tmp_path / f"test{suffix}", [{"query": date, "answer": date} for date in dates])
    test = load_reasoning_dataset(path, split="test")
    assert list(test["query"]) == list(test["answer"]) == dates


def test_rows_and_files_of_one_split_may_differ_in_columns(tmp_path):
    first = [{"query": "1+1?", "answer": 2}, {"query": [{"role": "user", "content": "1+2?"}], "answer": "3"}]
    write(tmp_path / "test_a.jsonl", first)
    write(tmp_path / "test_b.json", [{"answer": 4, "query": "2+2?", "steps": ["<<1+1=2>>", "<<2+2=4>>"]}])
    (tmp_path / "test_c.csv").write_text('query,steps,answer\n"3+3,\n?","<<3+3=6>>",6\n4+4?,\n')
    rows = load_reasoning_dataset(tmp_path, split="test").to_list()
    assert [row["query"] for row in rows] == ["1+1?", "1+2?", "2+2?", "3+3,\n?", "4+4?"]
    assert [row["answer"] for row in rows] == ["2", "3", "4", "6", ""]
    assert [len(row["steps"]) for row in rows] == [0, 0, 2, 1, 0]


def test_a_changed_file_is_read_again(tmp_path):
    path = write(tmp_path / "test.jsonl", questions(3))
    assert len(load_reasoning_dataset(path, split="test")) == 3
    assert len(load_reasoning_dataset(write(path, questions(5)), split="test")) == 5


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.json", ""),
        ("test.json", "[]"),
        ("test.jsonl", "\n \n"),
        ("test.csv", "\n\n"),
        ("test.csv", "query,answer\n"),
        ("test.txt", ""),
        ("test.txt", "\n \n"),
    ],
)
def test_a_file_without_rows(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"name_or_path: .*{name} holds no row. Write rows into it, or take it away"):
        load_reasoning_dataset(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("test.jsonl", '{"query": "1", "answer": 2}\n{"query"\n', "cannot be read as json: Expecting .* line 3"),
        ("test.jsonl", '"words"\n', "cannot be read as json: 'words' is no row; write each row as an object"),
        ("test.csv", "query,answer\n1,000?,2\n", "cannot be read as csv: line 2 has 3 cells for 2 columns; quote"),
        ("test.csv", "query,query\n1,2\n", "cannot be read as csv: two of its columns query, query have one name"),
        ("test.csv", 'query,answer\n"1,2\n', "cannot be read as csv: unexpected end of data"),
    ],
)
def test_a_file_with_a_fault(tmp_path, name, content, fault):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"name_or_path: .*{name} {fault}"):
        load_reasoning_dataset(tmp_path / name)


def test_pick_split_tells_how_to_get_the_split(tmp_path):
    splits = load_reasoning_dataset(write(tmp_path / "test.jsonl", questions(3)))
    assert pick_split(splits, "test", "test.jsonl") is splits["test"]
    remedy = "'test.jsonl' has only test. Pass a source with train rows: a folder with a train file or.* renamed"
    with pytest.raises(ValueError, match=f"split='train': {remedy}"):
        pick_split(splits, "train", "test.jsonl")


def test_column_mapping(tmp_path):
    rows = [{"problem": row["query"], "cot": row["reasoning"], "gold": row["answer"]} for row in questions(20)]
    path = write(tmp_path / "other.jsonl", rows)
    loaded = load_reasoning_dataset(path, columns={"query": "problem", "reasoning": "cot", "answer": "gold"})
    assert_sound(loaded)
    with pytest.raises(
        ValueError,
        match="has no column for 'query'; its columns are cot, gold, problem. Pass columns=.*--columns query=",
    ):
        load_reasoning_dataset(path)
    with pytest.raises(ValueError, match="has no column 'task', but cot, gold, problem"):
        load_reasoning_dataset(path, columns={"query": "task"})
    with pytest.raises(ValueError, match="'question' is no field; choose among query, reasoning"):
        load_reasoning_dataset(path, columns={"question": "problem"})


@pytest.mark.parametrize("conversational", [False, True])
def test_prompt_completion(tmp_path, conversational):
    rows = [
        {"prompt": row["query"], "completion": f"{row['reasoning']}\n#### {row['answer']}"} for row in questions(20)
    ]
    if conversational:
        rows = [
            {
                "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
            }
            for row in rows
        ]
    loaded = load_reasoning_dataset(write(tmp_path / "trl.jsonl", rows))
    assert_sound(loaded)
    row = loaded["test"][0]
    number = int(row["query"].split()[2])
    assert row["reasoning"] == f"<<{number}+{number}={2 * number}>>" and row["answer"] == str(2 * number)


def test_query_and_answer_are_read_beside_prompt_and_completion(tmp_path):
    rows = [{**row, "prompt": "Solve the problem.", "completion": "n/a"} for row in questions(20)]
    assert_sound(load_reasoning_dataset(write(tmp_path / "both.jsonl", rows)))


def test_saved_dataset_loads_again(tmp_path):
    loaded = load_reasoning_dataset("graph", num_samples=12, num_validation=4, num_test=4)
    loaded.save_to_disk(tmp_path / "saved")
    again = load_reasoning_dataset(tmp_path / "saved")
    assert {split: rows[:] for split, rows in again.items()} == {split: rows[:] for split, rows in loaded.items()}


def test_preparing_is_cached_but_not_past_a_change_of_the_code(tmp_path, monkeypatch):
    path = write(tmp_path / "sums.jsonl", questions(20))
    cached = [load_reasoning_dataset(path, split="train").cache_files[0]["filename"] for _ in range(2)]
    assert cached[0] == cached[1]
    monkeypatch.setattr("semcot_hf.data.loading._CODE", "changed")
    assert load_reasoning_dataset(path, split="train").cache_files[0]["filename"] != cached[0]


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"name_or_path=.*missing.jsonl'?: no file or folder is there"):
        load_reasoning_dataset(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match="name_or_path='coinflip' is no generated task .coin_flip, arithmetic"):
        load_reasoning_dataset("coinflip")
    with pytest.raises(ValueError, match="split='dev' is unknown: choose one of train, validation, test"):
        load_reasoning_dataset("coin_flip", split="dev")
    with pytest.raises(ValueError, match="has no data file: need one of .json"):
        load_reasoning_dataset(tmp_path)
    path = tmp_path / "broken.json"
    path.write_text('[{"query": ')
    with pytest.raises(ValueError, match=r"broken.json cannot be read as json"):
        load_reasoning_dataset(path)
    path = write(tmp_path / "fine.jsonl", questions(3))
    with pytest.raises(ValueError, match="colums=.* is no option of .*: choose among columns, validation_fraction"):
        load_reasoning_dataset(path, colums={"query": "q"})


# Hub sets, with the Hub's columns in memory


def rows_of(count, **make):
    return Dataset.from_list([{name: value(i) for name, value in make.items()} for i in range(count)])


@pytest.fixture
def stored(monkeypatch):
    """Answer `datasets.load_dataset` from memory, and note what was asked for."""
    hub, asked = {}, []

    def load_dataset(name, config=None):
        asked.append((name, config))
        if name not in hub:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")
        return DatasetDict(hub[name])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return hub, asked


def test_gsm8k(stored):
    hub, asked = stored
    make = {"question": lambda i: f"What is {i} + 1,000?", "answer": lambda i: f"It is\n<<{i}+1=2>>2.\n#### {i}"}
    hub["openai/gsm8k"] = {"train": rows_of(30, **make), "test": rows_of(5, **make)}
    loaded = load_reasoning_dataset("openai/gsm8k")
    assert asked == [("openai/gsm8k", "main")]
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 27, "validation": 3, "test": 5}
    assert_sound(loaded)
    assert loaded["test"][4]["steps"] == ["It is", "<<4+1=2>>2."] and loaded["test"][4]["answer"] == "4"


def test_svamp(stored):
    hub, _ = stored
    make = {
        "ID": lambda i: f"chal-{i}",
        "Body": lambda i: f"Bo has {i} figs.",
        "Question": lambda i: "How many are half?",
        "Equation": lambda i: f"( {i}.0 / 2.0 )",
        "Answer": lambda i: f"{i / 2}",
        "Type": lambda i: "Common-Division",
        "question_concat": lambda i: "unused",
    }
    hub["ChilleD/SVAMP"] = {"train": rows_of(20, **make), "test": rows_of(4, **make)}
    row = load_reasoning_dataset("ChilleD/SVAMP", split="test")[2]
    assert row["query"] == "Bo has 2 figs. How many are half?"
    assert (row["reasoning"], row["answer"]) == ("( 2.0 / 2.0 ) = 1", "1")


def test_multiarith(stored):
    hub, _ = stored
    make = {"question": lambda i: f" What is {i} less one? ", "final_ans": lambda i: str(i - 1)}
    hub["ChilleD/MultiArith"] = {"train": rows_of(20, **make), "test": rows_of(4, **make)}
    loaded = load_reasoning_dataset("ChilleD/MultiArith")
    assert_sound(loaded)
    assert loaded["test"][3]["query"] == "What is 3 less one?" and loaded["test"][3]["answer"] == "2"
    assert loaded["test"][3]["reasoning"] == "" and loaded["test"][3]["steps"] == []


def test_commonsense_qa_is_tested_on_its_validation_split(stored):
    hub, _ = stored
    make = {
        "id": str,
        "question": lambda i: f"Where is ink {i}?",
        "question_concept": lambda i: "ink",
        "choices": lambda i: {"label": ["A", "B", "C"], "text": ["pen", "sky", "sea"]},
    }
    parts = {name: rows_of(count, **make) for name, count in (("train", 20), ("validation", 6), ("test", 3))}
    hub["tau/commonsense_qa"] = {
        name: rows.add_column("answerKey", [("" if name == "test" else "A")] * len(rows))
        for name, rows in parts.items()
    }
    loaded = load_reasoning_dataset("tau/commonsense_qa")
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 18, "validation": 2, "test": 6}
    assert loaded["test"][0]["query"] == "Where is ink 0?\nChoices:\nA. pen\nB. sky\nC. sea"
    assert loaded["test"][0]["answer"] == "A"


def test_hub_coin_flip_keeps_its_own_validation(stored):
    hub, _ = stored
    make = {"inputs": lambda i: f"Q: A coin is heads up. bo{i} flips the coin. Is it?", "targets": lambda i: "no"}
    hub["skrishna/coin_flip"] = {name: rows_of(5, **make) for name in ("train", "validation", "test")}
    loaded = load_reasoning_dataset("skrishna/coin_flip")
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 5, "validation": 5, "test": 5}
    assert loaded["train"][1]["query"].startswith("Q: A coin") and loaded["train"][1]["answer"] == "no"


def test_any_hub_set_with_columns(stored):
    hub, asked = stored
    make = {"problem": lambda i: f"What is {i}?", "solution": lambda i: f"It is. #### {i}"}
    hub["someone/sums"] = {"train": rows_of(20, **make), "dev": rows_of(3, **make), "test": rows_of(4, **make)}
    columns = {"query": "problem", "answer": "solution"}
    loaded = load_reasoning_dataset("someone/sums", columns=columns, config="easy")
    assert asked == [("someone/sums", "easy")]
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 20, "validation": 3, "test": 4}
    assert loaded["test"][3] | {"steps": None} == {
        "query": "What is 3?", "reasoning": "It is.", "condensed_reasoning": "", "answer": "3", "steps": None,
    }  # fmt: skip


def test_hub_sets_that_do_not_load(stored):
    hub, _ = stored
    with pytest.raises(
        ValueError, match="name_or_path='no/such' is no file or folder here, .* Check the spelling and"
    ):
        load_reasoning_dataset("no/such")
    hub["ChilleD/MultiArith"] = {"train": rows_of(3, q=str, final_ans=str)}
    with pytest.raises(ValueError, match="its columns have changed, 'question' is missing. Pass columns"):
        load_reasoning_dataset("ChilleD/MultiArith")


# The paper's own data


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("gsm8k", (720, 80, 200)),
        ("svamp", (630, 70, 200)),
        ("multiarith", (376, 44, 180)),
        ("commonsense_qa", (720, 80, 200)),
        ("coin_flip", (720, 80, 200)),
        ("gsm8k_equations", (6973, 500, 1319)),
    ],
)
def test_shared_data(shared_data, name, sizes):
    loaded = load_reasoning_dataset(shared_data / name)
    assert tuple(len(rows) for rows in loaded.values()) == sizes
    assert_sound(loaded)
    rows = [row for rows in loaded.values() for row in rows]
    assert all(row["query"] and row["answer"] for row in rows)
    # 24 lines of the equation files have an answer without any equation.
    assert sum(not row["steps"] for row in rows) == (24 if name == "gsm8k_equations" else 0)
    if name == "coin_flip":
        assert [coin_flip.solve(query) for query in loaded["test"]["query"]] == list(loaded["test"]["answer"])


@pytest.mark.parametrize(
    ("cells", "read"), [(["True", "False", "TRUE"], ["yes", "no", "yes"]), (["True", "12"], None)]
)
def test_a_csv_column_of_truth_values_is_one(tmp_path, cells, read):
    path = tmp_path / "test.csv"
    path.write_text("query,answer\n" + "".join(f"q{i} is it?,{cell}\n" for i, cell in enumerate(cells)))
    assert load_reasoning_dataset(path, split="test")["answer"][:] == (read or cells)
