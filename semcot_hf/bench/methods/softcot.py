"""SoftCoT (arXiv 2502.12134): the projected states of a frozen assistant are soft thoughts for a frozen host."""

from collections.abc import Sequence

from torch import Tensor, nn

from ...modeling import SemCoTForCausalLM
from .token_rows import BenchRow, semcot_inputs, tokenize_rows
from .training import Trained, TrainingSetup, count_trainable, fit


class SoftCoTModel(nn.Module):
    """CE(reasoning, answer | question, soft thoughts), in which only the linear projection is trained.

    Args:
        model: SemCoT model whose parallel generator is the assistant.
    """

    def __init__(self, model: SemCoTForCausalLM) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        model.projection.requires_grad_(True)
        # The projection gets its input in this precision, and is trained in float32.
        model.thought_embedding.data = model.thought_embedding.data.float()

    def forward(self, rows: Sequence[BenchRow], progress: float) -> Tensor:
        """Return the loss of a list of rows."""
        device, filler = self.model.projection_device(), self.model.config.get_text_config().pad_token_id or 0
        prompts, texts = [row.prompt for row in rows], [row.reasoning + row.answer for row in rows]
        return self.model(**semcot_inputs(prompts, texts, filler, device), use_cache=False).loss


def train_softcot(setup: TrainingSetup) -> Trained:
    """Train the projection of SemCoT's generator; the host then reasons in words behind the soft thoughts."""
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        setup.host, setup.generator, num_implicit_tokens=setup.num_implicit_tokens
    )
    # Soft thoughts end the prompt; reasoning, answer prompt and answer follow in words.
    model.config.answer_prompt_ids = []
    module = SoftCoTModel(model)
    history = fit(module, tokenize_rows(setup.tokenizer, setup.train_rows), setup)
    return Trained(model, "semcot", count_trainable(module), answer_prompt="", **history)
