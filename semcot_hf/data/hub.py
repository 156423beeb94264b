"""The paper's five Hub datasets: where each keeps its question, reasoning and answer."""

from collections.abc import Callable, Mapping
from typing import NamedTuple


class HubSet(NamedTuple):
    """How one Hub dataset maps onto the schema.

    Attributes:
        adapt: turns one of its rows into (some of) the schema's fields.
        columns: the columns that `adapt` reads.
        config: its configuration on the Hub.
        splits: its split behind each of ours; those left out are cut from train.
    """

    adapt: Callable[[Mapping], dict]
    columns: tuple[str, ...]
    config: str | None
    splits: dict[str, str]


def gsm8k_row(row: Mapping) -> dict:
    """The answer holds the steps, one a line, and the result after "####".

    >>> gsm8k_row({"question": "1+1?", "answer": "It is <<1+1=2>>2.\\n#### 2"})
    {'query': '1+1?', 'answer': 'It is <<1+1=2>>2.\\n#### 2'}
    """
    return {"query": row["question"], "answer": row["answer"]}


def svamp_row(row: Mapping) -> dict:
    """The equation with its result is the reasoning.

    >>> svamp_row({"Body": "Bo has 6 figs in 2 bags.", "Question": "How many in each?",
    ...            "Equation": "( 6.0 / 2.0 )", "Answer": "3.0"})
    {'query': 'Bo has 6 figs in 2 bags. How many in each?', 'reasoning': '( 6.0 / 2.0 ) = 3', 'answer': '3'}
    """
    answer = str(row["Answer"]).strip().removesuffix(".0")
    question = f"{row['Body'].strip()} {row['Question'].strip()}"
    return {"query": question, "reasoning": f"{row['Equation'].strip()} = {answer}", "answer": answer}


def multiarith_row(row: Mapping) -> dict:
    """There is no reasoning.

    >>> multiarith_row({"question": " 1+1? ", "final_ans": "2"})
    {'query': ' 1+1? ', 'answer': '2'}
    """
    return {"query": row["question"], "answer": row["final_ans"]}


def commonsense_qa_row(row: Mapping) -> dict:
    """The choices are listed below the question, as in the paper's files; there is no reasoning.

    >>> row = {"question": "Where is ink?", "choices": {"label": ["A", "B"], "text": ["pen", "sky"]}, "answerKey": "A"}
    >>> commonsense_qa_row(row)
    {'query': 'Where is ink?\\nChoices:\\nA. pen\\nB. sky', 'answer': 'A'}
    """
    choices = zip(row["choices"]["label"], row["choices"]["text"], strict=True)
    listed = "\n".join(f"{label}. {text}" for label, text in choices)
    return {"query": f"{row['question']}\nChoices:\n{listed}", "answer": row["answerKey"]}


def coin_flip_row(row: Mapping) -> dict:
    """There is no reasoning.

    >>> coin_flip_row({"inputs": "Q: A coin is heads up. bo flips the coin. Is it still?", "targets": "no"})
    {'query': 'Q: A coin is heads up. bo flips the coin. Is it still?', 'answer': 'no'}
    """
    return {"query": row["inputs"], "answer": row["targets"]}


_TRAIN_TEST = {"train": "train", "test": "test"}
HUB_SETS = {
    "openai/gsm8k": HubSet(gsm8k_row, ("question", "answer"), "main", _TRAIN_TEST),
    "ChilleD/SVAMP": HubSet(svamp_row, ("Body", "Question", "Equation", "Answer"), None, _TRAIN_TEST),
    "ChilleD/MultiArith": HubSet(multiarith_row, ("question", "final_ans"), None, _TRAIN_TEST),
    # Its own test split has no answers.
    "tau/commonsense_qa": HubSet(
        commonsense_qa_row, ("question", "choices", "answerKey"), None, {"train": "train", "test": "validation"}
    ),
    "skrishna/coin_flip": HubSet(
        coin_flip_row, ("inputs", "targets"), None, {"train": "train", "validation": "validation", "test": "test"}
    ),
}
