"""Options of a condensation; `semcot condense` has the same names as flags."""

from dataclasses import dataclass, field

STAGES = ("reasoning", "condensed_reasoning")


@dataclass(kw_only=True)
class CondenseConfig:
    """Options of `condense_dataset`; the metadata of each field explains it.

    Raises:
        ValueError: for values out of range.
    """

    output_dir: str = field(
        metadata={"help": "Folder of the journal and of the completed dataset; a rerun continues there."}
    )
    make: list[str] = field(
        default_factory=lambda: list(STAGES),
        metadata={"help": "Texts to make where they are missing: reasoning, condensed_reasoning."},
    )
    replace: bool = field(default=False, metadata={"help": "Also replace texts that the dataset has."})
    splits: list[str] = field(
        default_factory=lambda: ["train", "validation"],
        metadata={"help": "Splits to complete; others are copied unchanged."},
    )
    answer_type: str | None = field(
        default=None,
        metadata={"help": "Answer type: numeric, choice, yes_no, sequence or expression; inferred when left out."},
    )
    max_words: int = field(default=10, metadata={"help": "Maximum words of a model's condensed reasoning."})
    max_attempts: int = field(default=3, metadata={"help": "Replies to request before a row is rejected."})
    price_input: float | None = field(default=None, metadata={"help": "Price of a million input tokens."})
    price_output: float | None = field(default=None, metadata={"help": "Price of a million output tokens."})

    def __post_init__(self) -> None:
        for name in ("max_words", "max_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if not self.make or {*self.make} - {*STAGES}:
            raise ValueError(f"make={list(self.make)} must be one or both of {', '.join(STAGES)}.")
        if (self.price_input is None) != (self.price_output is None):
            raise ValueError("price_input and price_output go together: pass both, or none.")

    def cost(self, input_tokens: int, output_tokens: int) -> float | None:
        """Return the price of tokens; `None` without prices.

        >>> CondenseConfig(output_dir="x", price_input=0.15, price_output=0.6).cost(2_000_000, 500_000)
        0.6
        """
        if self.price_input is None or self.price_output is None:
            return None
        return round((input_tokens * self.price_input + output_tokens * self.price_output) / 1e6, 6)
