"""The three public functions of answer judging: extract, check, and tell the task from its answers.

One output states at most one answer. It is looked for, in this order, after `####`, in `\\boxed{}`, after "final
answer", after "so the answer is", after "answer is" or "Answer:"; then as a line that is an answer and nothing else;
then in the closing sentence. The first of these places that holds anything decides: one value there is the answer, two
different values are none. Questions state nothing, what a "Wait, ..." takes back is void, and nothing is read from the
heading of a next question on. A sequence is simply all that follows the last `####` or answer phrase.

Since an output has one answer whatever the question, no constant output scores above the most frequent answer.
"""

from collections.abc import Iterable

from .choice import choice_stated
from .latex import is_formula, same_formula
from .numeric import is_quantity, number_stated, read_number
from .sequence import normalise_sequence, sequence_stated
from .yes_no import yes_no_stated

TASKS = {
    "numeric": number_stated,
    "choice": choice_stated,
    "yes_no": yes_no_stated,
    "sequence": sequence_stated,
}


def extract_answer(output: str, task: str) -> str | None:
    r"""Returns the one answer that an output states, in normal form, or None when it states none or several.

    Args:
        output: what the model wrote, the prompt left out.
        task: "numeric", "choice", "yes_no" or "sequence".

    Raises:
        ValueError: for another task.

    >>> extract_answer("She eats 3 and bakes 4: 16 - 3 - 4 = 9. So she makes 9 * 2 = $18.00 a day.", "numeric")
    '18'
    >>> extract_answer("**b)** heart", "choice")
    'B'
    >>> extract_answer("The answer is **no**, the coin is tails up.", "yes_no")
    'no'
    >>> extract_answer("7 6 9 2 0 + 0 2 0 8 7 1 #### 7 8 0 3", "sequence")
    '7 8 0 3'
    >>> extract_answer("either 5 or 6", "numeric") is None
    True
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r} is unknown; choose one of {', '.join(map(repr, TASKS))}")
    return TASKS[task](output)


def check_answer(output: str, answer: str, task: str) -> bool:
    r"""Returns whether the one answer that an output states is the right one.

    Numbers are compared exactly, as fractions: 1/2 is 0.5, and 0.33 is not 1/3. Units, currency and the percent sign
    are dropped from both sides, so "50%" is 50 and is never 0.5: were it both, one constant would answer two golds.
    Formulas that are not plain numbers go to math-verify.

    Args:
        output: what the model wrote, the prompt left out.
        answer: the right answer alone, as the dataset has it.
        task: "numeric", "choice", "yes_no" or "sequence".

    Raises:
        ValueError: for another task, or for an `answer` that is none of its answers.

    >>> check_answer("The answer is 18 dollars a day.", "18", "numeric")
    True
    >>> check_answer("0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18", "18", "numeric")
    False
    >>> check_answer(r"so \boxed{\frac{1}{2}}", "0.5", "numeric")
    True
    >>> check_answer("A. ignore", "A", "choice"), check_answer("A B C D E", "A", "choice")
    (True, False)
    >>> check_answer("The answer is no.", "no", "yes_no"), check_answer("yes or no", "no", "yes_no")
    (True, False)
    """
    stated = extract_answer(output, task)
    if task == "numeric":
        gold = read_number(answer)
        if gold is None and not is_formula(answer):
            raise ValueError(f"answer={answer!r} is not one number; use task='sequence' for answers that are text")
        if stated is None:
            return False
        value = read_number(stated)
        if gold is not None and value is not None:
            return gold == value
        return same_formula(answer, stated)
    gold = normalise_sequence(answer) if task == "sequence" else TASKS[task](answer)
    if not gold:
        raise ValueError(f"answer={answer!r} is no answer to task={task!r}; correct the row or use another task")
    return stated == gold


def infer_answer_type(answers: Iterable[str]) -> str:
    """Returns the task that a column of right answers belongs to.

    Numbers with a unit ("9 eggs") are numeric among a majority of plain numbers, and text where they are the rule.

    Raises:
        ValueError: when there are no answers.

    >>> infer_answer_type(["yes", "No"]), infer_answer_type(["A", "E"]), infer_answer_type(["1,080", "-0.5", "$3"])
    ('yes_no', 'choice', 'numeric')
    >>> infer_answer_type(["7 8 0 3", "0 3 5 9"]), infer_answer_type(["12", "twelve"])
    ('sequence', 'sequence')
    >>> infer_answer_type(["2", "9 eggs", "10"]), infer_answer_type(["2", "9 eggs"])
    ('numeric', 'sequence')
    """
    answers = [answer.strip() for answer in answers]
    if not answers:
        raise ValueError("answers is empty: give at least one right answer to tell the task from")
    if all(answer.lower() in ("yes", "no") for answer in answers):
        return "yes_no"
    if all(len(answer) == 1 and answer.upper() in "ABCDEFGHIJ" for answer in answers):
        return "choice"
    others = [answer for answer in answers if read_number(answer, units=False) is None and not is_formula(answer)]
    if 2 * len(others) < len(answers) and all(map(is_quantity, others)):
        return "numeric"
    return "sequence"
