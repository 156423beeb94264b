"""Teaching a generator its thoughts: the cross-entropy of given words after each question, in one pass over both."""

import torch
from torch import Tensor, nn

from .implicit_tokens_semcot import SemCoTTokensMixin
from .offloading_semcot import in_memory


class SemCoTWordLossMixin(SemCoTTokensMixin):
    """The method of `SemCoTForCausalLM` that teaches its generator words."""

    def _thought_loss(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        completion_mask: Tensor | None,
        words: Tensor,
        labels: Tensor | None,
    ) -> Tensor:
        """Return `_word_loss` for prompts as `forward` takes them.

        Raises:
            ValueError: for missing or badly shaped input.
        """
        if input_ids is None or labels is None or words.shape != labels.shape or len(words) != len(input_ids):
            shapes = [None if part is None else tuple(part.shape) for part in (input_ids, words, labels)]
            raise ValueError(
                f"input_ids, thought_input_ids and thought_targets have the shapes {shapes}: all three are needed, "
                "with the same number of rows, and the last two alike."
            )
        return self._word_loss(*self._queries(input_ids, attention_mask, completion_mask), words, labels)

    def _word_loss(self, ids: Tensor, mask: Tensor | None, words: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of labelled words that follow the queries.

        The generator reads them as it continues a query by itself (projection="vocabulary", sequential mode): the
        query with its thought prompt, <thought> where the model starts with it, and the words.

        Args:
            ids: (batch, length), queries in the host's ids, padded on the left.
            mask: (batch, length), or `None` without padding.
            words: (batch, words), the generator's ids, padded on the right with any id.
            labels: (batch, words), -100 where a word has no loss, as padding has none.

        Returns:
            Scalar; 0 if no word has a label.
        """
        if self.config.projection != "vocabulary" or self.config.generator_mode != "sequential":
            raise ValueError(
                f"thought_input_ids with projection={self.config.projection!r} and "
                f"generator_mode={self.config.generator_mode!r}: only a generator that continues in words can learn "
                "them. Build the pair with generator_mode='sequential' and projection='vocabulary'."
            )
        ids, mask = self._generator_inputs(ids, mask)
        if self.config.thought_prompt_ids is not None:
            ids, mask, _ = self._prompted(ids, mask, use_cache=False)
        words, labels = words.to(ids.device), labels.to(ids.device)
        look_up = self.generator.get_input_embeddings()
        parts = [look_up(ids), look_up(words)]
        if self.config.starts_with_thought_token:
            parts.insert(1, in_memory(self, "thought_embedding").to(parts[0]).expand(len(ids), 1, -1))
        embeds = torch.cat(parts, dim=1)
        start = embeds.shape[1] - words.shape[1]
        # Row by row without the padding before the question, so that all padding stands behind, where no causal layer
        # sees it and no mask is needed, and batches are as short as their longest row.
        lengths = torch.where(labels == -100, 0, torch.arange(1, labels.shape[1] + 1, device=ids.device)).amax(dim=1)
        gaps = torch.zeros_like(lengths) if mask is None else (mask == 0).sum(dim=1)
        width = int((start + lengths - gaps).max())
        columns = (torch.arange(width, device=ids.device) + gaps[:, None]).clamp(max=embeds.shape[1] - 1)
        embeds = embeds.gather(1, columns[..., None].expand(-1, -1, embeds.shape[2]))
        states = self.generator(inputs_embeds=embeds, use_cache=False).last_hidden_state
        rows, places = (labels != -100).nonzero(as_tuple=True)
        if len(rows) == 0:
            return states.sum() * 0.0
        # The state one position before a word predicts it.
        logits = self.word_logits(states[rows, start + places - gaps[rows] - 1])
        return nn.functional.cross_entropy(logits.float(), labels[rows, places])
