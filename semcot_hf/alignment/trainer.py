"""SemCoTAlignmentTrainer: stage 1, contrastive training of the alignment encoder, evaluated by retrieval."""

import contextlib
import copy
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from datasets import Dataset, IterableDataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Dense
from sentence_transformers.util import is_sentence_transformer_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import PredictionOutput

from ..modeling.folders_semcot import check_run_folder
from ..training.adapters import ADAPTERS_NAME, add_adapters, load_apart, merged_adapters, save_adapters
from ..training.trainer import SemCoTTrainer, load_tokenizer, no_loading_bars
from .config import SemCoTAlignmentConfig
from .data import PAIR_COLUMNS, reasoning_pairs, training_and_validation
from .encoder import (
    build_alignment_encoder,
    check_texts,
    load_alignment_encoder,
    takes_hidden_states,
    trained_part,
)
from .state_cache import FromStates, HeadFeatures, LayerStates, TrainingTexts

if TYPE_CHECKING:
    from peft import PeftConfig


class SemCoTAlignmentTrainer(SemCoTTrainer, SentenceTransformerTrainer):
    """Train the alignment encoder f by InfoNCE on (reasoning, condensed reasoning) pairs (SemCoT, stage 1).

    Training has two phases: the first `head_warmup` of all steps train only the linear layer, the rest also the
    layers. Everything else is as in `SentenceTransformerTrainer`: `train()`, `evaluate()`, `push_to_hub()`,
    callbacks, `resume_from_checkpoint`, and `save_model(DIR)`, which `SentenceTransformer(DIR)` loads.

    Args:
        model: the host LM, its id or its path; or an alignment encoder to train further, its id or its path.
        args: the configuration.
        train_dataset: rows with `reasoning` and `condensed_reasoning`; other columns are ignored. A stream is read
            once.
        eval_dataset: the same for validation, never the test split; held out from `train_dataset` when `None`.
        processing_class: the host's tokenizer; loaded from where the host comes from when `None`.
        callbacks, optimizers: as in `Trainer`.
        peft_config: adapters for the layers, trained instead of their weights and merged into what is saved.

    Raises:
        ValueError: for a dataset without the columns or without a usable row, an `eval_dataset` equal to
            `train_dataset`, an `args.output_dir` that the host comes from, and arguments that
            `build_alignment_encoder` or `add_adapters` refuse.
    """

    training_args_class: type[SentenceTransformerTrainingArguments] = SemCoTAlignmentConfig
    args: SemCoTAlignmentConfig
    model: SentenceTransformer
    train_dataset: Dataset

    def __init__(
        self,
        model: PreTrainedModel | SentenceTransformer | str | os.PathLike,
        args: SemCoTAlignmentConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        peft_config: "PeftConfig | None" = None,
    ):
        args = SemCoTAlignmentConfig("alignment_encoder") if args is None else copy.copy(args)
        set_seed(args.seed)
        check_run_folder(str(args.output_dir), [("host", _host_name(model))])
        encoder = _encoder_from(model, processing_class, args)
        if peft_config is not None:
            add_adapters(trained_part(encoder), peft_config, "the linear layer")
        train_pairs, eval_pairs = training_and_validation(train_dataset, eval_dataset, args)
        for name, pairs in (("train_dataset", train_pairs), ("eval_dataset", eval_pairs)):
            if pairs is not None:
                check_texts(encoder, [list(pairs[column]) for column in PAIR_COLUMNS], name, "pairs")
        _show_example(encoder.model_card_data, eval_pairs or train_pairs)
        self._phase = _LayerPhase(encoder, args)
        # The linear layer is module 2 of the encoder, which the loss calls `model`.
        rates = cast(dict, args.learning_rate_mapping)
        args.learning_rate_mapping = {r"^model\.2\.": args.head_learning_rate, **rates}
        super().__init__(
            model=encoder,
            args=args,
            train_dataset=train_pairs,
            eval_dataset=eval_pairs,
            loss=info_nce(encoder, args),
            evaluator=None if eval_pairs is None else PairRetrievalEvaluator(eval_pairs, args.eval_batch_size),
            callbacks=[self._phase, *(callbacks or [])],
            optimizers=optimizers,
        )
        self._head_info_nce = MultipleNegativesRankingLoss(encoder, **_loss_options(args))
        self._loss_from_states = info_nce(encoder, args)
        self._loss_from_states.model = FromStates(encoder)
        self._reset_run()

    def _reset_run(self) -> None:
        # The optimizer gets the parameters that require a gradient when training starts: those of both phases.
        self._phase.train_layers(True)
        self._texts: TrainingTexts | None = None
        self._head_features: HeadFeatures | None = None
        self._layer_states: LayerStates | None = None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.args.head_weight_decay is not None:
            for group in optimizer.param_groups:
                # By learning_rate_mapping the head has groups of its own: one of the weight, one of the bias.
                if any(parameter is cast(Dense, self.model[2]).linear.weight for parameter in group["params"]):
                    group["weight_decay"] = self.args.head_weight_decay
        return optimizer

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        result: Any = None if return_outputs else self._loss_of_stored(model, inputs)
        if result is None:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.state.global_step}: lower head_learning_rate "
                f"({self.args.head_learning_rate}) and learning_rate ({self.args.learning_rate}), or raise "
                f"temperature ({self.args.temperature})."
            )
        return result

    def _loss_of_stored(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor | None:
        """Return the loss of a training step from stored vectors or states of the texts; `None` without them."""
        args, state = self.args, self.state
        if model is not self.model or not model.training:
            return None
        head_steps = _head_steps(args, state)
        # Encoding all texts once pays off only if they are read often enough.
        with_states = self._rows_in(state.max_steps) >= 2 * len(self.train_dataset) and args.state_cache_gb > 0
        with_head = args.cache_head_features and self._rows_in(head_steps) >= len(self.train_dataset)
        with self.accelerator.autocast():
            if with_head and state.global_step < head_steps:
                if self._head_features is None:
                    states = self._states_of_texts() if with_states and head_steps < state.max_steps else None
                    self._head_features = HeadFeatures(self._training_texts(), states)
                return self._head_loss(inputs, self._head_features)
            states = self._states_of_texts() if with_states else None
            if states is None:
                return None
            features, labels = self.collect_features(inputs)
            stored = [
                {"states": states(text["input_ids"], text["attention_mask"]), "attention_mask": text["attention_mask"]}
                for text in features
            ]
            return self._loss_from_states(stored, labels)

    def _training_texts(self) -> TrainingTexts:
        if self._texts is None:
            texts = [text for column in PAIR_COLUMNS for text in self.train_dataset[column]]
            self._texts = TrainingTexts(self.model, texts, self.args.eval_batch_size)
        return self._texts

    def _states_of_texts(self) -> LayerStates | None:
        """Return the texts' states at the first layer; `None` if they do not fit or the layer cannot read them."""
        if not takes_hidden_states(self.model):
            return None
        if self._layer_states is None:
            self._layer_states = LayerStates(self._training_texts(), self.args.state_cache_gb * 2**30)
        return self._layer_states if self._layer_states.fits else None

    def _head_loss(self, inputs: dict[str, Any], pooled: HeadFeatures) -> torch.Tensor:
        features, labels = self.collect_features(inputs)
        vectors: list[torch.Tensor] = []
        for text in features:
            output = {"sentence_embedding": pooled(text["input_ids"], text["attention_mask"])}
            for module in list(self.model)[2:]:
                output = module(output)
            vectors.append(output["sentence_embedding"])
        return self._head_info_nce.compute_loss_from_embeddings(vectors, cast(torch.Tensor, labels))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the loss and the retrieval metrics on `eval_dataset`, or on the validation pairs when `None`."""
        if eval_dataset is None:
            return super().evaluate(None, ignore_keys, metric_key_prefix)
        with self._retrieval_among(eval_dataset, "eval_dataset") as pairs:
            return super().evaluate(pairs, ignore_keys, metric_key_prefix)

    def predict(self, test_dataset: Dataset | IterableDataset, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Return the metrics of `evaluate` and the embeddings of the pairs of `test_dataset`."""
        with self._retrieval_among(test_dataset, "test_dataset") as pairs:
            return super().predict(pairs, *args, **kwargs)

    @contextlib.contextmanager
    def _retrieval_among(self, dataset: Dataset | IterableDataset, name: str) -> Iterator[Dataset]:
        """Give the pairs of `dataset`, among which retrieval is measured inside the block."""
        pairs = reasoning_pairs(dataset, name).select_columns(list(PAIR_COLUMNS))
        kept, self.evaluator = self.evaluator, PairRetrievalEvaluator(pairs, self.args.eval_batch_size)
        try:
            yield pairs
        finally:
            self.evaluator = kept

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save an encoder with its adapters merged; a checkpoint also has them in a file of their own, to resume."""
        output_dir = output_dir or self._output_dir
        with no_loading_bars(), merged_adapters(self.model):
            super()._save(output_dir, state_dict)
        if self._in_checkpoint:
            save_adapters(self.model, output_dir)

    def _checkpoint_push_skip_names(self, checkpoint_folder: str) -> set[str]:
        return super()._checkpoint_push_skip_names(checkpoint_folder) | {ADAPTERS_NAME}

    def _load_from_checkpoint(self, checkpoint_path: str, model: nn.Module | None = None) -> None:
        # The checkpoint's merged weights are loaded into merged copies; the layers under the adapters never change.
        with no_loading_bars(), merged_adapters(self.model):
            super()._load_from_checkpoint(checkpoint_path)
        load_apart(self.model, checkpoint_path, ADAPTERS_NAME)


def info_nce(encoder: SentenceTransformer, args: SemCoTAlignmentConfig) -> nn.Module:
    """Return L = -mean_i log(exp(cos(f(R_i), f(S_i)) / tau) / sum_j exp(cos(f(R_i), f(S_j)) / tau)) (SemCoT, stage 1).

    With `symmetric`, it is the mean of L and of L with R and S exchanged. In distributed training the negatives come
    from all processes.

    Args:
        encoder: f.
        args: its `temperature`, `symmetric` and `mini_batch_size` choose the loss; with a mini-batch size it is the
            cached loss (GradCache), which has the same gradient.
    """
    if args.mini_batch_size is None:
        return MultipleNegativesRankingLoss(encoder, **_loss_options(args))
    return CachedMultipleNegativesRankingLoss(encoder, mini_batch_size=args.mini_batch_size, **_loss_options(args))


def _loss_options(args: SemCoTAlignmentConfig) -> dict[str, Any]:
    return {
        "scale": 1 / args.temperature,
        "directions": ("query_to_doc", "doc_to_query") if args.symmetric else ("query_to_doc",),
        "partition_mode": "per_direction",
        "gather_across_devices": args.world_size > 1,
    }


def retrieval_scores(similarity: torch.Tensor, related: torch.Tensor) -> tuple[float, float]:
    """Return (top-1 accuracy, mean reciprocal rank) of the best related candidate of each row.

    Ties count against the related candidate, so an encoder that maps all texts to one vector gets low scores.

    Args:
        similarity: (queries, candidates).
        related: (queries, candidates), True where a candidate belongs to the query.

    >>> similarity = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.1, 0.3, 0.2]])
    >>> top1, mrr = retrieval_scores(similarity, torch.eye(3, dtype=torch.bool))  # ranks 1, 2, 2
    >>> round(top1, 3), round(mrr, 3)
    (0.333, 0.667)
    """
    return _scores_of(retrieval_ranks(similarity, related))


def retrieval_ranks(similarity: torch.Tensor, related: torch.Tensor) -> torch.Tensor:
    """Return the rank (queries,) of the best related candidate of each row, from 1; see `retrieval_scores`."""
    best = similarity.masked_fill(~related, -torch.inf).max(dim=1, keepdim=True).values
    return 1 + ((similarity >= best) & ~related).sum(dim=1)


def _scores_of(ranks: torch.Tensor) -> tuple[float, float]:
    return (ranks == 1).double().mean().item(), ranks.double().reciprocal().mean().item()


class PairRetrievalEvaluator(BaseEvaluator):
    """Retrieve the condensed reasoning by the reasoning, and the reverse, among all validation pairs.

    Equal texts are one candidate. `mrr` is the mean of both directions' mean reciprocal ranks.

    Args:
        pairs: dataset with `PAIR_COLUMNS`.
        batch_size: texts encoded at a time.
    """

    def __init__(self, pairs: Dataset, batch_size: int = 64):
        super().__init__()
        self.primary_metric = "mrr"
        self.batch_size = batch_size
        self.texts: list[list[str]] = []
        # The number of each pair's text among the distinct ones, for each column.
        self.columns: list[list[int]] = []
        for name in PAIR_COLUMNS:
            index = {text: i for i, text in enumerate(dict.fromkeys(pairs[name]))}
            self.texts.append(list(index))
            self.columns.append([index[text] for text in pairs[name]])
        self.related = torch.zeros(*map(len, self.texts), dtype=torch.bool)
        self.related[self.columns[0], self.columns[1]] = True

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        metrics = self.metrics(*self.ranks(model))
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics

    def ranks(self, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the ranks of the condensed reasonings, by distinct reasoning, and of the reasonings, the reverse."""
        reasoning, condensed = (
            model.encode(texts, batch_size=self.batch_size, convert_to_tensor=True, show_progress_bar=False)
            for texts in self.texts
        )
        similarity = (reasoning.float() @ condensed.float().T).cpu()
        return retrieval_ranks(similarity, self.related), retrieval_ranks(similarity.T, self.related.T)

    @staticmethod
    def metrics(forth: torch.Tensor, back: torch.Tensor) -> dict[str, float]:
        """Return the metrics of the `ranks` of both directions."""
        (top1, mrr), (top1_back, mrr_back) = _scores_of(forth), _scores_of(back)
        return {
            "top1_reasoning_to_condensed": top1,
            "top1_condensed_to_reasoning": top1_back,
            "mrr_reasoning_to_condensed": mrr,
            "mrr_condensed_to_reasoning": mrr_back,
            "mrr": (mrr + mrr_back) / 2,
        }


def _show_example(card: Any, pairs: Dataset | None) -> None:
    """Set the example of a model card, which would otherwise be drawn at random, with a progress bar."""
    if pairs is not None:
        reasoning, condensed = pairs[0]["reasoning"], pairs[:3]["condensed_reasoning"]
        card.widget = [{"source_sentence": reasoning, "sentences": condensed}]
        card.usage_examples = [reasoning, *condensed[:2]]


def _host_name(model: PreTrainedModel | SentenceTransformer | str | os.PathLike) -> str | os.PathLike | None:
    """Return the id or path of a host that an encoder is made of; `None` for an encoder, which is trained further."""
    if isinstance(model, str | os.PathLike):
        return None if is_sentence_transformer_model(os.fspath(model)) else model
    return model.config.name_or_path if isinstance(model, PreTrainedModel) else None


def _encoder_from(
    model: PreTrainedModel | SentenceTransformer | str | os.PathLike,
    tokenizer: PreTrainedTokenizerBase | None,
    args: SemCoTAlignmentConfig,
) -> SentenceTransformer:
    """Return the encoder in float32: 16-bit weights lose updates of 1e-5; `bf16` autocasts the computation."""
    if isinstance(model, str | os.PathLike):
        if is_sentence_transformer_model(os.fspath(model)):
            model = SentenceTransformer(os.fspath(model))
        else:
            model = AutoModelForCausalLM.from_pretrained(model, **cast(dict, args.model_init_kwargs or {}))
    if isinstance(model, SentenceTransformer):
        return load_alignment_encoder(model).float()
    encoder = build_alignment_encoder(
        model,
        load_tokenizer(model.config) if tokenizer is None else tokenizer,
        first_layer=args.first_layer,
        last_layer=args.last_layer,
        pooling=args.pooling,
        embedding_dim=args.embedding_dim,
    )
    return encoder.float()


class _LayerPhase(TrainerCallback):
    """Train the layers, or their adapters, once the linear layer's share of all steps is over."""

    def __init__(self, encoder: SentenceTransformer, args: SemCoTAlignmentConfig):
        self.transformer, self.config = encoder[0], args
        self.names = [name for name, parameter in self.transformer.named_parameters() if parameter.requires_grad]

    def train_layers(self, wanted: bool) -> None:
        for name in self.names:
            self.transformer.get_parameter(name).requires_grad_(wanted)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.train_layers(state.global_step >= _head_steps(self.config, state))


def _head_steps(args: SemCoTAlignmentConfig, state: TrainerState) -> int:
    return round(args.head_warmup * state.max_steps)
