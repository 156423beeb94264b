"""Condensation by a local causal LM of transformers, in batches."""

from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig

from ..inference.prompting import encode_prompt, pad_left, prompt_text
from ..modeling.splicing_semcot import context_of
from .journal import Reply
from .requests import Request, messages


class LocalSource:
    """Asks a causal LM through its tokenizer's chat template.

    First replies are greedy; later ones are sampled at `temperature`, seeded by the request, so that a run that is
    killed and resumed with the same batches gets the same replies.

    Args:
        model, tokenizer: the model, put into evaluation mode, and its tokenizer.
        name: of the model, which decides whether earlier replies hold; its path by default.
        batch_size: questions at once.
        max_new_tokens: most tokens of one reply.
        temperature: of second and later replies.
    """

    is_rule = False

    def __init__(
        self,
        model,
        tokenizer,
        *,
        name: str | None = None,
        batch_size: int = 16,
        max_new_tokens: int = 512,
        temperature: float = 0.7,
    ):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.batch_size, self.max_new_tokens, self.temperature = batch_size, max_new_tokens, temperature
        self.fingerprint = {
            "source": "local",
            "model": name or model.config.name_or_path,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
        }

    def complete(
        self,
        requests: Sequence[Request],
        keep: Callable[[Request, Reply], None],
        fail: Callable[[Request, str], None],
    ) -> None:
        """Answer `requests` batch by batch, the longest prompts first."""
        context = context_of(self.model.config.get_text_config())
        prompts, fitting = {}, []
        for request in requests:
            prompt = encode_prompt(self.tokenizer, prompt_text(self.tokenizer, messages(request)))
            if context is not None and len(prompt) + self.max_new_tokens > context:
                fail(
                    request,
                    f"{len(prompt)} tokens of prompt and max_new_tokens={self.max_new_tokens} are more than the "
                    f"model's context of {context}",
                )
                continue
            prompts[request.key] = prompt
            fitting.append(request)
        fitting.sort(key=lambda request: (bool(request.earlier), -len(prompts[request.key]), request.key))
        start = 0
        while start < len(fitting):
            batch = fitting[start : start + self.batch_size]
            # Greedy and sampled replies do not share a batch.
            batch = [request for request in batch if bool(request.earlier) == bool(batch[0].earlier)]
            for request, reply in zip(batch, self._generate(batch, prompts), strict=True):
                keep(request, reply)
            start += len(batch)

    def _generate(self, batch, prompts) -> list[Reply]:
        ends = self.model.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        pad = self.tokenizer.pad_token_id
        pad = (ends[0] if ends else 0) if pad is None else pad
        ids, mask = pad_left([prompts[request.key] for request in batch], pad)
        sampled = bool(batch[0].earlier)
        config = GenerationConfig(
            do_sample=sampled,
            **({"temperature": self.temperature} if sampled else {}),
            max_new_tokens=self.max_new_tokens,
            eos_token_id=ends or None,
            pad_token_id=pad,
        )
        device = self.model.get_input_embeddings().weight.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(int(batch[0].key[:12], 16) + len(batch[0].earlier))
            sequences = self.model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
            )
        replies = []
        for request, tokens in zip(batch, sequences[:, ids.shape[1] :].tolist(), strict=True):
            end = next((place for place, token in enumerate(tokens) if token in ends), None)
            made = tokens if end is None else tokens[: end + 1]
            text = self.tokenizer.decode(made, skip_special_tokens=True)
            cut_off = end is None and len(tokens) == self.max_new_tokens
            replies.append(Reply(text, cut_off, len(prompts[request.key]), len(made)))
        return replies
