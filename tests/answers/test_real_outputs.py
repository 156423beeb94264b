"""Verdicts on outputs of pretrained models, which were labelled by reading before the rules that judge them."""

import json
from pathlib import Path

from compare_judges import flexible_extract

from semcot_hf.answers import check_answer, extract_answer

ROWS = [json.loads(line) for line in Path(__file__).with_name("real_outputs.jsonl").read_text().splitlines()]


def wrong_verdicts(judge):
    """Return the outputs that are judged right and are not, and those that are and are not judged so."""
    verdicts = [(judge(row["output"], row["gold"], row["answer_type"]), row) for row in ROWS]
    return (
        [row["output"] for verdict, row in verdicts if verdict and not row["right"]],
        [row["output"] for verdict, row in verdicts if row["right"] and not verdict],
    )


def test_fewer_wrong_verdicts_than_the_last_value_in_both_directions():
    false_right, false_wrong = wrong_verdicts(check_answer)
    others = wrong_verdicts(flexible_extract)
    assert len(ROWS) > 200
    assert not false_right and len(others[0]) > 0
    assert len(false_wrong) < len(others[1])


def test_what_is_not_read_names_an_option_without_its_letter():
    """Or two numbers of two things; everything else that an output states is read."""
    missed = [row for row in ROWS if row["stated"] != extract_answer(row["output"], row["answer_type"])]
    unread = [row for row in missed if row["stated"] is not None]
    assert all(row["answer_type"] == "choice" or "balls in the park" in row["output"] for row in unread)
    # Numbers of reasoning that was cut off at no mark that shows it.
    assert len(missed) - len(unread) <= 10
