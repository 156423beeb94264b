"""`EvaluationConfig`: the options of `evaluate` and the flags of `semcot evaluate`."""

from dataclasses import dataclass

from ..inference.escalating import escalation_argument
from ..inference.settings import ANSWER_METHODS
from ..modeling.escalation_semcot import SIGNALS
from ..options import check_range, option


@dataclass
class EvaluationConfig:
    """What is evaluated and reported, and how."""

    output_dir: str | None = option(None, "Folder of predictions, report and plots; by default nothing is written.")
    answer_type: str | None = option(
        None, "numeric, choice, yes_no, sequence or expression; by default inferred from the answers."
    )
    methods: list[str] | None = option(
        None, f"Of {', '.join(ANSWER_METHODS)}; by default all that the model has; condensed only beside words."
    )
    controls: bool = option(
        True, "Also run a SemCoT model with no implicit tokens, another question's, their mean, and noise."
    )
    token_counts: list[int] = option([], "Further numbers of implicit tokens to run SemCoT with.")
    num_candidates: int | None = option(
        None, "Thoughts made for each question, of which one is read; by default the checkpoint's own number."
    )
    escalate: str | None = option(
        None,
        "Answer by explicit reasoning where the confidence in the implicit answer is below this threshold; without a "
        "value, by the checkpoint's own rule, which semcot calibrate writes.",
        alone="own",
    )
    signals: list[str] = option(
        [], f"Signals that the answers of semcot are stored with, for a calibration: of {', '.join(SIGNALS)}."
    )
    alignment_encoder: str | None = option(
        None, "Folder or id of the encoder of semcot align, for the signal similarity."
    )
    overwrite: bool = option(False, "Discard another run's predictions in output_dir.")
    batch_size: int = option(64, "Questions answered at once.")
    max_new_tokens: int = option(256, "Most tokens of one answer.")
    max_reasoning_tokens: int | None = option(
        None,
        "Most tokens of explicit reasoning (cot, escalated); by default as the rule says, or max_new_tokens.",
    )
    answer_prompt: str | None = option(
        None, "Text after the generation prompt; by default the one that the model was trained with."
    )
    cot_instruction: str | None = option(
        None,
        "Text after each question for explicit CoT alone, such as 'Think step by step, and end with the letter of the "
        "answer.': without it, hosts answer some questions at once. Escalation does not have it.",
    )
    thought_prompt: str | None = option(
        None,
        "Worked examples for the method condensed: a JSON file of chat messages, or 'equations' for the built-in "
        "ones; by default the model's own thought prompt, or else equations.",
    )
    max_thought_tokens: int | None = option(
        None, "Most tokens of a thought of the method condensed; by default the model's own limit, and at least 48."
    )
    chat: bool | None = option(None, "Use the chat template; by default where the tokenizer has one.")
    seed: int = option(0, "Seed of the controls, the bootstrap and the choice of questions for latency.")
    latency_samples: int = option(50, "Questions whose latency is measured; 0 measures none.")
    latency_batch_sizes: list[int] = option(
        [1], "Batch sizes at which latency is measured; the report's rows give the first."
    )
    model_name: str | None = option(None, "Name of the model in the report; by default its path.")
    dataset_name: str | None = option(None, "Name of the dataset in the report.")
    command: str | None = option(None, "Command line in the report; by default that of this process.")

    def __post_init__(self) -> None:
        check_range(self, "[1, inf)", "batch_size", "max_new_tokens")
        check_range(self, "[1, inf)", "max_reasoning_tokens", "max_thought_tokens", "num_candidates", optional=True)
        check_range(self, "[0, inf)", "latency_samples")
        if self.latency_samples and (not self.latency_batch_sizes or min(self.latency_batch_sizes) < 1):
            raise ValueError(f"latency_batch_sizes={self.latency_batch_sizes}: give sizes of 1 or more.")
        escalation_argument(self.escalate)
        unknown = [name for name in self.signals if name not in SIGNALS]
        if unknown:
            raise ValueError(f"signals has {', '.join(map(repr, unknown))}: choose among {', '.join(SIGNALS)}.")
        if self.methods is not None and not self.methods:
            raise ValueError(f"methods is empty: choose among {', '.join(ANSWER_METHODS)}.")
