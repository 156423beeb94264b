"""`Front`: prompts as embeddings for another engine, by a checkpoint of whose host only the words are held."""

import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ..inference.prompting import pad_left
from ..modeling import SemCoTConfig, SemCoTForCausalLM
from ..modeling.splicing_semcot import insertion_columns
from .jobs import Job
from .thoughts import make_thoughts

logger = logging.getLogger(__name__)


def load_front(name: str, dtype: str = "auto") -> SemCoTForCausalLM:
    """Load a SemCoT checkpoint of either layout with a host that has no layers: its weights are not read.

    Args:
        name: folder or id of the checkpoint.
        dtype: data type of the weights.

    Raises:
        ValueError: for a checkpoint of another kind, or one whose host chooses among candidate thoughts.
    """
    config: Any = AutoConfig.from_pretrained(name)
    if config.model_type != SemCoTConfig.model_type:
        raise ValueError(
            f"model={name!r} is of model_type={config.model_type!r}, and makes no implicit tokens: serve it by "
            "`vllm serve` itself."
        )
    if not isinstance(config, SemCoTConfig):
        config = SemCoTConfig.from_pretrained(name)
    number, weight = config.num_candidates, config.candidate_host_weight
    if number > 1 and weight > 0:
        raise ValueError(
            f"model={name!r} has num_candidates={number} and candidate_host_weight={weight}: its host would choose "
            "among candidate thoughts, but the front has none of the host's layers: serve it by --engine "
            "transformers, or have `semcot candidates` or the checkpoint's config set candidate_host_weight=0 (the "
            "generator chooses alone) or num_candidates=1."
        )
    options: dict[str, Any] = {"dtype": dtype}
    verbosity = transformers_logging.get_verbosity()
    # The report of weights that are left out would list the host's.
    transformers_logging.set_verbosity_error()
    try:
        if config.includes_host:
            options["config"] = config
            _without_layers(config.host_config)
            # It covers the host's weights too, which are not read.
            config.weights_checksum = None
        else:
            places = {
                "revision": config.host_revision,
                "subfolder": config.host_subfolder,
                "variant": config.host_variant,
                "gguf_file": config.host_gguf_file,
            }
            places = {key: value for key, value in places.items() if value is not None}
            files = {key: value for key, value in places.items() if key != "variant"}
            host_config = _without_layers(AutoConfig.from_pretrained(config.host_name_or_path, **files))
            host = AutoModelForCausalLM.from_pretrained(
                config.host_name_or_path, config=host_config, dtype=config.host_config.dtype or dtype, **places
            )
            # Under its name, a host with other weights would be refused; its layers are missing here.
            host.name_or_path = host.config._name_or_path = ""
            options |= {"host": host, "host_fingerprint": None}
        named = config.host_name_or_path
        model = SemCoTForCausalLM.from_pretrained(name, **options)
        model.config.host_name_or_path = named
    finally:
        transformers_logging.set_verbosity(verbosity)
    head, table = model.host.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not table.weight:
        head.to("meta")
    return model.eval()


def _without_layers(config: PreTrainedConfig) -> PreTrainedConfig:
    text: Any = config.get_text_config()
    text.num_hidden_layers = 0
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = []
    return config


class Front:
    """Makes the embeddings of prompts with their implicit tokens.

    Args:
        model: a SemCoT model; of its host only the word embeddings are used.
        tokenizer: its tokenizer.

    Attributes:
        model, tokenizer: as passed.
        scaled: whether the engine takes word embeddings as the host's layers get them, with the factor that some
            families (Gemma) apply in their lookup; else the factor is taken out again.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer, self.scaled = model, tokenizer, True
        self._table: Any = model.get_input_embeddings()
        self._ends: list[int] = list(getattr(model.config, "answer_prompt_ids", None) or [])

    @property
    def factor(self) -> float:
        """The factor that the host applies to its word embeddings in their lookup."""
        return float(getattr(self._table, "embed_scale", 1.0))

    @torch.no_grad()
    def words(self, ids: Sequence[int]) -> Tensor:
        """Return the embeddings (length, hidden size) of token ids, as the engine takes them."""
        return self._given(self._table(torch.tensor([list(ids)], device=self._table.weight.device))[0])

    @torch.no_grad()
    def prompts(self, jobs: Sequence[Job]) -> list[Tensor]:
        """Return the embeddings (length + implicit tokens, hidden size) of each job's prompt.

        The jobs, which have the same count, learn the numbers of their implicit tokens, what these say and their
        signals.
        """
        device = self._table.weight.device
        ids, mask = (part.to(device) for part in pad_left([job.prompt for job in jobs]))
        wanted = [job.wants_thought for job in jobs]
        thoughts = make_thoughts(self.model, self.tokenizer, ids, mask, jobs[0].count, wanted)
        columns, _ = insertion_columns(ids, mask, self._ends)
        found = []
        for row, job in enumerate(jobs):
            job.implicit_tokens, job.thought = thoughts.lengths[row], thoughts.texts[row]
            job.signals |= thoughts.signals[row]
            embeds = self._table(ids[row : row + 1])[0, ids.shape[1] - len(job.prompt) :]
            if thoughts.embeddings is not None:
                place = int(columns[row]) - (ids.shape[1] - len(job.prompt))
                tokens = thoughts.embeddings[row][cast(Tensor, thoughts.mask)[row].bool()].to(embeds)
                embeds = torch.cat([embeds[:place], tokens, embeds[place:]])
            found.append(self._given(embeds))
        return found

    def _given(self, embeds: Tensor) -> Tensor:
        return embeds if self.scaled else embeds / self.factor
