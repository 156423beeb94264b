"""`Context`: whether a prompt fits the positions of the models that read it, and how long its answer may become."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..modeling.few_shot_semcot import plain_ids
from ..modeling.splicing_semcot import context_of
from ..modeling.thoughts_semcot import find_question
from .settings import TEXT_METHODS, THOUGHT_METHODS


@dataclass(frozen=True)
class Context:
    """The positions of host and generator, by one method.

    Args:
        config: the model's configuration.
        method: see `AnswerSettings`.
        count: most implicit tokens, or words of a thought.
        limit: most new tokens of an answer.
        limit_name: the setting that is the limit.
        ends: number of the answer prompt's tokens.
        candidates: thoughts for each question; `None` means the model's own number.
    """

    config: Any
    method: str
    count: int
    limit: int
    limit_name: str
    ends: int
    candidates: int | None = None

    def problem(self, prompt: Sequence[int]) -> str | None:
        """Return why a prompt (token ids) exceeds the context, or `None` when it fits.

        The new tokens count in full, so that whether a prompt fits does not depend on the other prompts of its batch.
        """
        count, new, (room, generator_room) = self.count, self.limit, self._sizes
        length, question, shown = len(prompt), self._plain(prompt), 0
        thought = f"a thought of {count}" if self.method in TEXT_METHODS else f"{count} implicit tokens"
        if self.method == "generator":
            shown = sum(map(len, self.config.thought_prompt_ids or []))
        if room is not None and shown + length + count + new > room:
            further = f", a thought prompt of {shown}" if shown else ""
            return (
                f"a prompt of {length} tokens{further}, {thought} and {new} new tokens are more than the context "
                f"of {room}: shorten the question or lower {self.limit_name}"
            )
        shown = sum(map(len, getattr(self.config, "thought_prompt_ids", None) or []))
        if generator_room is not None and shown + question + count > generator_room:
            further = f", a thought prompt of {shown}" if shown else ""
            return (
                f"a question of {question} tokens{further} and {count} implicit tokens are more than the generator's "
                f"context of {generator_room}: shorten the question"
            )
        if self.method not in THOUGHT_METHODS or self.method == "generator":
            return None
        unread = candidate_problem(self.config, prompt, count, self.candidates)
        return unread and f"{unread}: shorten the question"

    def room_for_answer(self, prompt: Sequence[int], reasoning: int | None = None) -> int:
        """Return the most new tokens of the answer to a prompt: the limit, or what the host holds.

        Args:
            prompt: token ids.
            reasoning: limit of explicit reasoning, which follows the question alone; `None` for other answers.
        """
        room = self._sizes[0]
        limit, used = self.limit, len(prompt) + self.count
        if reasoning is not None:
            limit, used = reasoning, self._plain(prompt)
        # Methods whose thoughts are text read other prompts than these.
        return limit if room is None or self.method in TEXT_METHODS else min(limit, room - used)

    def _plain(self, prompt: Sequence[int]) -> int:
        """Return the length of a prompt without answer prompt and worked examples, which the generator does not read.

        Not every prompt shows the examples: some templates leave them out beside a system message.
        """
        return len(plain_ids(list(prompt), getattr(self.config, "few_shot_ids", None))) - self.ends

    @cached_property
    def _sizes(self) -> tuple[int | None, int | None]:
        """Positions of what answers and, where it reads the prompts' own ids, of the generator; `None` is no limit."""
        config, alone = self.config, self.method.startswith("generator")
        makes = alone or self.count and self.method != "condensed"
        reads_ids = makes and not getattr(config, "separate_generator_tokenizer", True)
        generator = context_of(config.generator_config.get_text_config()) if reads_ids else None
        return (generator, None) if alone else (context_of(config.get_text_config()), generator)


def candidate_problem(config: Any, prompt: Sequence[int], count: int, number: int | None = None) -> str | None:
    """Return why the host cannot score candidate thoughts in `config.candidate_prompt`; `None` if it can, or need not.

    Args:
        config: the model's configuration.
        prompt: token ids of the whole prompt.
        count: most implicit tokens.
        number: of candidates; `None` means the config's own.
    """
    parts = getattr(config, "candidate_prompt", None)
    number = getattr(config, "num_candidates", 1) if number is None else number
    room = context_of(config.get_text_config())
    if parts is None or room is None or number == 1 or count == 0 or config.candidate_host_weight == 0:
        return None
    asked, ends = plain_ids(list(prompt), config.few_shot_ids), config.answer_prompt_ids or []
    if len(asked) < len(prompt):
        # After worked examples thoughts are scored in the prompt itself.
        return None
    if ends and asked[-len(ends) :] == ends:
        asked = asked[: -len(ends)]
    marked = find_question(asked, parts["opening"], parts["closing"], ends)
    question, shown = len(marked or asked), sum(len(parts[name]) for name in ("before", "after", "end"))
    if question + shown + count <= room:
        return None
    return (
        f"a question of {question} tokens, a candidate prompt of {shown} and a thought of {count} are more than the "
        f"host's context of {room}"
    )
