"""Reading implicit tokens: the words of which they are mixtures, or the reasoning steps that a step decoder reads."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from .configuration_semcot import text_config
from .implicit_tokens_semcot import SemCoTTokensMixin
from .question_cache_semcot import without_defaults
from .splicing_semcot import context_of


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
                "by implicit_steps, which needs a step decoder (step_weight, keep_step_decoder), or train with "
                "projection='vocabulary'."
            )
        thoughts = self.implicit_thoughts(input_ids, attention_mask, num_implicit_tokens)
        if thoughts.words is None or thoughts.shares is None:
            return input_ids.new_empty(len(input_ids), 0), torch.empty(len(input_ids), 0, device=input_ids.device)
        return thoughts.words, thoughts.shares

    @torch.no_grad()
    def implicit_steps(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        num_implicit_tokens: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_new_tokens: int = 64,
    ) -> list[list[str]]:
        """Read each implicit token back as the reasoning step that it stands for (SIM-CoT, arXiv 2509.20317).

        The step decoder writes greedily what follows the token. Tokens beyond the steps of a question's reasoning
        were not trained to be read, and say anything.

        Args:
            input_ids, attention_mask, num_implicit_tokens: as in `implicit_embeddings`.
            tokenizer: the host's, in whose tokens steps are written; if `None`, that of the model or checkpoint.
            max_new_tokens: most tokens of a step.

        Returns:
            For each prompt a list of k texts.

        Raises:
            ValueError: for a model without a step decoder, if no tokenizer is found, or for no new token.
        """
        return self._steps_of(
            self.implicit_embeddings(input_ids, attention_mask, num_implicit_tokens), tokenizer, max_new_tokens
        )

    @torch.no_grad()
    def _steps_of(
        self, tokens: Tensor, tokenizer: PreTrainedTokenizerBase | None = None, max_new_tokens: int = 64
    ) -> list[list[str]]:
        """Return `implicit_steps` of implicit tokens (batch, k, host hidden size)."""
        decoder, projection = self.step_decoder, self.step_projection
        if decoder is None or projection is None:
            raise ValueError(
                "step_decoder is None: no decoder was trained to read these implicit tokens, or it was not kept; "
                "train with step_weight above 0, and keep_step_decoder."
            )
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}: a step has at least one token.")
        tokenizer = self._steps_tokenizer() if tokenizer is None else tokenizer
        prompts, count = tokens.shape[:2]
        if prompts * count == 0:
            return [[] for _ in range(prompts)]
        # The first input is the token's own; the last token of a step is not read again.
        context = context_of(text_config(decoder.config))
        first = projection(tokens.to(projection.weight)).flatten(0, 1)[:, None]
        # While it is trained with adapters, the projection has float32 beside a decoder of 16 bits.
        first = first.to(decoder.get_input_embeddings().weight)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens if context is None else min(max_new_tokens, context),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )
        generate: Any = decoder.generate
        with without_defaults(decoder):
            written = generate(
                inputs_embeds=first,
                attention_mask=torch.ones(first.shape[:2], dtype=torch.long, device=first.device),
                generation_config=config,
            )
        texts = [str(tokenizer.decode(row, skip_special_tokens=True)) for row in written.tolist()]
        return [texts[row * count : (row + 1) * count] for row in range(prompts)]

    def implicit_text(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        num_implicit_tokens: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[str]:
        """Return what each prompt's implicit tokens say.

        That is the text of their most probable words, or where they are no words but the model has a step decoder,
        the step that each stands for, each on a line of its own.

        Args:
            input_ids, attention_mask, num_implicit_tokens: as in `implicit_embeddings`.
            tokenizer: the generator's, of steps the host's; if `None`, that of the model, or else of the checkpoint,
                generator or host that the configuration names.

        Raises:
            ValueError: for another projection than "vocabulary" without a step decoder, or if no tokenizer is found.
        """
        if self.config.projection != "vocabulary" and self.step_decoder is not None:
            steps = self.implicit_steps(input_ids, attention_mask, num_implicit_tokens, tokenizer)
            return ["\n".join(of_prompt) for of_prompt in steps]
        words, _ = self.implicit_words(input_ids, attention_mask, num_implicit_tokens)
        tokenizer = self.words_tokenizer() if tokenizer is None else tokenizer
        rows = [[word for word in row if word >= 0] for row in words.tolist()]
        return [str(tokenizer.decode(row, skip_special_tokens=False)) for row in rows]

    def _steps_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the host's tokenizer; where the generator has none of its own, it is that of both."""
        if not self.config.separate_generator_tokenizer:
            return self.words_tokenizer()
        if self.host_tokenizer is None:
            raise ValueError(
                "tokenizer=None, and model.host_tokenizer is None: pass the host's tokenizer, or set "
                "model.host_tokenizer."
            )
        return self.host_tokenizer

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
