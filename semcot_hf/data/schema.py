"""The dataset schema: rows of query, reasoning, condensed reasoning, answer and steps."""

import re
from collections.abc import Mapping, Sequence

from datasets import Features, List, Value

from ..answers.check import as_text
from ..answers.latex import plain
from ..answers.number_grammar import CURRENCY, DECIMAL

COLUMNS = ("query", "reasoning", "condensed_reasoning", "answer", "steps")
FEATURES = Features({name: List(Value("string")) if name == "steps" else Value("string") for name in COLUMNS})

_EQUATION = re.compile(r"<<[^<>]*>>")
_NUMBERS = re.compile(DECIMAL)
# The letter x, and a hyphen, are no signs inside words.
_SIGN = r"(?:[+*/\u00d7\u00f7]|-(?![A-Za-z])|(?<![A-Za-z])x(?![A-Za-z])|%\s*of\b)"
# "3 boxes x 4 = $12": two numbers with a sign between them and a result.
_SOLVED = re.compile(rf"({DECIMAL}[^\d=\n]*?{_SIGN}[^=\n]*?)=\s*(?:-\s*)?(?:{CURRENCY}\s*)?({DECIMAL})")
# "Boxes = 3 x 4": a calculation whose result stands elsewhere.
_STATED = re.compile(
    rf"=\s*(?:-\s*)?(?:{CURRENCY}\s*)?({DECIMAL}(?>[^\d=\n]*?{_SIGN}[^\d=\n]*?{DECIMAL})+)[^\d=\n]*?(?:$|[.;](?=\s))",
    re.MULTILINE,
)
_NUMBERED = re.compile(r"^\W*(?:step\s+)?(\d{1,2})[.):]\W", re.MULTILINE | re.IGNORECASE)
_NUMBERED_INLINE = re.compile(r"\((\d{1,2})\)\s+(?=[^\W\d])")
_PARTIAL_PRODUCTS = re.compile(r"[\d ]+(?:\+ [\d ()]+)+")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]*]*\s+(?=[^\sa-z])")
# A full stop after a title, or after the number or letter of a list item, does not end a sentence.
_NO_END = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|No)|^\W*(?:\d+|[A-Za-z]))\.$")


def split_steps(reasoning: str) -> list[str]:
    """Split a reasoning text into its steps.

    The first rule that fits applies. A text of `<<...>>` equations alone has a step per equation; one of partial
    products (digits, `+` and parentheses) a step per product; one of several lines a step per line with a letter or
    digit; any other text a step per sentence.

    >>> split_steps("<<4-2=2>> <<2/.5=4>>")
    ['<<4-2=2>>', '<<2/.5=4>>']
    >>> split_steps("7 6 9 + 0 2 0 8 ( 7 8 9 8 ) + 0 0 1")
    ['7 6 9', '+ 0 2 0 8 ( 7 8 9 8 )', '+ 0 0 1']
    >>> split_steps("She sold 48/2 = <<48/2=24>>24 clips.\\n\\nThat makes 48+24 = <<48+24=72>>72 in all.")
    ['She sold 48/2 = <<48/2=24>>24 clips.', 'That makes 48+24 = <<48+24=72>>72 in all.']
    >>> split_steps("Mr. Bo pays 1.5 dollars. He gets 3 back!  Is it 4.5? Yes.")
    ['Mr. Bo pays 1.5 dollars.', 'He gets 3 back!', 'Is it 4.5?', 'Yes.']
    >>> split_steps("  ")
    []
    """
    text = reasoning.strip()
    equations = _EQUATION.findall(text)
    if equations and not _EQUATION.sub("", text).strip():
        return equations
    if _PARTIAL_PRODUCTS.fullmatch(text):
        return re.split(r" (?=\+)", text)
    lines = [line.strip() for line in text.splitlines() if re.search(r"[^\W_]", line)]
    if len(lines) > 1:
        return lines
    steps, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        sentence = text[start : end.end()].strip()
        if not _NO_END.search(sentence):
            steps.append(sentence)
            start = end.end()
    return [step for step in (*steps, text[start:].strip()) if step]


def count_steps(reasoning: str, steps: Sequence[str]) -> int:
    """Return the number of reasoning steps, 0 where the text does not show it.

    These are its different calculations, else its numbered steps, else the given steps, unless the reasoning is prose
    of several lines: those are no steps.

    >>> count_steps("She sold 48 / 2 = 24 clips. That makes 48 + 24 = 72.", ["She sold ...", "That makes ..."])
    2
    >>> count_steps("1. Read.\\n2. Think.", []), count_steps("First.\\nThen.", ["First.", "Then."])
    (2, 0)
    >>> count_steps("1. Clips = 48 / 2\\n2. Clips = 24\\n3. All = 48 + 24\\n4. All = 72", [])
    2
    >>> count_steps("Ann flips it. It is tails up.", ["Ann flips it.", "It is tails up."])
    2
    """
    text = plain(reasoning.replace("<<", "\n").replace(">>", "\n"))
    equations = {(*_NUMBERS.findall(match[1]), "=", match[2]) for match in _SOLVED.finditer(text)}
    solved = {equation[:-2] for equation in equations}
    stated = {tuple(_NUMBERS.findall(match[1])) for match in _STATED.finditer(text)} - solved
    if equations or stated:
        return len(equations) + len(stated)
    for marks in (_NUMBERED, _NUMBERED_INLINE):
        numbered = [int(number) for number in marks.findall(text)]
        if numbered[:2] == [1, 2]:
            return max(numbered)
    return 0 if "\n" in reasoning.strip() else len(steps)


def split_answer(text: str) -> tuple[str, str]:
    """Split "reasoning #### answer" at a "####" on the last line; a text without it is the answer.

    >>> split_answer("<<16-3-4=9>> <<9*2=18>> #### 18")
    ('<<16-3-4=9>> <<9*2=18>>', '18')
    >>> split_answer("#### Heading\\nNothing more than text.")
    ('', '#### Heading\\nNothing more than text.')
    """
    reasoning, mark, answer = text.strip().rpartition("####")
    return (reasoning.strip(), answer.strip()) if mark and "\n" not in answer.strip() else ("", text.strip())


def turn_text(value: object, column: str, role: str) -> str:
    """Return the text of a turn in TRL's `prompt` or `completion`: a string, or the last message of `role`.

    Raises:
        ValueError: when a conversation has no message of `role`, or its content is not text.

    >>> turn_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}], "prompt", "user")
    '1+1?'
    """
    if isinstance(value, str):
        return value
    messages = [message for message in value if isinstance(message, Mapping)] if isinstance(value, list) else []
    messages = [message for message in messages if message.get("role") == role]
    if not messages or not isinstance(messages[-1].get("content"), str):
        raise ValueError(
            f"column {column!r} holds {value!r}: need a text, or messages of which one with role {role!r} has text."
        )
    return messages[-1]["content"]


def to_row(example: Mapping[str, object], columns: Mapping[str, str]) -> dict:
    """Return `example` in the schema, without outer white space; missing optional fields are "" or [].

    A "####" on the last line of the answer (or of the reasoning, without a column for the answer) separates reasoning
    and answer. Steps are split from the reasoning unless given; a missing reasoning is joined from given steps. The
    booleans become "yes" and "no". If the query is a conversation, the user's last message is used.

    Args:
        example: one row of the source.
        columns: the source's column of each schema field; where there is none of query, or of answer, "prompt" or
            "completion" (TRL, with reasoning) can replace it.

    Raises:
        ValueError: when a conversation has no text of the expected role, a list or dict stands in place of a text, or
            there is no answer.

    >>> example = {"prompt": "1+2+3?", "completion": "<<1+2=3>> <<3+3=6>> #### 6"}
    >>> row = to_row(example, {"prompt": "prompt", "completion": "completion"})
    >>> row["query"], row["steps"], row["answer"]
    ('1+2+3?', ['<<1+2=3>>', '<<3+3=6>>'], '6')
    """
    fields = {field: example[column] for field, column in columns.items()}
    if isinstance(fields.get("query"), list):
        fields["query"] = turn_text(fields["query"], columns["query"], "user")
    if "prompt" in fields and "query" not in fields:
        fields["query"] = turn_text(fields["prompt"], columns["prompt"], "user")
    if "completion" in fields and "answer" not in fields:
        fields["answer"] = turn_text(fields["completion"], columns["completion"], "assistant")

    def text(field: str) -> str:
        return as_text(fields.get(field), columns.get(field, field))

    given = fields.get("steps")
    if isinstance(given, list):
        steps = [as_text(step, columns["steps"]) for step in given]
    else:
        steps = split_steps(text("steps"))
    reasoning = text("reasoning")
    before, answer = split_answer(text("answer") if "answer" in fields else reasoning)
    if "answer" not in fields:
        if answer == reasoning:
            raise ValueError(
                f"no column holds the answer, and the reasoning {reasoning!r} does not end on '#### answer'."
            )
        reasoning = before
    reasoning = reasoning or before or " ".join(steps)
    steps = steps or split_steps(reasoning)
    return dict(zip(COLUMNS, (text("query"), reasoning, text("condensed_reasoning"), answer, steps), strict=True))


def row_of_steps(query: str, steps: list[str], condensed_reasoning: str, answer: str) -> dict:
    """Return a row in the schema whose reasoning is its steps, joined by spaces."""
    return dict(zip(COLUMNS, (query, " ".join(steps), condensed_reasoning, answer, steps), strict=True))
