"""Arguments of stage 1, the training of the alignment encoder."""

from dataclasses import dataclass

from sentence_transformers import SentenceTransformerTrainingArguments

from ..options import check_range, option
from ..training.device_defaults import set_device_defaults
from .encoder import POOLINGS


@dataclass
class SemCoTAlignmentConfig(SentenceTransformerTrainingArguments):
    """Arguments of `SemCoTAlignmentTrainer`; those not named here are sentence-transformers' training arguments.

    The loss is InfoNCE over the pairs of a batch (SemCoT, section 3.2, stage 1): a larger
    `per_device_train_batch_size` gives more negatives.
    """

    _VALID_DICT_FIELDS = [*SentenceTransformerTrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]

    first_layer: int | None = option(
        None, "First layer of the encoder, from zero; the host is frozen below it. None: 16 of 32, scaled."
    )
    last_layer: int | None = option(None, "Last layer of the encoder, included. None: 20 of 32, scaled.")
    pooling: str = option("mean", f"How the tokens are pooled to one vector: {', '.join(POOLINGS)}.")
    embedding_dim: int = option(768, "Size of the encoder's output.")
    temperature: float = option(
        0.05, "Temperature of InfoNCE. The paper gives no value; this is the default of sentence-transformers."
    )
    symmetric: bool = option(
        False,
        "Average InfoNCE over both directions; else from reasoning to condensed reasoning only, as in the paper.",
    )
    head_warmup: float = option(
        0.5, "Share of all steps that train only the linear layer (0: no such phase, 1: all steps)."
    )
    head_learning_rate: float = option(1e-3, "The initial learning rate of the linear layer, in both phases.")
    cache_head_features: bool = option(
        True,
        "Encode each training text once for the phase of the linear layer, in which its input does not change, and "
        "keep the pooled vectors (host size times 4 bytes a text; one process only).",
    )
    state_cache_gb: float = option(
        4.0,
        "GiB of memory and disk for the training texts' hidden states at first_layer, which are computed once for all "
        "runs if all of them fit (0: compute them at each step; one process only).",
    )
    head_weight_decay: float | None = option(
        None, "Weight decay of the linear layer, in both phases. None: weight_decay."
    )
    validation_fraction: float = option(
        0.1, "Share of train_dataset held out for validation if no eval_dataset is given."
    )
    mini_batch_size: int | None = option(
        None,
        "Texts encoded at a time by the cached loss (GradCache), whose memory does not grow with the batch size. "
        "None: the plain loss.",
    )
    model_init_kwargs: dict | str | None = option(
        None, "Arguments of the host's from_pretrained, for a model given by id or path."
    )
    learning_rate: float = option(
        1e-5, "The initial learning rate of the layers, or of their adapters (common for adapters: 1e-4)."
    )
    num_train_epochs: float = option(8.0, "Epochs of both phases together (the paper: 7 + 1).")
    per_device_train_batch_size: int = option(64, "Pairs per training batch, on each device.")
    per_device_eval_batch_size: int = option(64, "Pairs per evaluation batch, on each device.")
    batch_sampler: str = option(
        "no_duplicates", "'no_duplicates' keeps equal texts out of one batch, where they would be negatives."
    )
    logging_steps: float = option(10, "Log every N steps, or every share of all steps for a number below 1.")
    eval_strategy: str = option("epoch", "When to validate: 'no', 'steps' or 'epoch'.")
    save_strategy: str = option("epoch", "When to save: 'no', 'steps', 'epoch' or 'best'.")
    save_total_limit: int | None = option(1, "Number of checkpoints to keep, in addition to the best one.")
    load_best_model_at_end: bool = option(
        True, "Load the best validated weights at the end (not with eval_strategy='no')."
    )
    metric_for_best_model: str | None = option("eval_mrr", "Metric that decides which checkpoint is the best.")
    bf16: bool | None = option(  # type: ignore[assignment]  # None until `__post_init__`
        None, "Autocast to bfloat16. None: if an accelerator supports it."
    )

    def __post_init__(self) -> None:
        set_device_defaults(self)
        if self.eval_strategy == "no":
            self.load_best_model_at_end = False
        super().__post_init__()
        check_range(self, "(0, inf)", "temperature", "head_learning_rate")
        check_range(self, "[0, 1]", "head_warmup")
        check_range(self, "[0, inf)", "state_cache_gb")
        check_range(self, "[0, 1)", "validation_fraction")
        if self.mini_batch_size is not None and self.mini_batch_size < 1:
            raise ValueError(f"mini_batch_size={self.mini_batch_size} must be at least 1, or None.")
        if self.per_device_train_batch_size < 2:
            raise ValueError(
                f"per_device_train_batch_size={self.per_device_train_batch_size}: InfoNCE needs at least 2 pairs a "
                "batch, since the other pairs are the negatives."
            )
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling={self.pooling!r} is unknown: choose one of {', '.join(POOLINGS)}.")
