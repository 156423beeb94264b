"""Arguments of stage 2, the distillation of reasoning into implicit tokens."""

from dataclasses import dataclass
from typing import Any

from transformers.trainer_pt_utils import AcceleratorConfig
from trl.trainer.base_config import _BaseConfig

from ..options import check_range, option
from ..training.device_defaults import set_device_defaults

ALIGNMENT_VIEWS = ("embedding", "hidden_state", "mean_pooled")


@dataclass
class SemCoTDistillationConfig(_BaseConfig):
    """Arguments of `SemCoTDistillationTrainer`; those not named here are transformers' `TrainingArguments`.

    The loss is L = alpha * L_reason + (1 - alpha) * L_answer + step_weight * L_step + kl_weight * L_KL
    + hidden_weight * L_hidden + words_weight * L_words (SemCoT, section 3.2; SIM-CoT; CODI). An objective of weight 0
    is not computed. In the words phase the loss is L_words.
    """

    _VALID_DICT_FIELDS = [*_BaseConfig._VALID_DICT_FIELDS, "model_init_kwargs"]

    alpha: float = option(0.25, "Weight of the semantic alignment; the answer's cross-entropy has weight 1 - alpha.")
    step_weight: float = option(0.0, "Weight of SIM-CoT's step decoder, which decodes the steps of each token.")
    kl_weight: float = option(0.0, "Weight of the KL to the host's answer distribution after its explicit CoT.")
    hidden_weight: float = option(0.0, "Weight of CODI's hidden-state loss at the token before the answer.")
    alignment_view: str = option(
        "embedding",
        "What is compared with the reasoning's embedding: 'embedding' (the implicit tokens, as input of the alignment "
        "encoder), 'hidden_state' (the host's hidden states at their positions, as input of the encoder's first "
        "layer) or 'mean_pooled' (without an encoder: the mean of the tokens, with the mean of the host's hidden "
        "states of the reasoning; an ablation of the paper).",
    )
    steps_per_token: int = option(1, "Reasoning steps per implicit token; surplus steps join the last token.")
    curriculum: float = option(
        0.0,
        "Share of all steps in which words of the reasoning follow the implicit tokens, as in Coconut and ICoT. At "
        "first the steps of all tokens but the first are given as words, with labels, before the answer prompt; then "
        "those of all but the first two tokens, and so on (0: no words).",
    )
    words_max_steps: int = option(
        0,
        "Steps of the words phase, which come before those of max_steps or num_train_epochs: the generator learns to "
        "write a row's words after its question, and to end (0: as many as words_num_train_epochs needs). The model "
        "must have thought_length='adaptive'. With num_train_epochs=0 nothing follows.",
    )
    words_num_train_epochs: float = option(
        0.0,
        "Epochs of the words phase, if words_max_steps is 0 (0: no such phase); of the rows with words alone, if no "
        "other phase follows.",
    )
    words_column: str | None = option(
        None,
        "Column of the words. Three are made from the reasoning: 'equations', those in it; 'open_equations', of one "
        "operation each, the last without its result; and 'plan', the last one with the earlier ones in the places of "
        "their results. None: 'equations' if most rows state some that lead to the answer, else condensed_reasoning "
        "where there is any, else reasoning.",
    )
    few_shot_examples: int = option(
        0,
        "Training rows that the checkpoint shows its host before each question, with their words and answers, as "
        "worked examples (few-shot) in its chat template; the generator does not read them (0: none). They need "
        "words, which those without a result profit from: the host then goes on with the calculation.",
    )
    words_learning_rate: float | None = option(
        None, "Initial learning rate of the words phase, which has a schedule of its own. None: learning_rate."
    )
    words_weight: float = option(0.0, "Weight of the words' loss in the steps after the words phase.")
    train_projection: bool | None = option(
        None,
        "Whether the projection is trained. None: yes, except for projection='vocabulary' together with adapters, "
        "where it is the generator's LM head.",
    )
    step_decoder: str = option(
        "generator", "Initial step decoder: 'generator' (a copy of the generator's LM), an id or a path."
    )
    keep_step_decoder: bool = option(True, "Save the step decoder with the model; generation does not use it.")
    projection_warmup: float = option(
        0.1, "Share of all steps that train the projection and <thought> only (0: no such phase)."
    )
    projection_learning_rate: float | None = option(
        None, "Initial learning rate of projection and <thought>. None: learning_rate."
    )
    projection_weight_decay: float | None = option(
        None, "Weight decay of projection and <thought>. None: weight_decay."
    )
    answer_prompt: str | None = option(
        None,
        "Text between the implicit tokens and the answer. None: the one of the model's earlier training, or "
        "for a new model 'Answer:' on a line of its own, as far as the tokenizer allows it.",
    )
    max_length: int | None = option(
        None,
        "Maximum tokens of prompt, implicit tokens and answer together; longer rows are an error. None: the host's "
        "context.",
    )
    use_question_cache: bool = option(
        True,
        "Run the frozen host over the questions without gradient and back-propagate only through what follows: the "
        "same loss and gradients in less time and memory.",
    )
    question_cache_gb: float = option(
        4.0,
        "GiB on each device for the frozen models' keys and values of the training questions, computed once with "
        "use_question_cache if those of all questions fit (0: compute them at each step).",
    )
    model_init_kwargs: dict | str | None = option(
        None,
        "Arguments of from_pretrained for a model given by id or path; `semcot distill` passes them to host and "
        "generator.",
    )
    dataset_num_proc: int | None = option(None, "Processes that tokenize the dataset.")
    eval_generations: int = option(0, "Evaluation questions answered by generation at each evaluation (0: none).")
    generation_max_new_tokens: int = option(32, "Maximum tokens of a generated answer.")
    include_host: bool | None = option(None, "Save the host with the model. None: only if it has no id or path.")
    learning_rate: float = option(1e-4, "The initial learning rate.")
    ddp_find_unused_parameters: bool | None = option(
        False, "Whether DDP looks for unused parameters; every step uses all trained ones."
    )
    # TRL sets this by default, which transformers deprecates in favour of activation_checkpointing.
    gradient_checkpointing: bool | None = option(  # type: ignore[assignment]  # TRL leaves out transformers' None
        None, "Deprecated by transformers: use activation_checkpointing."
    )

    def __post_init__(self) -> None:
        set_device_defaults(self)
        super().__post_init__()
        for name in ("label_smoothing_factor", "neftune_noise_alpha"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)}: the losses of stage 2 do not support it. Leave it out."
                )
        accelerator_config = self.accelerator_config
        if isinstance(accelerator_config, AcceleratorConfig) and accelerator_config.dispatch_batches is None:
            # With True, one process reads streams for all, and cannot join batches that are padded to other lengths.
            accelerator_config.dispatch_batches = False
        check_range(self, "[0, 1]", "alpha")
        check_range(self, "[0, inf)", "step_weight", "kl_weight", "hidden_weight", "words_weight", "question_cache_gb")
        check_range(self, "[0, inf)", "words_max_steps", "words_num_train_epochs")
        check_range(self, "[0, 1)", "projection_warmup", "curriculum")
        check_range(self, "[1, inf)", "steps_per_token")
        check_range(self, "[0, inf)", "few_shot_examples")
        for name in ("few_shot_examples", "words_column"):
            if getattr(self, name) and not (self.teaches_words or self.words_weight > 0):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is for words, which this training has none of: set "
                    f"words_num_train_epochs, words_max_steps or words_weight, or leave {name} out."
                )
        if self.alignment_view not in ALIGNMENT_VIEWS:
            raise ValueError(f"alignment_view={self.alignment_view!r}: must be one of {ALIGNMENT_VIEWS}.")

    @property
    def teaches_words(self) -> bool:
        """Whether there is a words phase."""
        return self.words_max_steps > 0 or self.words_num_train_epochs > 0

    @property
    def teaches_only_words(self) -> bool:
        """Whether nothing follows the words phase."""
        return self.teaches_words and self.max_steps <= 0 and self.num_train_epochs == 0

    def to_dict(self) -> dict[str, Any]:
        # TrainingArguments.to_dict masks every field whose name ends with "_token" as a secret.
        return {**super().to_dict(), "steps_per_token": self.steps_per_token}
