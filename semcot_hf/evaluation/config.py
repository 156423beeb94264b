"""`EvaluationConfig`: the options of `evaluate` and the flags of `semcot evaluate`."""

from dataclasses import dataclass, field


@dataclass
class EvaluationConfig:
    """What is evaluated and reported, and how."""

    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of predictions, report and plots; by default nothing is written."},
    )
    answer_type: str | None = field(
        default=None,
        metadata={"help": "numeric, choice, yes_no or sequence; by default inferred from the answers."},
    )
    methods: list[str] | None = field(
        default=None, metadata={"help": "Of no_cot, cot and semcot; by default all that the model has."}
    )
    controls: bool = field(
        default=True,
        metadata={
            "help": "Also run a SemCoT model with no implicit tokens, another question's, their mean, and noise."
        },
    )
    token_counts: list[int] = field(
        default_factory=list, metadata={"help": "Further numbers of implicit tokens to run SemCoT with."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Discard another run's predictions in output_dir."})
    batch_size: int = field(default=64, metadata={"help": "Questions answered at once."})
    max_new_tokens: int = field(
        default=256, metadata={"help": "Most tokens of one answer, explicit reasoning included."}
    )
    answer_prompt: str | None = field(
        default=None,
        metadata={"help": "Text after the generation prompt; by default the one that the model was trained with."},
    )
    chat: bool | None = field(
        default=None, metadata={"help": "Use the chat template; by default where the tokenizer has one."}
    )
    seed: int = field(
        default=0, metadata={"help": "Seed of the controls, the bootstrap and the choice of questions for latency."}
    )
    latency_samples: int = field(
        default=50, metadata={"help": "Questions whose latency is measured; 0 measures none."}
    )
    latency_batch_sizes: list[int] = field(
        default_factory=lambda: [1],
        metadata={"help": "Batch sizes at which latency is measured; the report's rows give the first."},
    )
    model_name: str | None = field(
        default=None, metadata={"help": "Name of the model in the report; by default its path."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Name of the dataset in the report."})
    command: str | None = field(
        default=None, metadata={"help": "Command line in the report; by default that of this process."}
    )

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("max_new_tokens", 1), ("latency_samples", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be {least} or more.")
        if self.latency_samples and (not self.latency_batch_sizes or min(self.latency_batch_sizes) < 1):
            raise ValueError(f"latency_batch_sizes={self.latency_batch_sizes}: give sizes of 1 or more.")
        if self.methods is not None and not self.methods:
            raise ValueError("methods is empty: choose among no_cot, cot and semcot.")
