"""The public functions of answer checking: extract an answer, check it, and infer the answer type.

One output states at most one answer. It is looked for, in this order, after `####`, in `\\boxed{}`, after "final
answer", after "so the answer is", after "answer is" or "Answer:"; then as a line that is an answer and nothing else;
then in the closing sentence. The first of these places that holds a value decides: one value there is the answer, two
different values are none. Of a closing sentence's several numbers, the one that it concludes on counts. Questions,
refusals, thinking in tags, checks of the answer and clauses that are denied or supposed ("I don't think ...") state
nothing, a "Wait, ..." or "That is wrong." withdraws what precedes it, and nothing is read from the heading of a next
question on. A sequence is all that follows the last `####` or answer phrase, and an expression what stands there
before its result.

Since an output has one answer whatever the question, no constant output scores above the most frequent answer.
"""

import math
import re
from collections.abc import Iterable

from .expressions import expression_stated, value_and_numbers
from .latex import is_formula, same_formula
from .numeric import is_quantity, number_stated, read_number
from .options import choice_stated, yes_no_stated
from .statements import normalise_sequence, sequence_stated

# What tells a calculation from a date or a number in groups.
_CALCULATES = re.compile(r"[+*()\u00d7\u00b7\u00f7]|\s[-/\u2212\u2013]\s")

READERS = {
    "numeric": number_stated,
    "choice": choice_stated,
    "yes_no": yes_no_stated,
    "sequence": sequence_stated,
    "expression": expression_stated,
}


def extract_answer(output: str, answer_type: str) -> str | None:
    r"""Return the one answer that an output states, in normal form, or None when it states none or several.

    Args:
        output: what the model wrote, without the prompt.
        answer_type: "numeric", "choice", "yes_no", "sequence" or "expression".

    Raises:
        ValueError: for another answer type.

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
    if answer_type not in READERS:
        raise ValueError(f"answer_type={answer_type!r} is unknown; choose one of {', '.join(map(repr, READERS))}")
    return READERS[answer_type](output)


def check_answer(output: str, gold: object, answer_type: str) -> bool:
    r"""Return whether the one answer that an output states is the right one.

    Numbers are compared exactly, as fractions: 1/2 is 0.5, and 0.33 is not 1/3. Units, currency and the percent sign
    are dropped from both sides, so "50%" is 50 and never 0.5: otherwise one constant would match two gold answers.
    Formulas that are not plain numbers are compared by math-verify. An expression is right if it uses the same numbers
    as `gold`, each as often, and has the same value.

    Args:
        output: what the model wrote, without the prompt.
        gold: the right answer alone, as the dataset has it: a text, number or boolean.
        answer_type: "numeric", "choice", "yes_no", "sequence" or "expression".

    Raises:
        ValueError: for another answer type, or for a `gold` that is no answer of that type.

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
    >>> check_answer("5 * (8 - 3) = 25", "(8 - 3) * 5", "expression"), check_answer("25", "(8 - 3) * 5", "expression")
    (True, False)
    """
    stated, gold = extract_answer(output, answer_type), as_text(gold, "gold")
    if answer_type == "expression":
        wanted = value_and_numbers(gold)
        if wanted is None:
            raise ValueError(f"gold={gold!r} is no calculation with whole numbers; use another answer_type")
        return stated is not None and value_and_numbers(stated) == wanted
    if answer_type == "numeric":
        right = read_number(gold)
        if right is None and not is_formula(gold):
            raise ValueError(f"gold={gold!r} is not one number; use answer_type='sequence' for answers that are text")
        if stated is None:
            return False
        value = read_number(stated)
        return same_formula(gold, stated) if right is None or value is None else right == value
    normal = normalise_sequence(gold) if answer_type == "sequence" else READERS[answer_type](gold)
    if not normal:
        raise ValueError(f"gold={gold!r} is no {answer_type} answer; correct the row or use another answer_type")
    return stated == normal


def infer_answer_type(answers: Iterable[object]) -> str:
    """Return the answer type of a column of right answers.

    Numbers with a unit ("9 eggs") are numeric among a majority of plain numbers, else text. Calculations are
    expressions if each has three numbers or more, and one a plus, a multiplication, a bracket or spaces around a sign.

    Raises:
        ValueError: when there are no answers.

    >>> infer_answer_type(["yes", "No"]), infer_answer_type(["A", "E"]), infer_answer_type(["1,080", "-0.5", "$3"])
    ('yes_no', 'choice', 'numeric')
    >>> infer_answer_type(["7 8 0 3", "0 3 5 9"]), infer_answer_type(["12", "twelve"])
    ('sequence', 'sequence')
    >>> infer_answer_type(["(8 - 3) * 5", "1 + 2 + 3"]), infer_answer_type(["1/2", "3/4"])
    ('expression', 'numeric')
    >>> infer_answer_type(["2", "9 eggs", "10"]), infer_answer_type(["2", "9 eggs"])
    ('numeric', 'sequence')
    """
    texts = [as_text(answer, "answers") for answer in answers]
    if not texts:
        raise ValueError("answers is empty: give at least one right answer to infer the answer type from")
    if all(answer.lower() in ("yes", "no", "true", "false") for answer in texts):
        return "yes_no"
    parts = [value_and_numbers(answer) for answer in texts]
    if all(part is not None and len(part[1]) > 2 for part in parts) and any(map(_CALCULATES.search, texts)):
        return "expression"
    if all(len(answer) == 1 and answer.upper() in "ABCDEFGHIJ" for answer in texts):
        return "choice"
    others = [answer for answer in texts if read_number(answer, units=False) is None and not is_formula(answer)]
    return "numeric" if 2 * len(others) < len(texts) and all(map(is_quantity, others)) else "sequence"


def as_text(value: object, column: str) -> str:
    """Return a value of a dataset as text: the booleans as yes and no, what is missing as "".

    Args:
        column: its name in errors.

    Raises:
        ValueError: for a list or a dictionary.

    >>> as_text(5, "answer"), as_text(5.0, "answer"), as_text(True, "answer"), as_text(None, "answer")
    ('5', '5', 'yes', '')
    """
    if value is None:
        return ""
    if isinstance(value, list | dict):
        raise ValueError(
            f"column {column!r} holds the {type(value).__name__} {value!r}: need a text. Write it as one, or name "
            "another column; a list of texts can be the steps, and messages the query, prompt or completion."
        )
    if isinstance(value, bool):
        return "yes" if value else "no"
    # In Parquet, integers of a column with missing values are floats.
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.15g}"
    return str(value).strip()
