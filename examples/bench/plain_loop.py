"""The plain training loops that `train_speed.py` measures against: both stages, one sample at a time.

They do the computation of the trainers as the method's authors do: the whole sequence through generator, host and
head, back-propagated through the host from end to end, one optimizer step a batch. What the reasoning becomes is
either kept from the start of the run on, as the authors keep it, or computed at each step.
"""

import torch
from torch.nn import functional as F

from semcot_hf.alignment.encoder import encode_hidden_states, frozen_states
from semcot_hf.distillation.objectives import embed_tokens, semantic_alignment_loss


def seconds_a_sample(step, count, now, device):
    """Mean seconds of `step`, called for samples 1 to `count`; sample 0 warms up."""
    step(0)
    start = now()
    for index in range(1, count + 1):
        step(index)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (now() - start) / count


class PlainDistillation:
    """Stage 2 on a trainer's model, rows and loss weights.

    Args:
        trainer: `SemCoTDistillationTrainer`.
        reasoning: the rows' reasoning; batch_size: samples an optimizer step.
    """

    def __init__(self, trainer, reasoning, batch_size):
        self.trainer, self.reasoning, self.batch_size = trainer, reasoning, batch_size
        self.model = trainer.model.train()
        self.rows = trainer.train_dataset.remove_columns(["reasoning", "length"])
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def phase(self, generator_trains):
        """Set what is trained, as one phase of the method has it, with an optimizer of its own."""
        for parameter in self.trained:
            parameter.requires_grad_(True)
        if not generator_trains:
            self.model.generator.requires_grad_(False)
        self.optimizer = torch.optim.AdamW([p for p in self.trained if p.requires_grad], lr=1e-4)

    def encode(self, index):
        """f of the true reasoning of a sample."""
        text = [self.reasoning[index]]
        return self.trainer.alignment_encoder.encode(text, convert_to_tensor=True, show_progress_bar=False)

    def loss(self, batch):
        outputs = self.model(**{key: value for key, value in batch.items() if key != "reasoning_embedding"})
        embedded = embed_tokens(outputs, self.trainer.alignment_encoder, self.trainer.args.alignment_view)
        aligned = semantic_alignment_loss(embedded, batch["reasoning_embedding"])
        return self.trainer.args.alpha * aligned + (1 - self.trainer.args.alpha) * outputs.loss

    def step(self, index):
        batch = self.trainer.data_collator([self.rows[index]])
        batch = {key: value.to(self.model.device) for key, value in batch.items()}
        with self.trainer.accelerator.autocast():
            loss = self.loss(batch)
        loss.backward()
        if (index + 1) % self.batch_size == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()


class PlainAlignment:
    """Stage 1: InfoNCE over a batch whose texts go through the encoder one by one.

    Args:
        encoder: an alignment encoder; pairs: the texts of one batch, a list for each column.
        autocast: context maker.
    """

    def __init__(self, encoder, pairs, autocast):
        self.encoder, self.autocast = encoder.train(), autocast
        kept = ("input_ids", "attention_mask")
        self.features = [
            [{key: encoder.preprocess([text])[key].to(encoder.device) for key in kept} for text in texts]
            for texts in pairs
        ]
        self.layers = [parameter for parameter in encoder[0].parameters() if parameter.requires_grad]
        self.states = None

    def phase(self, layers_train):
        """Set what is trained, as one phase of the method has it, with an optimizer of its own."""
        for parameter in self.layers:
            parameter.requires_grad_(layers_train)
        self.optimizer = torch.optim.AdamW([p for p in self.encoder.parameters() if p.requires_grad], lr=1e-4)

    def keep_states(self):
        """Compute the host's states of every text once, as the authors do."""
        with self.autocast():
            self.states = [
                [frozen_states(self.encoder, text["input_ids"], text["attention_mask"]) for text in texts]
                for texts in self.features
            ]

    def embed(self, column, row):
        text = self.features[column][row]
        if self.states is None:
            return self.encoder(dict(text))["sentence_embedding"]
        return encode_hidden_states(self.encoder, self.states[column][row], text["attention_mask"])

    def step(self, _):
        """One batch."""
        with self.autocast():
            vectors = [
                torch.cat([self.embed(column, row) for row in range(len(texts))]).float()
                for column, texts in enumerate(self.features)
            ]
            scores = vectors[0] @ vectors[1].T / 0.05
        F.cross_entropy(scores, torch.arange(len(scores), device=scores.device)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
