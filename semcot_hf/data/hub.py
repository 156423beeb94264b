"""The paper's five Hub datasets: their configurations, splits and columns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class HubSet:
    """The mapping of one Hub dataset to the schema.

    Attributes:
        columns: the columns that are read; without `adapt` those of the question and of the answer.
        adapt: turns a row of the dataset into fields of the schema.
        config: its configuration on the Hub.
        splits: its split for each of ours; missing ones are cut from train.
    """

    columns: tuple[str, ...]
    adapt: Callable[[Mapping], dict] | None = None
    config: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "test": "test"})


def svamp_row(row: Mapping) -> dict:
    """Use the equation with its result as reasoning.

    >>> svamp_row({"Body": "Bo has 6 figs in 2 bags.", "Question": "How many in each?",
    ...            "Equation": "( 6.0 / 2.0 )", "Answer": "3.0"})
    {'query': 'Bo has 6 figs in 2 bags. How many in each?', 'reasoning': '( 6.0 / 2.0 ) = 3', 'answer': '3'}
    """
    answer = str(row["Answer"]).strip().removesuffix(".0")
    question = f"{row['Body'].strip()} {row['Question'].strip()}"
    return {"query": question, "reasoning": f"{row['Equation'].strip()} = {answer}", "answer": answer}


def commonsense_qa_row(row: Mapping) -> dict:
    """List the choices below the question, as in the paper's files.

    >>> row = {"question": "Where is ink?", "choices": {"label": ["A", "B"], "text": ["pen", "sky"]}, "answerKey": "A"}
    >>> commonsense_qa_row(row)
    {'query': 'Where is ink?\\nChoices:\\nA. pen\\nB. sky', 'answer': 'A'}
    """
    choices = zip(row["choices"]["label"], row["choices"]["text"], strict=True)
    listed = "\n".join(f"{label}. {text}" for label, text in choices)
    return {"query": f"{row['question']}\nChoices:\n{listed}", "answer": row["answerKey"]}


HUB_SETS = {
    # The answer holds the steps, one a line, and the result after "####".
    "openai/gsm8k": HubSet(("question", "answer"), config="main"),
    "ChilleD/SVAMP": HubSet(("Body", "Question", "Equation", "Answer"), svamp_row),
    "ChilleD/MultiArith": HubSet(("question", "final_ans")),
    # Its test split has no answers.
    "tau/commonsense_qa": HubSet(
        ("question", "choices", "answerKey"), commonsense_qa_row, splits={"train": "train", "test": "validation"}
    ),
    "skrishna/coin_flip": HubSet(
        ("inputs", "targets"), splits={"train": "train", "validation": "validation", "test": "test"}
    ),
}
