"""Arguments of stage 2, the distillation of reasoning into implicit tokens."""

from dataclasses import dataclass, field

from trl.trainer.base_config import _BaseConfig

from ..inference.prompting import ANSWER_PROMPT
from ..training.device_defaults import set_device_defaults

ALIGNMENT_VIEWS = ("embedding", "hidden_state", "mean_pooled")


@dataclass
class SemCoTDistillationConfig(_BaseConfig):
    """Arguments of `SemCoTDistillationTrainer`; those not named here are transformers' `TrainingArguments`.

    The loss is L = alpha * L_reason + (1 - alpha) * L_answer + step_weight * L_step + kl_weight * L_KL
    + hidden_weight * L_hidden (SemCoT, section 3.2; SIM-CoT; CODI). An objective of weight 0 is not computed.
    """

    _VALID_DICT_FIELDS = [*_BaseConfig._VALID_DICT_FIELDS, "model_init_kwargs"]

    alpha: float = field(
        default=0.25, metadata={"help": "Weight of the semantic alignment; the answer's cross-entropy has 1 - alpha."}
    )
    step_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of SIM-CoT's step decoder, which must tell each token's step."},
    )
    kl_weight: float = field(
        default=0.0, metadata={"help": "Weight of the KL to the host's answer distribution after its explicit CoT."}
    )
    hidden_weight: float = field(
        default=0.0, metadata={"help": "Weight of CODI's hidden-state loss at the token before the answer."}
    )
    alignment_view: str = field(
        default="embedding",
        metadata={
            "help": "How implicit tokens are compared with the reasoning: 'embedding' (they enter the alignment "
            "encoder themselves), 'hidden_state' (the host's states at their positions do, of the layer the text's "
            "states are taken from) or 'mean_pooled' (no encoder: their mean against the mean of the host's states of "
            "the reasoning, the paper's ablation)."
        },
    )
    steps_per_token: int = field(
        default=1, metadata={"help": "Reasoning steps told by one implicit token; surplus steps join the last token."}
    )
    curriculum: float = field(
        default=0.0,
        metadata={
            "help": "Share of all steps over which the reasoning moves from words into the tokens, as in Coconut and "
            "ICoT: at first the words of all but the first token's steps stand, as labels, between the tokens and "
            "the answer prompt, then those of all but the first two tokens', and so on (0: never any words)."
        },
    )
    step_decoder: str = field(
        default="generator",
        metadata={"help": "Step decoder to start from: 'generator' (a copy of the generator's LM), an id or a path."},
    )
    keep_step_decoder: bool = field(
        default=True, metadata={"help": "Save the step decoder as the reader of the tokens; generation never runs it."}
    )
    projection_warmup: float = field(
        default=0.1,
        metadata={"help": "Share of all steps that train the projection and <thought> only (0 skips the phase)."},
    )
    projection_learning_rate: float | None = field(
        default=None, metadata={"help": "Initial learning rate of projection and <thought>. None: learning_rate."}
    )
    projection_weight_decay: float | None = field(
        default=None, metadata={"help": "Weight decay of projection and <thought>. None: weight_decay."}
    )
    answer_prompt: str | None = field(
        default=None,
        metadata={
            "help": "Text between the implicit tokens and the answer. None: the one that the model was trained with "
            f"before, or else {ANSWER_PROMPT!r}."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens of prompt, implicit tokens and answer together; longer rows are an error. None: the "
            "host's context."
        },
    )
    use_question_cache: bool = field(
        default=True,
        metadata={
            "help": "Run the frozen host over the questions without gradient, and back-propagate through what follows "
            "only: the same loss and gradients in less time and memory."
        },
    )
    question_cache_gb: float = field(
        default=4.0,
        metadata={
            "help": "GiB on each device for the frozen models' keys and values of the training questions, kept from "
            "epoch to epoch with use_question_cache, where those of all questions fit (0: computed at each step)."
        },
    )
    model_init_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Arguments for from_pretrained, where the model is given by id or path; `semcot distill` has them "
            "for host and generator."
        },
    )
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenize the dataset."})
    eval_generations: int = field(
        default=0, metadata={"help": "Evaluation questions answered by generation at each evaluation (0: none)."}
    )
    generation_max_new_tokens: int = field(default=32, metadata={"help": "Longest generated answer in tokens."})
    include_host: bool | None = field(
        default=None, metadata={"help": "Save the host with the model; None includes one that has no id or path."}
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "The initial learning rate."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Every step uses all trained parameters, so DDP need not look for others."}
    )
    # TRL sets this by default, which transformers deprecates in favour of activation_checkpointing.
    gradient_checkpointing: bool | None = field(default=None, metadata={"help": "Use activation_checkpointing."})

    def __post_init__(self):
        set_device_defaults(self)
        super().__post_init__()
        for name in ("label_smoothing_factor", "neftune_noise_alpha"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)}: the losses of stage 2 are computed without it. Leave it out."
                )
        if self.accelerator_config.dispatch_batches is None:
            # Else one process reads streams for all, and cannot join batches that are padded to their own lengths.
            self.accelerator_config.dispatch_batches = False
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha}: must lie within 0 and 1.")
        for name in ("step_weight", "kl_weight", "hidden_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be 0 or more.")
        if not 0 <= self.projection_warmup < 1:
            raise ValueError(f"projection_warmup={self.projection_warmup}: must be at least 0 and less than 1.")
        if not 0 <= self.curriculum < 1:
            raise ValueError(f"curriculum={self.curriculum}: must be at least 0 and less than 1.")
        if self.question_cache_gb < 0:
            raise ValueError(f"question_cache_gb={self.question_cache_gb}: must be 0 or more (in GiB).")
        if self.steps_per_token < 1:
            raise ValueError(f"steps_per_token={self.steps_per_token}: must be 1 or more.")
        if self.alignment_view not in ALIGNMENT_VIEWS:
            raise ValueError(f"alignment_view={self.alignment_view!r}: must be one of {ALIGNMENT_VIEWS}.")

    def to_dict(self):
        # TrainingArguments takes whatever ends on "_token" for a secret.
        return {**super().to_dict(), "steps_per_token": self.steps_per_token}
