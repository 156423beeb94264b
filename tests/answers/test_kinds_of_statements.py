"""Kinds of statements, each in several wordings: what they state as their answer, and what they do not."""

import pytest

from semcot_hf.answers import check_answer, extract_answer

STATED = {
    "channels of thinking": [
        ("<|channel|>analysis<|message|>It is 3.<|end|><|start|>assistant<|channel|>final<|message|>It is 4.", "4"),
        ("analysis3 + 4 = 7, the answer is 7.assistantfinalThe answer is 8.", "8"),
        ("<|channel|>analysis<|message|>The answer is 3.", None),
        ("analysisThe answer is 3. But wait", None),
        ("The analysis gives 12.", "12"),
    ],
    "the same in other words": [
        ("She is done in 2 hours and 15 minutes, i.e. 135 minutes.", "135"),
        ("It takes 1 day and 6 hours, in other words 30 hours.", "30"),
        ("He walks 3 km and 200 m, namely 3200 m.", "3200"),
    ],
    "the rest that is known": [
        ("He needs 4 more boxes to hold the remaining 23 books.", "4"),
        ("She uses 3 bags to carry her remaining 12 apples.", "3"),
        ("He gives 5 away, remaining 7.", "7"),
    ],
    "what would be": [
        ("She would have 14 if she had not eaten 3, but since she did, she has 11.", "11"),
        ("It would cost 50 unless they had a coupon, but they pay 40.", "40"),
        ("If each box held 5, she would need 14 boxes.", "14"),
    ],
    "a part of the answer": [
        ("The answer is 12 apples, 5 of which are red.", "12"),
        ("Answer: 30 students, 12 girls of whom play chess", "30"),
        ("The answer is 12 apples, 5 pears.", None),
    ],
    "a quantity in two units": [
        ("3 hours 20 minutes", None),
        ("5 feet 11 inches", None),
        ("5 slices cost 10 dollars.", "10"),
        ("3 hours 20 minutes, which is 200 minutes.", "200"),
        ("She runs for 2 hours 30 minutes.", None),
        ("She runs for 1 hour and 30 minutes.", None),
        ("She runs for 2 hours, 30 minutes.", None),
        ("15 * 2 = 30. So she runs for 1 hour 30 minutes.", None),
        ("She runs for 5 minutes 5 seconds.", None),
        ("So she has 2 hours, 30 minutes left.", None),
        ("She walks for 1 hour 45 minutes 30 seconds.", None),
        ("He pays for it with 3 dollars 50 cents.", None),
        ("It is over 7 pounds 5 ounces.", None),
        ("He jumps over 5 ft 7 in.", None),
        ("It is not 2 hours 30 minutes.", None),
        ("She runs for 2 hours 30 minutes, so that is 150 minutes.", "150"),
        ("The 2 hours 30 minutes are 150 minutes.", "150"),
        ("In 2 hours 30 minutes she runs 12 miles.", "12"),
        ("She runs 12 miles in 2 hours and 30 minutes.", "12"),
        ("She needs 2 hours 30 minutes to bake 12 cakes.", None),
    ],
    "two quantities side by side": [
        ("In 2 hours 30 minutes pass.", "30"),
        ("In 3 days, 2 hours are lost.", "2"),
        ("If she works 2 hours, 30 minutes remain.", "30"),
        ("She read for 2 hours and 30 minutes were left.", "30"),
        ("In 2 hours 30 people leave.", "30"),
        ("In 2 hours she runs 30 miles.", "30"),
        ("John worked 5 days, 8 hours each, totaling 40 hours.", "40"),
        ("John worked 5 days, 8 hours a day, so he worked 40 hours.", "40"),
        ("There are 60 minutes in 1 hour.", "60"),
    ],
    "minus in letters": [
        ("minus 7", "-7"),
        ("The answer is negative 7.", "-7"),
        ("x = minus 2.5", "-2.5"),
        ("It is 12 minus 7 = 5.", "5"),
    ],
    "refusals": [
        ("I am afraid the passage gives no way to work this out. It only lists 7 cars.", None),
        ("As an AI language model I do not have access to the 3 receipts.", None),
        ("We have no information beyond the 12 eggs.", None),
        ("I can't figure out how many of the 9 there are.", None),
        ("She does not have access to 3 of the rooms, so she paints 9.", "9"),
        ("He has no money left after he works for 8 hours out of town, so he needs 5.", "5"),
    ],
}


@pytest.mark.parametrize(
    ("output", "stated"), [case for cases in STATED.values() for case in cases], ids=lambda text: str(text)[:40]
)
def test_what_is_stated(output, stated):
    assert extract_answer(output, "numeric") == stated


def test_thinking_in_channels_is_judged_by_what_follows():
    output = "analysisIt is yes.assistantfinalno"
    assert check_answer(output, "no", "yes_no") and not check_answer(output, "yes", "yes_no")
