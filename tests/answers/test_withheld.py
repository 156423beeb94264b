"""Answers that an output names without standing by them: denied, supposed, or taken back."""

import time

import pytest

from semcot_hf.answers import check_answer, extract_answer

NOT_STATED = {
    "numeric": [
        "I don't think the answer is 5.",
        "I don\u2019t believe that the answer is 5.",
        "I do not really think it is 5.",
        "I wouldn't say the answer is 5.",
        "I doubt the answer is 5.",
        "I highly doubt that it is 5.",
        "Nobody thinks the answer is 5.",
        "It is unlikely that the answer is 5.",
        "It's very unlikely the answer is 5.",
        "It is not true that the answer is 5.",
        "It isn't true that she has 5.",
        "It is false that the answer is 5.",
        "It is not the case that the answer is 5.",
        "There is no way the answer is 5.",
        "I am not sure that the answer is 5.",
        "I'm not sure if it is 5.",
        "I don't know whether the answer is 5.",
        "One might think the answer is 5.",
        "Some people say the answer is 5.",
        "I don't think the answer is 5, 5 or 5.",
        "If the answer is 5, then she has none.",
        "Even if the correct answer is 5, she has none.",
        "Suppose the answer is 5.",
        "Let's assume that the answer is 5.",
        "Check whether the answer is 5.",
        "If 5 is right, then she has none.",
        "The answer is 5, but that's incorrect.",
        "The answer is 5, but that's incorrect; it is 6.",
        "The answer is 5, which is wrong.",
        "The answer is 5. That is wrong.",
        "The answer is 5. That is not right.",
        "The answer is 5. This isn't correct.",
        "The answer is 5. This answer is incorrect.",
        "The answer is 5. But I was wrong.",
        "The answer is 5. Wrong!",
        "The answer is 5. She has 5 left. That is wrong.",
        "3 + 2 = 5. So she has 5. That is wrong.",
        "She eats 3. So 5 are left. That is wrong.",
        "#### 5\nThat is incorrect.",
        "\\boxed{5} That is not correct.",
        "The answer was 5 but should be 6.",
        "The answer is 5, but it should be 6.",
        "The answer is 5. No, it is 6.",
        "The answer is 5. No, 6.",
    ],
    "choice": [
        "I don't think the answer is B.",
        "I don't think B is right.",
        "I doubt it is B.",
        "It is unlikely that B is right.",
        "It is not true that the answer is B.",
        "If the answer is B, then it is cold.",
        "If B is correct, then it is cold.",
        "One might say B is correct.",
        "The answer is B. That is wrong.",
        "The answer is B, but that's not correct.",
        "B. That is wrong.",
        "B\n\nThat is wrong.",
    ],
    "yes_no": [
        "I don't think the answer is yes.",
        "It is not true that the answer is yes.",
        "It is unlikely that the answer is yes.",
        "If the answer is yes, then it is heads up.",
        "I doubt the answer is yes.",
        "The answer is yes. That is wrong.",
        "The answer is yes, but that is incorrect.",
    ],
    "sequence": [
        "I don't think the answer is lion.",
        "It is not true that the answer is lion.",
        "If the answer is lion.",
        "The answer is lion. That is wrong.",
    ],
}
GOLD = {"numeric": "5", "choice": "B", "yes_no": "yes", "sequence": "lion"}

STATED = {
    "numeric": [
        ("It is safe to say that the answer is 5.", "5"),
        ("I am happy to say that the answer is 12.", "12"),
        ("Thus we may conclude that the answer is 18.", "18"),
        ("We could say the answer is 5.", "5"),
        ("If 20 is the total and 8 are red, the answer is 12.", "12"),
        ("If 20 is the total, then the answer is 12.", "12"),
        ("If 5 is the number of bags, the total is 5 * 3 = 15.", "15"),
        ("It's unlikely that she sells more: the answer is 5.", "5"),
        ("I think the answer is 5.", "5"),
        ("I do think the answer is 5.", "5"),
        ("I suppose the answer is 5.", "5"),
        ("I assume the answer is 5.", "5"),
        ("I have no doubt that the answer is 5.", "5"),
        ("I don't think it is hard. The answer is 5.", "5"),
        ("I don't think the answer is 6, it is 5.", "5"),
        ("I don't think the answer is 6 but 5.", "5"),
        ("I don't think the answer is 6; the answer is 5.", "5"),
        ("The answer is 5. I don't think the answer is 6.", "5"),
        ("One might think the answer is 6, but it is 5.", "5"),
        ("Some people say the answer is 6. That is wrong. The answer is 5.", "5"),
        ("The answer is 5. Some people say it is 6. That is wrong.", "5"),
        ("The answer is 5. That is right.", "5"),
        ("The answer is 5. That is not 6.", "5"),
        ("The answer is 5. It is wrong to say 6.", "5"),
        ("The answer is 5. It is not right that she has to pay.", "5"),
        ("The answer is 5, but it should be rounded.", "5"),
        ("The answer is 5. No, thanks.", "5"),
        ("The answer is 5. No one has more.", "5"),
        ("If she has 3, the answer is 5.", "5"),
        ("If you add 3 and 2 the answer is 5.", "5"),
        ("If she has 3 then the answer is 5.", "5"),
        ("If I am right, the answer is 5.", "5"),
        ("If the answer is 6, she has too many. So the answer is 5.", "5"),
        ("The answer is 6. That is wrong. The answer is 5.", "5"),
        ("The answer is 6, but that's incorrect; it is 5.", "5"),
        ("The answer is 6, but it should be 5.", "5"),
        ("The answer is 6. No, it is 5.", "5"),
        ("It is true that the answer is 5.", "5"),
        ("It is likely that the answer is 5.", "5"),
        ("It is not surprising that the answer is 5.", "5"),
        ("I am not sure, but I think it is 5.", "5"),
        ("The answer is 5. I am not sure.", "5"),
        ("Let's check if the answer is right: 3 + 2 = 5.", "5"),
    ],
    "choice": [
        ("If A is the cause, then the answer is B.", "B"),
        ("The answer is B. A bank is too far, and that is wrong.", "B"),
        ("I think the answer is B.", "B"),
        ("I don't think the answer is A. The answer is B.", "B"),
        ("I don't think people would go to a bank, so B.", "B"),
        ("It is unlikely that A is right, so the answer is B.", "B"),
        ("The answer is B. That is right.", "B"),
        ("The answer is B.\n\nA. bank: This is incorrect because it is for money.", "B"),
        ("The answer is B.\n\nA. bank - that is wrong.\nC. shop - that is wrong.", "B"),
    ],
    "yes_no": [
        ("I think the answer is yes.", "yes"),
        ("No, that is incorrect.", "no"),
        ("No, that's not true.", "no"),
        ("The answer is no, that is not correct.", "no"),
        ("No, I don't think the coin is heads up.", "no"),
        ("I don't think the coin is heads up, so no.", "no"),
        ("It is not true that the coin is heads up, so the answer is no.", "no"),
        ("The answer is yes. That is right.", "yes"),
    ],
    "sequence": [
        ("I think the answer is lion.", "lion"),
        ("It is not true that Sally is a lempus", "It is not true that Sally is a lempus"),
        ("The answer is tiger. That is wrong. The answer is lion.", "lion"),
        ("I don't think the answer is tiger. The answer is lion.", "lion"),
    ],
}


@pytest.mark.parametrize(("kind", "output"), [(kind, text) for kind in NOT_STATED for text in NOT_STATED[kind]])
def test_what_is_denied_supposed_or_taken_back_is_not_stated(kind, output):
    assert not check_answer(output, GOLD[kind], kind)


@pytest.mark.parametrize(("kind", "output", "answer"), [(kind, *case) for kind in STATED for case in STATED[kind]])
def test_what_only_looks_so_is_stated(kind, output, answer):
    assert extract_answer(output, kind) == answer


@pytest.mark.parametrize(
    "unit",
    ["I don't think ", "that is wrong. ", "but it should be 6 ", "if the answer is ", "5. No, it is ", "might "],
)
def test_long_outputs_take_linear_time(unit):
    output = unit * (20_000 // len(unit))
    begun = time.process_time()
    for kind in GOLD:
        extract_answer(output, kind)
    assert time.process_time() - begun < 4
