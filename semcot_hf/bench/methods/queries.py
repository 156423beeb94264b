"""What Latent Recurrent Thoughts (arXiv 2609.01117) does with its queries, in SemCoT's parallel mode.

More implicit tokens in training than at inference, and a lighter generator: new layers on the host's word embeddings.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ...inference.prompting import answer_prompt_ids
from ...modeling import SemCoTForCausalLM
from .latents import word_embeddings
from .lrt import KEPT_QUERIES, PROPOSER_LAYERS, TRAINED_QUERIES
from .token_rows import BenchRow, semcot_inputs, tokenize_rows
from .training import Trained, TrainingSetup, count_trainable, fit


class ManyQueries(nn.Module):
    """CE(answer | question, tokens): the mean of that behind all implicit tokens and that behind the first of them.

    The first ones are the same with and without the others, since the generator reads them from left to right.

    Args:
        model: SemCoT model with as many parallel tokens as are kept at inference.
        trained: tokens that the host reads in training.
    """

    def __init__(self, model: SemCoTForCausalLM, trained: int = TRAINED_QUERIES) -> None:
        super().__init__()
        self.model, self.trained = model, trained

    def forward(self, rows: Sequence[BenchRow], progress: float) -> Tensor:
        """Return the loss of a list of rows."""
        config, device = self.model.config, self.model.projection_device()
        filler, tail = config.get_text_config().pad_token_id or 0, len(config.answer_prompt_ids or [])
        prompts = [row.prompt + row.answer[:tail] for row in rows]
        inputs = semcot_inputs(prompts, [row.answer[tail:] for row in rows], filler, device)
        tokens = self.model.implicit_embeddings(
            inputs["input_ids"], inputs["attention_mask"], self.trained, inputs["completion_mask"]
        )
        losses = [
            self.model(**inputs, implicit_embeddings=tokens[:, :count]).loss
            for count in (self.trained, config.num_implicit_tokens)
        ]
        return (losses[0] + losses[1]) / 2


def fresh_reader(host: PreTrainedModel) -> PreTrainedModel:
    """Return a model of the host's kind in float32: few layers of random weights on its word embeddings, frozen."""
    config = copy.deepcopy(host.config)
    config.update({"num_hidden_layers": PROPOSER_LAYERS})
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:PROPOSER_LAYERS]
    reader: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    words: Any = reader.get_input_embeddings().weight
    words.data = word_embeddings(host).detach().to(words, copy=True)
    words.requires_grad_(False)
    return reader


def train_more_queries(setup: TrainingSetup) -> Trained:
    """Train SemCoT's generator by the answer's loss behind 32 tokens, of which the first four are kept."""
    return _train(setup, setup.generator)


def train_proposer(setup: TrainingSetup) -> Trained:
    """The same with two new layers on the host's word embeddings as the generator."""
    torch.manual_seed(setup.seed)
    return _train(setup, fresh_reader(setup.host))


def _train(setup: TrainingSetup, generator: str | PreTrainedModel) -> Trained:
    torch.manual_seed(setup.seed)
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        setup.host,
        generator,
        num_implicit_tokens=KEPT_QUERIES,
        answer_prompt_ids=answer_prompt_ids(setup.tokenizer),
    )
    module = ManyQueries(model)
    history = fit(module, tokenize_rows(setup.tokenizer, setup.train_rows), setup)
    return Trained(model, "semcot", count_trainable(module), **history)
