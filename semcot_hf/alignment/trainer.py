"""SemCoTAlignmentTrainer: stage 1, the contrastive training of the alignment encoder on reasoning pairs."""

import contextlib
import copy
import os

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import is_sentence_transformer_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed

from ..training.adapters import ADAPTERS_NAME, add_adapters, load_adapters, merged_adapters, save_adapters
from ..training.checkpoints import last_complete_checkpoint
from .config import SemCoTAlignmentConfig
from .data import PAIR_COLUMNS, reasoning_pairs, training_and_validation
from .encoder import (
    build_alignment_encoder,
    load_alignment_encoder,
    no_loading_bars,
    takes_hidden_states,
    trained_part,
    warn_of_truncation,
)
from .state_cache import FromStates, HeadFeatures, LayerStates, TrainingTexts


class SemCoTAlignmentTrainer(SentenceTransformerTrainer):
    """Train the alignment encoder f by InfoNCE on (reasoning, condensed reasoning) pairs (SemCoT, stage 1).

    One run in two phases: the first `head_warmup` of all steps train the linear layer only, the rest the layers too.
    All else is `SentenceTransformerTrainer`: `train()`, `evaluate()`, `save_model(DIR)`, which
    `SentenceTransformer(DIR)` opens, `push_to_hub()`, callbacks, `resume_from_checkpoint`.

    Args:
        model: host LM, or its id or path; or an alignment encoder, or its id or path, to train on.
        args: the configuration.
        train_dataset: rows with `reasoning` and `condensed_reasoning`; other columns are left out. A streaming set is
            read once.
        eval_dataset: the same for validation, never the test split; cut from `train_dataset` when `None`.
        processing_class: the host's tokenizer; loaded from where the host comes from when `None`.
        callbacks, optimizers: as in `Trainer`.
        peft_config: adapters for the layers, trained instead of their weights and merged into what is saved.

    Raises:
        ValueError: for a data set without the columns or without a usable row, an `eval_dataset` that is no other
            than `train_dataset`, and what `build_alignment_encoder` and `add_adapters` refuse.
    """

    training_args_class = SemCoTAlignmentConfig

    def __init__(
        self,
        model,
        args=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        callbacks=None,
        optimizers=(None, None),
        peft_config=None,
    ):
        args = SemCoTAlignmentConfig("alignment_encoder") if args is None else copy.copy(args)
        set_seed(args.seed)
        encoder = _encoder_from(model, processing_class, args)
        if peft_config is not None:
            add_adapters(trained_part(encoder), peft_config, "the linear layer")
        train_pairs, eval_pairs = training_and_validation(train_dataset, eval_dataset, args)
        for name, pairs in (("train_dataset", train_pairs), ("eval_dataset", eval_pairs)):
            if pairs is not None:
                warn_of_truncation(encoder, [list(pairs[column]) for column in PAIR_COLUMNS], name, "pairs")
        _show_example(encoder.model_card_data, eval_pairs or train_pairs)
        self._in_checkpoint = False
        self._phase = _LayerPhase(encoder)
        # The linear layer is module 2 of the encoder, which the loss calls `model`.
        args.learning_rate_mapping = {r"^model\.2\.": args.head_learning_rate, **args.learning_rate_mapping}
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
        self._head_features = self._layer_states = self._texts = None

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """As in `Trainer`; `True` goes on from the last checkpoint that was written completely."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
        # The optimizer is made of what requires a gradient at the start: both phases' parameters.
        self._phase.train_layers(True)
        self._head_features = self._layer_states = self._texts = None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.args.head_weight_decay is not None:
            for group in optimizer.param_groups:
                # The head's groups are its own, by learning_rate_mapping: one has the weight, one the bias.
                if any(parameter is self.model[2].linear.weight for parameter in group["params"]):
                    group["weight_decay"] = self.args.head_weight_decay
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        result = None if return_outputs else self._loss_of_stored(model, inputs)
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

    def _loss_of_stored(self, model, inputs):
        """The loss from what is stored of the training texts; `None` where nothing is, or this is no training step."""
        args, state = self.args, self.state
        if model is not self.model or not model.training:
            return None
        samples = state.max_steps * args.train_batch_size * args.gradient_accumulation_steps
        head_steps = _head_steps(args, state)
        head_samples = head_steps * args.train_batch_size * args.gradient_accumulation_steps
        # The texts must be met often enough for encoding all of them once to pay.
        with_states = samples >= 2 * len(self.train_dataset) and args.state_cache_gb > 0
        with_head = args.cache_head_features and head_samples >= len(self.train_dataset)
        with self.accelerator.autocast():
            if with_head and state.global_step < head_steps:
                if self._head_features is None:
                    states = self._states_of_texts() if with_states and head_steps < state.max_steps else None
                    self._head_features = HeadFeatures(self._training_texts(), states)
                return self._head_loss(inputs)
            states = self._states_of_texts() if with_states else None
            if states is None:
                return None
            features, labels = self.collect_features(inputs)
            masks = [text["attention_mask"] for text in features]
            read = [states(text["input_ids"], text["attention_mask"]) for text in features]
            stored = [{"states": h, "attention_mask": mask} for h, mask in zip(read, masks, strict=True)]
            return self._loss_from_states(stored, labels)

    def _training_texts(self):
        if self._texts is None:
            texts = [text for column in PAIR_COLUMNS for text in self.train_dataset[column]]
            self._texts = TrainingTexts(self.model, texts, self.args.eval_batch_size)
        return self._texts

    def _states_of_texts(self):
        """The texts' states at the first layer, or `None` where they do not fit, or cannot be entered there."""
        if not takes_hidden_states(self.model):
            return None
        if self._layer_states is None:
            self._layer_states = LayerStates(self._training_texts(), self.args.state_cache_gb * 2**30)
        return self._layer_states if self._layer_states.fits else None

    def _head_loss(self, inputs):
        features, labels = self.collect_features(inputs)
        vectors = []
        for text in features:
            output = {"sentence_embedding": self._head_features(text["input_ids"], text["attention_mask"])}
            for module in list(self.model)[2:]:
                output = module(output)
            vectors.append(output["sentence_embedding"])
        return self._head_info_nce.compute_loss_from_embeddings(vectors, labels)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Return the loss and the retrieval metrics on `eval_dataset`, or on the validation pairs when `None`."""
        if eval_dataset is None:
            return super().evaluate(None, ignore_keys, metric_key_prefix)
        with self._retrieval_among(eval_dataset, "eval_dataset") as pairs:
            return super().evaluate(pairs, ignore_keys, metric_key_prefix)

    def predict(self, test_dataset, *args, **kwargs):
        """As in `Trainer`: what `evaluate` measures, and the embeddings, of the pairs of `test_dataset`."""
        with self._retrieval_among(test_dataset, "test_dataset") as pairs:
            return super().predict(pairs, *args, **kwargs)

    @contextlib.contextmanager
    def _retrieval_among(self, dataset, name):
        """While it lasts, retrieval is measured among the pairs of `dataset`, which it gives."""
        pairs = reasoning_pairs(dataset, name).select_columns(list(PAIR_COLUMNS))
        kept, self.evaluator = self.evaluator, PairRetrievalEvaluator(pairs, self.args.eval_batch_size)
        try:
            yield pairs
        finally:
            self.evaluator = kept

    def _save_checkpoint(self, *args, **kwargs):
        self._in_checkpoint = True
        try:
            super()._save_checkpoint(*args, **kwargs)
        finally:
            self._in_checkpoint = False

    def _save(self, output_dir=None, state_dict=None):
        """Save a plain encoder, with its adapters merged; a checkpoint has them apart besides, to go on from."""
        with no_loading_bars(), merged_adapters(self.model):
            super()._save(output_dir, state_dict)
        if self._in_checkpoint:
            save_adapters(self.model, output_dir)

    def _checkpoint_push_skip_names(self, checkpoint_folder):
        return super()._checkpoint_push_skip_names(checkpoint_folder) | {ADAPTERS_NAME}

    def _load_from_checkpoint(self, checkpoint_path):
        # The merged weights go into the merged copies; the layers below the adapters are what they were.
        with no_loading_bars(), merged_adapters(self.model):
            super()._load_from_checkpoint(checkpoint_path)
        load_adapters(self.model, checkpoint_path)


def info_nce(encoder, args):
    """L = -mean_i log(exp(cos(f(R_i), f(S_i)) / tau) / sum_j exp(cos(f(R_i), f(S_j)) / tau)) (SemCoT, stage 1).

    Symmetric, it is the mean of this and the same with R and S exchanged. Over several processes the negatives are
    those of all.

    Args:
        encoder: f.
        args: whose `temperature`, `symmetric` and `mini_batch_size` choose the loss; a mini batch size takes the
            cached one (GradCache), which gives the same gradient.
    """
    if args.mini_batch_size is None:
        return MultipleNegativesRankingLoss(encoder, **_loss_options(args))
    return CachedMultipleNegativesRankingLoss(encoder, mini_batch_size=args.mini_batch_size, **_loss_options(args))


def _loss_options(args):
    return {
        "scale": 1 / args.temperature,
        "directions": ("query_to_doc", "doc_to_query") if args.symmetric else ("query_to_doc",),
        "partition_mode": "per_direction",
        "gather_across_devices": args.world_size > 1,
    }


def retrieval_scores(similarity: torch.Tensor, related: torch.Tensor) -> tuple[float, float]:
    """Return (top-1 accuracy, mean reciprocal rank) of the best related candidate of each row.

    Ties count against the related candidate, so that an encoder that maps all to one point scores as it deserves.

    Args:
        similarity: (queries, candidates).
        related: (queries, candidates), True where a candidate belongs to the query.

    >>> similarity = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.1, 0.3, 0.2]])
    >>> top1, mrr = retrieval_scores(similarity, torch.eye(3, dtype=torch.bool))  # ranks 1, 2, 2
    >>> round(top1, 3), round(mrr, 3)
    (0.333, 0.667)
    """
    best = similarity.masked_fill(~related, -torch.inf).max(dim=1, keepdim=True).values
    ranks = 1 + ((similarity >= best) & ~related).sum(dim=1).double()
    return (ranks == 1).double().mean().item(), ranks.reciprocal().mean().item()


class PairRetrievalEvaluator(BaseEvaluator):
    """Find the condensed reasoning by the reasoning, and the other way round, among all of the validation pairs.

    Equal texts are one candidate. `mrr` is the mean of both directions' mean reciprocal ranks.
    """

    def __init__(self, pairs, batch_size=64):
        super().__init__()
        self.primary_metric = "mrr"
        self.batch_size = batch_size
        self.texts, columns = [], []
        for name in PAIR_COLUMNS:
            index = {text: i for i, text in enumerate(dict.fromkeys(pairs[name]))}
            self.texts.append(list(index))
            columns.append([index[text] for text in pairs[name]])
        self.related = torch.zeros(*map(len, self.texts), dtype=torch.bool)
        self.related[columns[0], columns[1]] = True

    def __call__(self, model, output_path=None, epoch=-1, steps=-1):
        reasoning, condensed = (
            model.encode(texts, batch_size=self.batch_size, convert_to_tensor=True, show_progress_bar=False)
            for texts in self.texts
        )
        similarity = (reasoning.float() @ condensed.float().T).cpu()
        top1, mrr = retrieval_scores(similarity, self.related)
        top1_back, mrr_back = retrieval_scores(similarity.T, self.related.T)
        metrics = {
            "top1_reasoning_to_condensed": top1,
            "top1_condensed_to_reasoning": top1_back,
            "mrr_reasoning_to_condensed": mrr,
            "mrr_condensed_to_reasoning": mrr_back,
            "mrr": (mrr + mrr_back) / 2,
        }
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics


def _show_example(card, pairs):
    """Give the model card its example, which would else be drawn at random behind a progress bar."""
    if pairs is not None:
        reasoning, condensed = pairs[0]["reasoning"], pairs[:3]["condensed_reasoning"]
        card.widget = [{"source_sentence": reasoning, "sentences": condensed}]
        card.usage_examples = [reasoning, *condensed[:2]]


def _encoder_from(model, tokenizer, args):
    """The encoder, in float32: steps of 1e-5 are lost in bfloat16 weights, and `bf16` autocasts the computation."""
    if isinstance(model, str | os.PathLike):
        if is_sentence_transformer_model(os.fspath(model)):
            model = SentenceTransformer(os.fspath(model))
        else:
            model = AutoModelForCausalLM.from_pretrained(model, **(args.model_init_kwargs or {}))
    if isinstance(model, SentenceTransformer):
        return load_alignment_encoder(model).float()
    if tokenizer is None:
        if not model.config._name_or_path:
            raise ValueError("processing_class is None and the host has no id or path: pass the host's tokenizer.")
        tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)
    encoder = build_alignment_encoder(
        model,
        tokenizer,
        first_layer=args.first_layer,
        last_layer=args.last_layer,
        pooling=args.pooling,
        embedding_dim=args.embedding_dim,
    )
    return encoder.float()


class _LayerPhase(TrainerCallback):
    """Lets the layers train, or their adapters, from the step on at which the head's share of all steps is over."""

    def __init__(self, encoder):
        self.transformer = encoder[0]
        self.names = [name for name, parameter in self.transformer.named_parameters() if parameter.requires_grad]

    def train_layers(self, wanted):
        for name in self.names:
            self.transformer.get_parameter(name).requires_grad_(wanted)

    def on_step_begin(self, args, state, control, **kwargs):
        self.train_layers(state.global_step >= _head_steps(args, state))


def _head_steps(args, state):
    return round(args.head_warmup * state.max_steps)
