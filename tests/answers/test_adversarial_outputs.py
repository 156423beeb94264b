"""The verdicts on the adversarial outputs, written down before the rules that judge them."""

import json
from pathlib import Path

import pytest

from semcot_hf.answers import check_answer, extract_answer

ROWS = [json.loads(line) for line in Path(__file__).with_name("adversarial_outputs.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=[f"{row['kind']}-{row['output'][-40:]!r}-{row['gold']}" for row in ROWS])
def test_adversarial_outputs(row):
    assert check_answer(row["output"], row["gold"], row["answer_type"]) is row["right"]


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("There is not enough information. The text only mentions 12 eggs.", None),
        ("I can't tell. He has 12.", None),
        ("I cannot tell at once. So let x = 12.", "12"),
        ("The answer is 12. I am not sure.", "12"),
        ("12\n\nI am not sure about it.", "12"),
        ("12 is incorrect.", None),
        ("It is not 12 but 15.", "15"),
        ("She can't have 12 left; she has 9.", "9"),
        ("<think>5</think>\n\nThe answer is\n<answer>6</answer>", "6"),
        ("<think>\\boxed{5}</think>", "5"),
        ("[THINK]5[/THINK]6", "6"),
        ("6 <think>Or is it 5?", "6"),
        ("<think>The answer is 5", None),
        ("Each box has 12 eggs, and there are 5 boxes.", None),
        ("Anna has 12 apples, and Ben has 5.", None),
        ("The total cost is $12 and the change is $8.", None),
        ("15 cookies were baked and 3 were eaten.", None),
        ("Ann has 5; Ben has 6", None),
        ("I verified 12 + 3 = 15. So 15.", "15"),
        ("Let's check the answer: 5 x 3 = 15", "15"),
        ("15 - 3 is 12. Let me check: 16 - 3 = 13. So 13 are left.", "13"),
        ("He will be 30 in 5 years.", "30"),
        ("Over 5 days, she jogs 50 miles.", "50"),
        ("5 slices cost $10.", "10"),
        ("Dividing $330 by 15 gives $22 each.", "22"),
        ("She has 25 left after giving away 2 and making 17.", "25"),
        ("May can make 36 scarves: 6 red, 18 blue, 12 yellow.", "36"),
        ("5 and a half hours", "5.5"),
    ],
)
def test_neighbours_of_the_adversarial_outputs(output, answer):
    assert extract_answer(output, "numeric") == answer
