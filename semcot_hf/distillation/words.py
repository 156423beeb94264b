"""The words phase of stage 2: a row's short reasoning as the words that the generator learns to write by itself."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..answers.number_grammar import normal_form
from ..answers.numeric import read_number
from ..data.equations import equations_of, expression_of, open_equations_of, plan_of
from ..data.rationale import rationale_agrees
from ..modeling.modeling_semcot import SemCoTForCausalLM
from ..modeling.vocabularies_semcot import continued_ids
from .config import SemCoTDistillationConfig

logger = logging.get_logger(__name__)

# Values of `words_column` that are made from the reasoning.
MADE_FROM_REASONING: dict[str, Callable[[Sequence[str]], str]] = {
    "equations": "; ".join,
    "open_equations": open_equations_of,
    "plan": plan_of,
}
_PROBLEMS = {
    "missing": "have no words: no text in the column, or no equations that end on the answer",
    "long": "have more words than num_implicit_tokens leaves room for",
    "ends": "hold the end-of-thought token among their words",
}
_MOST_LEFT_OUT = 0.5
# Rows that decide for all: on the column of the words and, of a stream, on whether it has them.
FIRST_ROWS = 200
# Training rows after which hosts score candidates.
SCORING_EXAMPLES = 4


@dataclass(frozen=True)
class WordSettings:
    """How a row's words become token ids of the generator.

    Args:
        column: `SemCoTDistillationConfig.words_column`.
        tokenizer: the generator's.
        limit: most words of a thought, its end not counted.
        end: id of the token that ends a thought.
        ends: ids of all tokens that do.
        starts_line: whether the prompt ends with white space, so that no space comes before the first word.
        answer_prompt: text between a thought and the generator's own answer.
    """

    column: str
    tokenizer: PreTrainedTokenizerBase
    limit: int
    end: int
    ends: tuple[int, ...]
    starts_line: bool
    answer_prompt: str


def choose_column(rows: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> str:
    """Return the column that the words are taken from if none is given; see `SemCoTDistillationConfig.words_column`.

    Args:
        rows: the training rows, each as `words_of` takes it, of which the first `FIRST_ROWS` decide.
    """
    read = list(islice(rows, FIRST_ROWS))
    for column in ("equations", "condensed_reasoning"):
        if sum(bool(words_of(example, row, column)) for example, row in read) > len(read) / 2:
            return column
    return "reasoning"


def word_settings(
    model: SemCoTForCausalLM,
    column: str,
    args: SemCoTDistillationConfig,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
) -> WordSettings:
    """Return the settings for a model whose thoughts consist of words.

    Args:
        column: `args.words_column`, or what `choose_column` has found.
        tokenizer: the host's, which is the generator's too unless the model has another for it.
        prompt: an example of a rendered prompt, the answer prompt included.

    Raises:
        ValueError: for a model that does not think in words of its own number.
    """
    config = model.config
    if config.thought_length != "adaptive":
        raise ValueError(
            f"words_max_steps={args.words_max_steps}, words_num_train_epochs={args.words_num_train_epochs}, "
            f"words_weight={args.words_weight}: learning words needs a generator that writes words and ends its "
            f"thought by itself, and this model has generator_mode={config.generator_mode!r}, "
            f"projection={config.projection!r} and thought_length={config.thought_length!r}: build the pair with "
            "generator_mode='sequential', projection='vocabulary' and thought_length='adaptive'."
        )
    if config.num_implicit_tokens < 2:
        raise ValueError(
            f"num_implicit_tokens={config.num_implicit_tokens} leaves no room for words and their end: pass the "
            "number of words of the longest thought, plus 1."
        )
    tokenizer = model.generator_tokenizer if config.separate_generator_tokenizer else tokenizer  # type: ignore[assignment]  # set together
    ends = tuple(config.thought_ends)
    answer_prompt = str(tokenizer.decode(config.answer_prompt_ids or []))
    if config.separate_generator_tokenizer and model.host_tokenizer is not None:
        answer_prompt = str(model.host_tokenizer.decode(config.answer_prompt_ids or []))
    question = prompt[: len(prompt) - len(answer_prompt)] if answer_prompt else prompt
    return WordSettings(
        column=column,
        tokenizer=tokenizer,
        limit=config.num_implicit_tokens - 1,
        end=ends[0],
        ends=ends,
        starts_line=question[-1:].isspace() or config.thought_prompt_ids is not None,
        answer_prompt=answer_prompt,
    )


def fits_thought(model: SemCoTForCausalLM, tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bool]:
    """Return a function that tells whether words fit into a thought of the model, with its end.

    Args:
        model: a model that thinks in words.
        tokenizer: the host's, which is the generator's too unless the model has another for it.
    """
    own: Any = model.words_tokenizer() if model.config.separate_generator_tokenizer else tokenizer
    return lambda words: len(continued_ids(own, words)) < model.config.num_implicit_tokens


def worked_examples(
    rows: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]],
    column: str,
    count: int,
    fits: Callable[[str], bool],
) -> list[dict[str, str]]:
    """Return the first rows whose words fit: their `query`, `words` and `answer`.

    Args:
        rows: pairs of a row of a dataset and the same in the dataset schema; of a stream the first ones are read.
        column: of the words; see `words_of`.
        count: number of rows, or fewer where there are no more among the first thousand.
        fits: whether words fit into a thought; see `fits_thought`.
    """
    found: list[dict[str, str]] = []
    for example, row in islice(rows, 1000):
        if len(found) >= count:
            break
        text = words_of(example, row, column)
        if text and fits(text):
            found.append({"query": str(row["query"]), "words": text, "answer": str(row["answer"])})
    return found


def thought_messages(examples: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return worked examples as chat messages: questions and words."""
    pairs = (zip(("user", "assistant"), (row["query"], row["words"]), strict=True) for row in examples)
    return [{"role": role, "content": content} for pair in pairs for role, content in pair]


def words_of(example: Mapping[str, Any], row: Mapping[str, Any], column: str) -> str:
    """Return the words of a row on a single line, empty where it has none.

    Args:
        example: the row as it stands in the dataset.
        row: the same in the dataset schema.
        column: a column of the dataset, or one of `MADE_FROM_REASONING`, which must lead to the answer; a calculation
            without a result counts where it gives the answer.

    >>> row = {"reasoning": "He has 11 - 9 = 2 left. 2 + 8 = 10.", "answer": "10"}
    >>> [words_of(row, row, column) for column in ("equations", "open_equations", "plan")]
    ['11-9=2; 2+8=10', '11-9=2; 2+8', '(11-9)+8']
    >>> words_of(row, {**row, "answer": "9"}, "plan")
    ''
    """
    if column not in MADE_FROM_REASONING or column in example:
        text = row.get(column) or example.get(column) or ""
        # Steps are a list of texts.
        return " ".join((" ".join(map(str, text)) if isinstance(text, list | tuple) else str(text)).split())
    answer = read_number(row["answer"])
    if answer is None:
        return ""
    equations = equations_of(row["reasoning"])
    if not equations or not rationale_agrees("; ".join(equations), row["answer"], "numeric"):
        expression = expression_of(row["reasoning"], float(answer))
        # Without units, as in other equations.
        equations = [f"{expression}={normal_form(answer)}"] if expression else []
    return MADE_FROM_REASONING[column](equations)


def tokenize_words(text: str, answer: str, settings: WordSettings) -> dict[str, Any]:
    """Return what the generator reads after a question in the words phase.

    It is the words, the end of the thought, the answer prompt and the generator's own answer, which evaluation of the
    generator alone asks for; the answer prompt is read but not learned.

    Args:
        text: the words.
        answer: the row's answer.

    Returns:
        dict of `thought_ids` and `thought_targets`, lists of equal length, empty for words that cannot be learned, and
        `thought_problem`, the reason for that or "".
    """
    tokenizer = settings.tokenizer

    def encode(part: str) -> list[int]:
        return tokenizer(part, add_special_tokens=False)["input_ids"]

    words = encode(text if settings.starts_line else " " + text) if text else []
    problem = "" if words else "missing"
    if len(words) > settings.limit:
        problem = "long"
    elif set(words) & set(settings.ends):
        problem = "ends"
    if problem:
        return {"thought_ids": [], "thought_targets": [], "thought_problem": problem}
    ended = str(tokenizer.decode([settings.end]))
    prompt = encode(settings.answer_prompt.lstrip("\n") if ended.endswith("\n") else settings.answer_prompt)
    own = encode(" " + answer) + ([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])
    ids = [*words, settings.end, *prompt, *own]
    labels = [*words, settings.end, *[-100] * len(prompt), *own]
    return {"thought_ids": ids, "thought_targets": labels, "thought_problem": ""}


def check_words(dataset: Dataset | IterableDataset, name: str, settings: WordSettings, columns: list[str]) -> None:
    """Warn of the rows that the words phase leaves out, and count them.

    Args:
        dataset: rows of `tokenize_words`; of a stream, the first `FIRST_ROWS` are read.
        name: the dataset's name.
        columns: the columns before tokenization.

    Raises:
        ValueError: if more than half of these training rows are left out.
    """
    if isinstance(dataset, IterableDataset):
        problems, part = [row["thought_problem"] for row in islice(dataset, FIRST_ROWS)], "the first "
    else:
        problems, part = list(dataset["thought_problem"]), ""
    counts = {problem: problems.count(problem) for problem in _PROBLEMS if problem in problems}
    if not counts:
        return
    left_out = sum(counts.values())
    reasons = "; ".join(f"{count} {_PROBLEMS[problem]}" for problem, count in counts.items())
    listed = f"{left_out} of {part}{len(problems)} rows"
    if name == "train_dataset" and left_out > _MOST_LEFT_OUT * len(problems):
        raise ValueError(
            f"words_column={settings.column!r}: {listed} of {name} cannot be learned as words ({reasons}). "
            f"The columns are {columns}; num_implicit_tokens is {settings.limit + 1}. Choose another "
            f"words_column ({', '.join(MADE_FROM_REASONING)} are made from the reasoning), write short reasoning "
            "with `semcot condense`, or build the pair with more num_implicit_tokens."
        )
    logger.warning(
        f"{name}: the words phase leaves out {listed} ({reasons}); words_column is "
        f"{settings.column!r} and num_implicit_tokens {settings.limit + 1}."
    )
