"""Count the wrong verdicts of three judges on labelled outputs: `python tests/answers/compare_judges.py FILE`.

FILE has a JSON object a line with `output`, `gold`, `answer_type` and `right`, the verdict of someone who read the
output; without FILE, the adversarial outputs are judged. The judges are `check_answer`, lm-evaluation-harness's
flexible-extract (the last number by its regex; for letters and yes/no the last one named) and math-verify.
"""

import json
import re
import sys
from pathlib import Path

from math_verify import StringExtractionConfig, parse, verify

from semcot_hf.answers import check_answer

# The regex and the ignored characters of flexible-extract in the harness's gsm8k task.
NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
IGNORED = re.compile(r"(?s),|\$|.*#### |\.$")
STRINGS = {"choice": tuple("ABCDEFGHIJ"), "yes_no": ("yes", "no")}


def flexible_extract(output: str, gold: str, answer_type: str) -> bool:
    """Return whether the last value of an output is the gold answer."""
    if answer_type == "numeric":
        found = [match.group() for match in NUMBER.finditer(output)]
        return bool(found) and IGNORED.sub("", found[-1]) == IGNORED.sub("", gold)
    if answer_type == "choice":
        found = re.findall(r"\(([A-J])\)", output) or re.findall(r"\b([A-J])\b", output)
    else:
        found = re.findall(r"\b(yes|no)\b", output, re.IGNORECASE)
    return bool(found) and found[-1].lower() == gold.lower()


def math_verify(output: str, gold: str, answer_type: str) -> bool:
    """Return math-verify's verdict."""
    if answer_type == "numeric":
        return bool(verify(parse(gold), parse(output)))
    config = [StringExtractionConfig(strings=STRINGS[answer_type])]
    return bool(verify(parse(gold, config), parse(output, config)))


def main(path: Path) -> None:
    """Print each judge's wrong verdicts on the labelled outputs of a file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for judge in (check_answer, flexible_extract, math_verify):
        verdicts = [(judge(row["output"], row["gold"], row["answer_type"]), row["right"]) for row in rows]
        false_right = sum(verdict and not right for verdict, right in verdicts)
        false_wrong = sum(right and not verdict for verdict, right in verdicts)
        print(f"{judge.__name__}: {len(rows)} verdicts, {false_right} falsely right, {false_wrong} falsely wrong")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("adversarial_outputs.jsonl"))
