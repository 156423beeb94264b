"""`semcot data check`: its table, exit code, reports and cleaned copy."""

import json

import pytest
from datasets import Dataset

from semcot_hf.cli.main import main
from semcot_hf.data import check_dataset, load_reasoning_dataset
from semcot_hf.data.loading import write_splits
from semcot_hf.data.schema import FEATURES
from semcot_hf.data.tasks import arithmetic


@pytest.fixture(scope="module")
def made():
    return {
        split: arithmetic.generate(6, seed=2, split=split, max_steps=3) for split in ("train", "validation", "test")
    }


def written(folder, splits):
    write_splits({split: Dataset.from_list(rows, features=FEATURES) for split, rows in splits.items()}, folder)
    return str(folder)


def test_sound_data_passes(made, tmp_path, capsys):
    assert main(["data", "check", "--dataset", written(tmp_path / "in", made)]) == 0
    assert "No faults found." in capsys.readouterr().out


def test_faults_are_told_and_cleaned_away(made, tmp_path, capsys):
    train = [dict(row) for row in made["train"]]
    train[1] = dict(made["test"][0])
    train[3]["reasoning"] = f"The answer is {int(train[3]['answer']) + 1}."
    folder = written(tmp_path / "in", {**made, "train": train})
    flags = ["--output_dir", str(tmp_path / "report"), "--clean", str(tmp_path / "clean")]
    assert main(["data", "check", "--dataset", folder, *flags]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "train 4 of 6, validation 6 of 6, test 6 of 6 rows" in out

    report = json.loads((tmp_path / "report" / "report.json").read_text())
    found = {(f["split"], f["fault"]): f["examples"] for f in report["findings"] if f["severity"] == "error"}
    assert found == {("train", "question also in test"): [1], ("train", "rationale ends on a wrong answer"): [3]}
    assert "| train | question also in test | error | 1 | 6 | 1 |" in (tmp_path / "report" / "report.md").read_text()

    cleaned = load_reasoning_dataset(tmp_path / "clean")
    assert list(cleaned["train"]) == [row for place, row in enumerate(train) if place not in (1, 3)]
    assert not check_dataset(cleaned).has_errors
    assert main(["data", "check", "--dataset", folder, "--clean", str(tmp_path / "clean")]) == 1
    assert "exists already: name a new folder" in capsys.readouterr().err


def test_lengths_are_measured_with_a_tokenizer(made, tiny_tokenizer, tmp_path, capsys):
    folder = written(tmp_path / "in", made)
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    flags = ["--tokenizer", str(tmp_path / "tokenizer"), "--max_length", "5", "--max_condensed_words", "1"]
    assert main(["data", "check", "--dataset", folder, "--output_dir", str(tmp_path), *flags]) == 1
    assert "median tokens" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    faults = {(f["split"], f["fault"]): f["count"] for f in report["findings"]}
    assert faults["train", "over 5 tokens"] == 6 and faults["train", "condensed reasoning over 1 words"] > 0
    assert main(["data", "check", "--dataset", folder, "--max_length", "5"]) == 1
    assert "max_length=5 needs a tokenizer" in capsys.readouterr().err


def test_the_papers_commonsense_data_fails(shared_data, tmp_path, capsys):
    flags = ["--dataset", str(shared_data / "commonsense_qa"), "--output_dir", str(tmp_path)]
    assert main(["data", "check", *flags]) == 1
    wrong = [f for f in json.loads((tmp_path / "report.json").read_text())["findings"] if "wrong answer" in f["fault"]]
    # About 154 of the 800 rows that are not for testing end on a wrong letter.
    assert 140 <= sum(f["count"] for f in wrong if f["split"] != "test") <= 160
    assert "condensed reasoning" in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "status"), [([], 2), (["clean"], 2), (["--help"], 0)])
def test_usage(argv, status, capsys):
    assert main(["data", *argv]) == status
    told = capsys.readouterr()
    assert "usage: semcot data check" in told.out + told.err
