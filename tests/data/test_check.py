"""The data check finds planted faults, finds the known ones of the paper's data, and cleaning removes them."""

import json

import datasets
import pytest
from datasets import Dataset

from semcot_hf.data import check_dataset, clean_dataset, load_reasoning_dataset, rationale_agrees
from semcot_hf.data.schema import FEATURES
from semcot_hf.data.tasks import arithmetic

WRONG = "rationale ends on a wrong answer"
REPEATED = "repeated question"
OTHER = "same question, other answer"
LONG = "condensed reasoning over 10 words"


def rows(split, count=12):
    return arithmetic.generate(count, seed=9, split=split, max_steps=3)


def data(**splits):
    return {split: Dataset.from_list(made, features=FEATURES) for split, made in splits.items()}


def found(report, split=None):
    return {(f.split, f.fault): (f.severity, f.rows) for f in report.findings if split in (None, f.split)}


def clean():
    return {split: rows(split) for split in ("train", "validation", "test")}


def test_sound_data_has_no_findings():
    report = check_dataset(data(**clean()))
    assert report.findings == [] and not report.has_errors
    assert report.answer_type == "numeric" and report.sizes == {"train": 12, "validation": 12, "test": 12}
    assert "No faults found." in report.to_markdown()


def plant_overlap(made):
    made["train"][3] = made["test"][5]
    made["validation"][2] = {**made["test"][1], "query": made["test"][1]["query"].upper().replace(".", " ;")}
    return {
        ("train", "question also in test"): ("error", (3,)),
        ("validation", "question also in test, but for case or punctuation"): ("error", (2,)),
    }


def plant_overlap_with_validation(made):
    made["train"][7] = made["validation"][0]
    return {("train", "question also in validation"): ("error", (7,))}


def plant_repeats(made):
    made["train"][4] = {**made["train"][1], "query": made["train"][1]["query"].lower()}
    made["test"][9] = made["test"][8]
    return {("train", REPEATED): ("warning", (4,)), ("test", REPEATED): ("warning", (9,))}


def plant_contradiction(made):
    made["train"][4] = {**made["train"][1], "answer": "7777", "reasoning": "It is 7000 + 777 = 7777."}
    return {("train", OTHER): ("error", (1, 4))}


def plant_wrong_rationales(made):
    for split in made:
        made[split][6]["answer"] = str(int(made[split][6]["answer"]) + 1000)
    return {
        ("train", WRONG): ("error", (6,)),
        ("validation", WRONG): ("error", (6,)),
        ("test", WRONG): ("warning", (6,)),
    }


def plant_silent_rationale(made):
    made["train"][0]["reasoning"] = "We think about it."
    return {("train", "rationale states no answer"): ("info", (0,))}


def plant_empty_fields(made):
    made["train"][1]["query"] = " "
    made["train"][2]["answer"] = ""
    made["train"][3]["reasoning"] = ""
    made["train"][5]["condensed_reasoning"] = ""
    made["test"][5]["condensed_reasoning"] = ""
    for row in made["validation"]:
        row["condensed_reasoning"] = ""
    return {
        ("train", "empty query"): ("error", (1,)),
        ("train", "empty answer"): ("error", (2,)),
        ("train", "empty reasoning"): ("error", (3,)),
        ("train", "empty condensed_reasoning"): ("error", (5,)),
        ("test", "empty condensed_reasoning"): ("warning", (5,)),
        ("validation", "no condensed_reasoning in the whole split"): ("info", tuple(range(12))),
    }


def plant_odd_answer(made):
    made["validation"][4]["answer"] = "quite a lot"
    return {("validation", "answer cannot be judged as numeric"): ("error", (4,))}


def plant_long_condensed(made):
    made["train"][8]["condensed_reasoning"] = "a b c d e f g h i j"
    made["train"][9]["condensed_reasoning"] = "a b c d e f g h i j k"
    return {("train", LONG): ("warning", (9,))}


PLANTED = [
    plant_overlap,
    plant_overlap_with_validation,
    plant_repeats,
    plant_contradiction,
    plant_wrong_rationales,
    plant_silent_rationale,
    plant_empty_fields,
    plant_odd_answer,
    plant_long_condensed,
]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_planted_faults_are_found_and_cleaned(plant):
    made = clean()
    expected = plant(made)
    dataset = data(**made)
    report = check_dataset(dataset, answer_type="numeric")
    assert found(report) == expected
    errors = {(split, row) for (split, _), (severity, at) in expected.items() if severity == "error" for row in at}
    assert report.has_errors == bool(errors)

    cleaned = clean_dataset(dataset, report)
    assert cleaned["test"][:] == dataset["test"][:]
    removed = errors | {("train", row) for row in expected.get(("train", REPEATED), ("", ()))[1]}
    for split in ("train", "validation"):
        kept = [row for i, row in enumerate(made[split]) if (split, i) not in removed]
        assert cleaned[split].to_list() == kept
    assert not check_dataset(cleaned, answer_type="numeric").has_errors


def test_questions_that_differ_in_brackets_and_signs_are_all_kept():
    truths = {
        "not ( True and False ) is": "yes",
        "not True and False is": "no",
        "( True or False ) and not True is": "no",
        "True or False and not True is": "yes",
        "True & False is": "no",
        "True | False is": "yes",
    }
    made = [{**rows("train", 1)[0], "query": query, "answer": answer} for query, answer in truths.items()]
    dataset = data(train=[{**row, "reasoning": ""} for row in made])
    report = check_dataset(dataset)
    assert report.count(OTHER) == report.count(REPEATED) == 0
    assert clean_dataset(dataset, report)["train"]["query"] == list(truths)


def test_report_formats():
    made = clean()
    for row in made["train"]:
        row["answer"] = "7"
    report = check_dataset(data(**made))
    text = report.to_markdown()
    assert "Rows: train 12, validation 12, test 12. Answer type: numeric." in text
    assert f"| train | {WRONG} | error | 12 | 12 | 0, 1, 2, 3, 4, ... |" in text
    told = json.loads(json.dumps(report.to_json()))
    assert told["has_errors"] is True and told["sizes"]["test"] == 12
    assert told["findings"][0] == {
        "split": "train",
        "fault": WRONG,
        "severity": "error",
        "count": 12,
        "of": 12,
        "examples": [0, 1, 2, 3, 4],
    }
    assert report.count(WRONG) == 12 and report.count(WRONG, "test") == 0
    with pytest.raises(ValueError, match="all 12 rows of train are faulty, so that nothing would remain"):
        clean_dataset(data(**made), report)


def test_lengths_are_measured_against_the_context(tiny_tokenizer):
    made = clean()
    dataset = data(**made)
    lengths = [
        len(tiny_tokenizer(f"{row['query']}\n{row['reasoning']}\n{row['answer']}")["input_ids"])
        for row in made["train"]
    ]
    limit = sorted(lengths)[-3]
    report = check_dataset(dataset, tokenizer=tiny_tokenizer, max_length=limit)
    over = tuple(i for i, length in enumerate(lengths) if length > limit)
    assert found(report, "train") == {("train", f"over {limit} tokens"): ("error", over)} and len(over) == 2
    assert report.token_lengths["train"]["max"] == max(lengths)
    assert f"| {max(lengths)} |" in report.to_markdown()
    assert check_dataset(dataset, tokenizer=tiny_tokenizer).findings == []


@pytest.mark.parametrize(
    ("reasoning", "answer", "answer_type", "agrees"),
    [
        (
            "She sold 48/2 = <<48/2=24>>24 clips.\nThat makes 48+24 = <<48+24=72>>72 in April and May.",
            "72",
            "numeric",
            True,
        ),
        ("So he needs 4500/500 = <<4500/500=9>>9 reams.", "3", "numeric", False),
        ("He runs for 3/6 = .5 hour, which is 30 minutes.", "30", "numeric", True),
        ("Dividing gives 100/5 = 5A/5, or 20 = A.", "20", "numeric", True),
        ("One can place 28/0.5=56 6-inch pencils.", "56", "numeric", True),
        ("It pays 162 kg/day * $50/kg = $8100/day.", "8100", "numeric", True),
        ("\\[\n84 - 5 = 79\n\\]\n\nThus, Kaleb has **79 pieces of candy** left.", "54", "numeric", False),
        ("Thus, the total is \\( \\boxed{6} \\).", "5", "numeric", False),
        ("<<32-8=24>> <<24/3=8>>", "24", "numeric", False),
        ("353-22=331; 331-57=274", "331", "numeric", False),
        ("353-22=331; 331-57=274", "274", "numeric", True),
        ("He had 353-22 = 331, and 331-57 = 274 of them are left.", "331", "numeric", False),
        ("Total is $18 (check: 18 / 2 = 9).", "18", "numeric", True),
        ("So she has 12 apples (as 12 + 8 = 20).", "12", "numeric", True),
        ("Each gets 12 (12 x 2 = 24)", "12", "numeric", True),
        ("She pays 18 dollars, since 20 - 18 = 2 is the discount.", "18", "numeric", True),
        ("He needs 30 minutes, because 1/2 hour = 0.5 hour.", "30", "numeric", True),
        ("60 minutes = 1 hour.", "60", "numeric", True),
        ("5 x 12 = 60 minutes = 1 hour", "60", "numeric", True),
        ("x = 12, so 2x = 24.", "12", "numeric", True),
        ("#### 12 and 12+8=20", "12", "numeric", True),
        ("The type is Subtraction and we solve it by calculating ( ( 7.0 + 12.0 ) - 15.0 )", "4", "numeric", None),
        ("Thus, the answer depends on how Nancy decided.", "2", "numeric", None),
        ("Final answer: **B**", "B", "choice", True),
        ("A. **ink** is one.\n\nFinal answer: **B**", "A", "choice", False),
        ("The best is:\n\nE. **building**\n\nThis is because buildings have levels.", "C", "choice", False),
        ("Therefore, the answer is **no**, the coin is not still heads up.", "no", "yes_no", True),
        ("Therefore, the answer is **no**.", "yes", "yes_no", False),
        ("Ann flips, now tails. Bob keeps, still tails.", "no", "yes_no", None),
        ("7 6 9 2 0 + 0 2 0 8 7 1", "7 8 9", "sequence", None),
        ("", "5", "numeric", None),
    ],
)
def test_rationale_agrees(reasoning, answer, answer_type, agrees):
    assert rationale_agrees(reasoning, answer, answer_type) is agrees


def test_bad_input_is_refused():
    made = data(**clean())
    with pytest.raises(ValueError, match="dataset has a split 'eval': name its splits train, validation, test"):
        check_dataset({"eval": made["test"]})
    with pytest.raises(ValueError, match="train has no column 'answer', but query, reasoning"):
        check_dataset({"train": made["train"].remove_columns("answer")})
    with pytest.raises(ValueError, match=r"none of its splits \(train\) has a row"):
        check_dataset({"train": made["train"].select([])})
    with pytest.raises(ValueError, match="report: it is about .*, not this dataset"):
        clean_dataset({"train": made["train"]}, check_dataset(made))


@pytest.fixture
def loaded(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return lambda name: load_reasoning_dataset(shared_data / name)


def test_known_faults_of_gsm8k(loaded):
    report = check_dataset(loaded("gsm8k"))
    assert report.answer_type == "numeric"
    assert report.count(LONG) == 478
    # The prices in dollars of answers in cents, and slips of the authors of GSM8K.
    assert 3 <= report.count(WRONG, "train") + report.count(WRONG, "validation") <= 6


def test_known_faults_of_multiarith(loaded):
    dataset = loaded("multiarith")
    report = check_dataset(dataset)
    # They stand in the train file; the loader's validation split takes its share of them.
    assert report.count("question also in test") == 6
    assert report.count(REPEATED, "test") == 2
    assert report.has_errors
    cleaned = clean_dataset(dataset, report)
    asked = set(dataset["test"]["query"])
    assert not asked & set(cleaned["train"]["query"]) and not asked & set(cleaned["validation"]["query"])
    assert not check_dataset(cleaned).has_errors


def test_known_faults_of_commonsense_qa(loaded):
    dataset = loaded("commonsense_qa")
    report = check_dataset(dataset)
    assert report.answer_type == "choice"
    assert report.count(WRONG, "train") + report.count(WRONG, "validation") == 154
    cleaned = clean_dataset(dataset, report)
    assert len(cleaned["train"]) + len(cleaned["validation"]) == 800 - 154
    assert not check_dataset(cleaned).has_errors


def test_sound_sets_of_the_paper(loaded):
    report = check_dataset(loaded("coin_flip"))
    assert report.answer_type == "yes_no" and not report.has_errors and report.count(LONG) == 0
    report = check_dataset(loaded("svamp"))
    # Its rationales end on an expression without its result.
    assert not report.has_errors and report.count("rationale states no answer") == 899
