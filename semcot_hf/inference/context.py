"""`Context`: whether a prompt fits the positions of the models that read it, and how long its answer may become."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..modeling.splicing_semcot import context_of
from .settings import TEXT_METHODS


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
        examples: number of tokens of the worked examples in each prompt, which the generator does not read.
    """

    config: Any
    method: str
    count: int
    limit: int
    limit_name: str
    ends: int
    examples: int = 0

    def problem(self, length: int) -> str | None:
        """Return why a prompt of `length` tokens exceeds the context, or `None` when it fits.

        The new tokens count in full, so that whether a prompt fits does not depend on the other prompts of its batch.
        """
        count, new, (room, generator_room) = self.count, self.limit, self._sizes
        question, shown = length - self.ends - self.examples, 0
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
        return None

    def room_for_answer(self, length: int, reasoning: int | None = None) -> int:
        """Return the most new tokens of the answer to a prompt of `length` tokens: the limit, or what the host holds.

        Args:
            length: of the prompt.
            reasoning: limit of explicit reasoning, which follows the question alone; `None` for other answers.
        """
        room = self._sizes[0]
        limit, used = self.limit, length + self.count
        if reasoning is not None:
            limit, used = reasoning, length - self.ends - self.examples
        # Methods whose thoughts are text read other prompts than these.
        return limit if room is None or self.method in TEXT_METHODS else min(limit, room - used)

    @cached_property
    def _sizes(self) -> tuple[int | None, int | None]:
        """Positions of what answers and, where it reads the prompts' own ids, of the generator; `None` is no limit."""
        config, alone = self.config, self.method.startswith("generator")
        makes = alone or self.count and self.method != "condensed"
        reads_ids = makes and not getattr(config, "separate_generator_tokenizer", True)
        generator = context_of(config.generator_config.get_text_config()) if reads_ids else None
        return (generator, None) if alone else (context_of(config.get_text_config()), generator)
