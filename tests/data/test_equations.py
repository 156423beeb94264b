"""Equations and calculations in rationales."""

import time

import pytest

from semcot_hf.data.equations import equations_of, expression_of, open_equations_of
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


@pytest.mark.parametrize(
    ("equations", "words"),
    [
        (["(3+26)-2=27"], "3+26=29; 29-2"),
        (["20-(3+4)*2=6"], "3+4=7; 7*2=14; 20-14"),
        (["(1+2)*(3+4)=21"], "1+2=3; 3+4=7; 3*7"),
        (["-3+5=2", "2*1.50=3"], "-3+5=2; 2*1.5"),
        (["7/2=3.5", "3.5*4=14"], "7/2=3.5; 3.5*4"),
        (["10/3*6=20"], "(10/3)*6"),
        (["1/3+1/3=0.67", "0.67*3=2"], "(1/3)+(1/3)=0.67; 0.67*3"),
        (["16-3=13", "16-3-4=9"], "16-3=13; 13-4"),
        # The equation asked for is written before it only where its result is used.
        (["(2+3)*4=20", "2+3=5"], "2+3=5; 5*4=20; 2+3"),
        (["(2+3)-1=4", "6*1=6", "2+3=5"], "2+3=5; 5-1=4; 6*1=6; 2+3"),
        (["2+3=5", "6*1=6", "(2+3)=5"], "6*1=6; 2+3"),
        (["200*50%*3=300"], "200*50%=100; 100*3"),
        (["100%-60%-10%=30%"], "100%-60%-10%"),
        (["0.00001*5=0.00005"], "0.00001*5"),
        (["3/12*100=25%"], "3/12=0.25; 0.25*100"),
        (["50%*10=5", "5+1=6"], "50%*10=5; 5+1"),
        (["-(3+4)+9=2"], "-(3+4)+9"),
    ],
)
def test_equations_of_one_operation_leave_the_last_result_open(equations, words):
    assert open_equations_of(equations) == words


@pytest.mark.parametrize(
    "text",
    [
        "We take $80 + $10 = $80+$10 = $90.",
        "He keeps 1 - 1/3 = 2/3.",
        "1 1/2 * 60 = 90",
        "3U + 9 = 411",
        "4 - 2x = 0",
        "4(350+750) = 4400",
        "20% of 50 + 5 = 15",
        "2 + 2 = 5",
        "7 / 2 = 4.5",
        "<<26=26>> <<8/0=0>> <<9**9**9=1>> <<2+3=5=5>> <<x=5>> <<2+x=5>> <<=5>> <<2+3=>> <<10/3=3.3.3>>",
    ],
)
def test_what_does_not_hold_is_no_equation(text):
    assert equations_of(text) == []


@pytest.mark.parametrize(
    ("text", "equations"),
    [
        ("5 push-ups + 7 push-ups on Tuesday = 12", ["5+7=12"]),
        ("550 bottles-330 bottles=220 bottles, and 1200m-300m = 900m", ["550-330=220", "1200-300=900"]),
        ("10 / 3 = 3.33, 200 / 3 = 66.6, 200/3 = 67 and 7 / 2 = 4.", ["10/3=3.33", "200/3=66.6", "200/3=67", "7/2=4"]),
        ("<<1,000*2=2,000>> <<2,000+5=$2005>>", ["1000*2=2000", "2000+5=2005"]),
        (
            "<<10*50%=5>> <<20/50=40%>> <<100-5=95%>> <<3/12*100=25%>>",
            ["10*50%=5", "20/50=40%", "100-5=95%", "3/12*100=25%"],
        ),
        ("<<5*2=10>> <<10=10>>", ["5*2=10"]),
    ],
)
def test_equations_that_hold_up_to_rounding(text, equations):
    assert equations_of(text) == equations


@pytest.mark.parametrize(
    ("reasoning", "answer", "words"),
    [
        ("2(3+4) = 14", "14", ["", "", ""]),
        ("10 / 2 = 5. 2y + 3 = 13.", "13", ["", "", ""]),
        ("He has <<240=240>>240.", "240", ["", "", ""]),
        ("<<+3+4=7>>", "7", ["3+4=7", "3+4", "3+4"]),
        ("We calculate 1/3 + 1/3.", "2/3", ["1/3+1/3=2/3", "1/3+1/3", "(1/3)+(1/3)"]),
    ],
)
def test_words_lead_to_the_answer_by_a_calculation(reasoning, answer, words):
    row = {"reasoning": reasoning, "answer": answer}
    assert [words_of(row, row, column) for column in ("equations", "plan", "open_equations")] == words


def test_words_of_a_list_are_its_texts():
    row = {"reasoning": "", "answer": "3", "steps": ["Ann has 3.", " She  keeps them."]}
    assert words_of(row, row, "steps") == "Ann has 3. She keeps them."


def test_open_equations_are_words_of_rows_with_and_without_results():
    row = {"reasoning": "We solve it by calculating ( ( 3.0 + 26.0 ) - 2.0 )", "answer": "27"}
    assert words_of(row, row, "open_equations") == "3+26=29; 29-2"
    notes = {"reasoning": "He has 11 - 9 = <<11-9=2>>2. Then 2 + 8 = <<2+8=10>>10.", "answer": "10"}
    assert words_of(notes, notes, "open_equations") == "11-9=2; 2+8"
    assert words_of(notes, {**notes, "answer": "11"}, "open_equations") == ""
