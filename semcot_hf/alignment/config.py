"""Arguments of stage 1, the training of the alignment encoder."""

from dataclasses import dataclass, field

from sentence_transformers import SentenceTransformerTrainingArguments

from ..training.device_defaults import set_device_defaults
from .encoder import POOLINGS


@dataclass
class SemCoTAlignmentConfig(SentenceTransformerTrainingArguments):
    """Arguments of `SemCoTAlignmentTrainer`; those not named here are sentence-transformers' training arguments.

    The loss is InfoNCE over the pairs of a batch (SemCoT, section 3.2, stage 1): a larger
    `per_device_train_batch_size` gives more negatives.
    """

    _VALID_DICT_FIELDS = [*SentenceTransformerTrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]

    first_layer: int | None = field(
        default=None,
        metadata={
            "help": "First layer of the encoder, from zero; below it the host is frozen. None: 16 of 32, scaled."
        },
    )
    last_layer: int | None = field(
        default=None, metadata={"help": "Last layer of the encoder, included. None: 20 of 32, scaled."}
    )
    pooling: str = field(default="mean", metadata={"help": f"How tokens become one vector: {', '.join(POOLINGS)}."})
    embedding_dim: int = field(default=768, metadata={"help": "Size of the encoder's output."})
    temperature: float = field(
        default=0.05, metadata={"help": "tau of InfoNCE. The paper names no value; this is sentence-transformers'."}
    )
    symmetric: bool = field(
        default=False,
        metadata={
            "help": "Average InfoNCE over both directions; else reasoning to condensed only, as the paper does."
        },
    )
    head_warmup: float = field(
        default=0.5,
        metadata={"help": "Share of all steps that train the linear layer only (0 skips the phase, 1 is all of it)."},
    )
    head_learning_rate: float = field(
        default=1e-3, metadata={"help": "The initial learning rate of the linear layer, in both phases."}
    )
    cache_head_features: bool = field(
        default=True,
        metadata={
            "help": "Encode each training text once for the linear layer's phase, in which nothing before it changes, "
            "and keep the pooled vectors (host size times 4 bytes a text; one process only)."
        },
    )
    state_cache_gb: float = field(
        default=4.0,
        metadata={
            "help": "GiB of memory and disk for the training texts' hidden states at first_layer, which are computed "
            "once for all runs where all fit (0: at each step; one process only)."
        },
    )
    head_weight_decay: float | None = field(
        default=None, metadata={"help": "Weight decay of the linear layer, in both phases. None: weight_decay."}
    )
    validation_fraction: float = field(
        default=0.1,
        metadata={"help": "Share of train_dataset held out for validation where no eval_dataset is given."},
    )
    mini_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Texts encoded at a time by the cached loss, which keeps memory constant in the batch size."
        },
    )
    model_init_kwargs: dict | str | None = field(
        default=None,
        metadata={"help": "Arguments for the host's from_pretrained, where the model is given by id or path."},
    )
    learning_rate: float = field(
        default=1e-5,
        metadata={"help": "The initial learning rate of the layers, or of their adapters (usual for those: 1e-4)."},
    )
    num_train_epochs: float = field(
        default=8.0, metadata={"help": "Epochs of both phases together (the paper: 7 + 1)."}
    )
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Pairs a batch, on each device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Pairs an evaluation batch."})
    batch_sampler: str = field(
        default="no_duplicates", metadata={"help": "'no_duplicates' keeps equal texts out of each other's negatives."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to validate: 'no', 'steps' or 'epoch'."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: 'no', 'steps', 'epoch' or 'best'."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept, the best one besides."})
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "End on the best validated weights (not with eval_strategy='no')."}
    )
    metric_for_best_model: str | None = field(
        default="eval_mrr", metadata={"help": "What the best checkpoint is best in."}
    )
    report_to: str = field(
        default="none", metadata={"help": "'tensorboard', 'trackio', 'wandb' and the like, 'all' or 'none'."}
    )
    bf16: bool | None = field(
        default=None, metadata={"help": "Autocast to bfloat16. None: where an accelerator supports it."}
    )

    def __post_init__(self):
        set_device_defaults(self)
        if self.eval_strategy == "no":
            self.load_best_model_at_end = False
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be above 0 (common: 0.05).")
        if not 0 <= self.head_warmup <= 1:
            raise ValueError(f"head_warmup={self.head_warmup} must lie within 0 and 1.")
        if self.head_learning_rate <= 0:
            raise ValueError(f"head_learning_rate={self.head_learning_rate} must be above 0.")
        if self.state_cache_gb < 0:
            raise ValueError(f"state_cache_gb={self.state_cache_gb} must be 0 or more (in GiB).")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction={self.validation_fraction} must be at least 0 and less than 1.")
        if self.mini_batch_size is not None and self.mini_batch_size < 1:
            raise ValueError(f"mini_batch_size={self.mini_batch_size} must be 1 or more, or None.")
        if self.per_device_train_batch_size < 2:
            raise ValueError(
                f"per_device_train_batch_size={self.per_device_train_batch_size}: InfoNCE needs at least 2 pairs a "
                "batch, since the others are a pair's negatives."
            )
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling={self.pooling!r} is unknown: choose one of {', '.join(POOLINGS)}.")
