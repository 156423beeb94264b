"""Equations and calculations in rationales."""

import time

import pytest

from semcot_hf.data.equations import equations_of, expression_of
from semcot_hf.distillation.words import words_of


@pytest.mark.parametrize(
    ("reasoning", "answer", "expression"),
    [
        ("The question is in type of Common-Division and we solve it by calculating ( 290.0 / 2.0 )", 145, "290/2"),
        ("We calculate ( ( 3.0 + 4.0 ) * 2.0 ).", 14, "(3+4)*2"),
        ("He pays $1.50 x 4 for the boxes.", 6, "1.50*4"),
        ("First 8 / 0, then 8 - 2.", 6, "8-2"),
        ("First 8 - 2, then 8 + 2.", 6, "8-2"),
        ("The range is 3-5, in 2010-2011.", 7, ""),
        ("((((1 + 2", 3, "1+2"),
        ("Nothing is calculated.", 3, ""),
    ],
)
def test_the_calculation_that_gives_the_answer(reasoning, answer, expression):
    assert expression_of(reasoning, answer) == expression


def test_rows_that_state_no_result_have_words():
    row = {"reasoning": "We solve it by calculating ( 30.0 - 11.0 )", "answer": "19"}
    assert words_of(row, row, "equations") == "30-11=19"
    assert words_of(row, row, "plan") == "30-11"
    for answer in ("19.0", "$19", "19 pounds"):
        assert words_of(row, {**row, "answer": answer}, "equations") == "30-11=19"
    half = {"reasoning": "We calculate ( 3.0 / 2.0 )", "answer": "1.50 dollars"}
    assert words_of(half, half, "equations") == "3/2=1.5"
    wrong = {**row, "answer": "20"}
    assert words_of(wrong, wrong, "equations") == words_of(wrong, wrong, "plan") == ""


@pytest.mark.parametrize(
    "text",
    [
        r"\[ 6 \text{ people} \times 8 \text{ cupcakes/person} = 48 \text{ cupcakes} \]",
        "He has 2 * $100 + 1 * $50 + 5 * $20 + 3 * $10 + 7 * $5 + 27 * $1 bills, or more.",
        " + ".join(["5 ( x ) small-ish boxes' worth of things"] * 200),
        " + ".join(["( ( 3   "] * 200),
        "1" + " " * 20_000 + "?",
    ],
    ids=["long words", "terms", "words and terms", "brackets", "spaces"],
)
def test_texts_without_an_equation_are_left_at_once(text):
    # Before words and spaces could be matched in one way only, the first two took minutes and hours.
    start = time.perf_counter()
    assert equations_of(text) == [] and expression_of(text, 0.5) == ""
    assert time.perf_counter() - start < 5
