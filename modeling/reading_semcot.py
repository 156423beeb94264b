"""Reading implicit tokens that are mixtures of words: the words, their text, and the tokenizer of both."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .implicit_tokens_semcot import SemCoTTokensMixin


class SemCoTReadingMixin(SemCoTTokensMixin):
    """The methods of `SemCoTForCausalLM` that read its implicit tokens."""

    @torch.no_grad()
    def implicit_words(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, num_implicit_tokens: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decode implicit tokens that are mixtures of words (`projection="vocabulary"`).

        Args:
            input_ids, attention_mask, num_implicit_tokens: as in `implicit_embeddings`.

        Returns:
            LongTensor (batch, k), the id of each token's most probable word in the generator's vocabulary, and
            FloatTensor (batch, k), its weight in the generator's mixture. Words that follow a thought's end
            (thought_length="adaptive") have id -1 and weight 0.

        Raises:
            ValueError: for another projection.
        """
        if self.config.projection != "vocabulary":
            raise ValueError(
                f"projection={self.config.projection!r}: these implicit tokens are no mixtures of words; read them "
                "with a step decoder (step_weight, keep_step_decoder), or train with projection='vocabulary'."
            )
        thoughts = self.implicit_thoughts(input_ids, attention_mask, num_implicit_tokens)
        if thoughts.words is None or thoughts.shares is None:
            return input_ids.new_empty(len(input_ids), 0), torch.empty(len(input_ids), 0, device=input_ids.device)
        return thoughts.words, thoughts.shares

    def implicit_text(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        num_implicit_tokens: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[str]:
        """Return what each prompt's implicit tokens say: the text of their most probable words.

        Args:
            input_ids, attention_mask, num_implicit_tokens: as in `implicit_embeddings`.
            tokenizer: the generator's; if `None`, that of the model, or else of the checkpoint, generator or host that
                the configuration names.

        Raises:
            ValueError: for another projection than "vocabulary", or if no tokenizer is found.
        """
        words, _ = self.implicit_words(input_ids, attention_mask, num_implicit_tokens)
        tokenizer = self.words_tokenizer() if tokenizer is None else tokenizer
        rows = [[word for word in row if word >= 0] for row in words.tolist()]
        return [str(tokenizer.decode(row, skip_special_tokens=False)) for row in rows]

    def words_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer of the generator's words, loaded on first use where the model has none."""
        config: Any = self.config
        names = (config.name_or_path, config.generator_name_or_path, config.host_name_or_path)
        of_host = {"revision": config.host_revision, "subfolder": config.host_subfolder or ""}
        for name, place in zip(names, ({}, {}, of_host), strict=True) if self.generator_tokenizer is None else ():
            try:
                # Without the flag transformers asks whether to run the checkpoint's code.
                self.generator_tokenizer = (
                    AutoTokenizer.from_pretrained(name, trust_remote_code=False, **place) if name else None
                )
            except (OSError, ValueError):
                continue
            if self.generator_tokenizer is not None:
                break
        if self.generator_tokenizer is None:
            raise ValueError(
                f"tokenizer=None, and no tokenizer is found at {[name for name in names if name]}: pass tokenizer=, "
                "or set model.generator_tokenizer."
            )
        return self.generator_tokenizer
