"""SemCoTPreTrainedModel, the base class that holds host, generator, projection, <thought> and step decoder."""

import copy
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from transformers.utils.loading_report import LoadStateDictInfo

from .configuration_semcot import SemCoTConfig, text_config
from .folders_semcot import is_folder
from .offloading_semcot import check_targets, execution_device, in_memory, whole_device_map
from .sources_semcot import (
    HostPlace,
    adapter_config,
    changed_settings,
    check_part,
    folder_of,
    is_bidirectional,
    readable,
    settings_of,
)
from .splicing_semcot import context_of
from .structure_semcot import check_structure
from .weights_semcot import Fingerprint, fingerprint, same_weights, shares_weights

logger = logging.get_logger(__name__)
OTHER_TRAINERS = (
    "TRL's trainers (SFTTrainer, DPOTrainer, GRPOTrainer and others) compute losses from a backbone's states, which "
    "leave the implicit tokens out. Train by semcot_hf.SemCoTDistillationTrainer, or by transformers' Trainer, which "
    "takes the loss of the model's forward."
)


class SemCoTPreTrainedModel(PreTrainedModel):
    """Base class of `SemCoTForCausalLM`, which documents the arguments: its parts, without their forward passes."""

    config_class = SemCoTConfig
    # A prefix, such as "host", would have transformers apply the host's conversions of names to all weights.
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    config: SemCoTConfig
    host: PreTrainedModel
    generator: PreTrainedModel
    projection: nn.Linear | nn.Identity
    thought_embedding: nn.Parameter
    step_decoder: PreTrainedModel | None
    step_projection: nn.Linear | None
    # Set if host and generator do not share a tokenizer.
    host_tokenizer: PreTrainedTokenizerBase | None = None
    generator_tokenizer: PreTrainedTokenizerBase | None = None
    # The host's weights and settings when it was attached, and whether a loader finds them by the configuration
    # (None: unknown).
    _attached_fingerprint: Fingerprint | None = None
    _attached_settings: dict[str, Any] | None = None
    # (role, folder) of what the parts were loaded from, as absolute paths.
    _part_folders: tuple[tuple[str, str], ...] = ()
    # Names of parts that were paths on this machine, relative to what was then the current directory.
    _local_names: frozenset[str] = frozenset()
    _host_is_there: bool | None = None
    # The arguments of each `load_adapter` before there was a host.
    _adapters_for_later: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = ()

    def __init__(
        self,
        config: SemCoTConfig,
        host: PreTrainedModel | None = None,
        generator: PreTrainedModel | None = None,
        build_host: bool = True,
    ) -> None:
        super().__init__(config)
        # Otherwise `post_init` initializes again what was added after loading, such as adapters.
        module: Any
        for module in (module for part in (host, generator) if part is not None for module in part.modules()):
            module._is_hf_initialized = True
        if host is None and build_host:
            host = AutoModelForCausalLM.from_config(config.host_config)
        self.generator = AutoModel.from_config(config.generator_config) if generator is None else generator
        width = text_config(config.generator_config).hidden_size
        if config.projection == "identity":
            self.projection = nn.Identity()
        elif config.projection == "vocabulary":
            words = text_config(config.generator_config).vocab_size
            self.projection = nn.Linear(width, words, bias=False)
            if config.separate_generator_tokenizer:
                # The host's id of each of the generator's words; -1 where it has none.
                self.projection.register_buffer("host_word_ids", torch.empty(words, dtype=torch.int32))
        else:
            self.projection = nn.Linear(width, text_config(config.host_config).hidden_size)
        if config.generator_mode == "sequential" and (
            not takes_cache(self.generator) or is_bidirectional(self.generator)
        ):
            raise ValueError(
                f"generator_mode='sequential' needs a generator that keeps keys and values, which a "
                f"{self.generator.config.model_type} does not: choose generator_mode='parallel'."
            )
        self.thought_embedding = nn.Parameter(torch.empty(width))
        self.step_decoder = self.step_projection = None
        if config.step_decoder_config is not None:
            self._set_step_decoder(AutoModelForCausalLM.from_config(config.step_decoder_config))
        self.host = None  # type: ignore[assignment]  # until it is attached
        if host is not None:
            self._set_host(host)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if module is self:
            nn.init.normal_(self.thought_embedding, std=self.config.initializer_range)
        elif isinstance(module, nn.Linear) and module in (self.projection, self.step_projection):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            for buffer in module.buffers():
                nn.init.constant_(buffer, -1)

    def attach_host(self, host: PreTrainedModel) -> None:
        """Set the host causal LM, freeze it, and record its id and weights for checkpoints of the attached layout.

        Raises:
            ValueError: if its hidden size or vocabulary differs from the one this model was built for, if it has the
                recorded id or path but other weights, or if the host is unsupported: no attention (Mamba), layers that
                re-read input ids (Gemma 3n), projected embeddings (OPT-350m), or code of its own.
        """
        self._attach(host, None, None)

    def load_adapter(self, *args: Any, **kwargs: Any) -> LoadStateDictInfo:
        """Load adapters as transformers does; without a host yet, once it is attached, since they may be its own.

        Raises:
            ValueError: for adapters of offloaded modules.
        """
        if self.host is not None:
            check_targets(self, adapter_config(*args, **kwargs))
            conversions = self.__dict__.get("_weight_conversions")
            name = args[0] if args else kwargs.get("peft_model_id")
            try:
                with readable(f"The folder of adapters {str(name)!r}", "adapter_model.safetensors"):
                    return super().load_adapter(*args, **kwargs)
            finally:
                # Saving would apply those of the adapters, which add a prefix, to the weights of the model.
                self.__dict__.pop("_weight_conversions", None)
                if conversions is not None:
                    self._weight_conversions = conversions
        if kwargs.get("load_config") is not None:
            # Names of weights that transformers converts, without those of the host.
            kwargs["load_config"] = replace(kwargs["load_config"], weight_mapping=None)
        self._adapters_for_later += ((args, kwargs),)
        return LoadStateDictInfo(set(), set(), set(), [], {}, set())

    def add_adapter(self, adapter_config: Any, *args: Any, **kwargs: Any) -> None:
        """Add new adapters as transformers does.

        Raises:
            ValueError: for adapters of offloaded modules.
        """
        check_targets(self, adapter_config.to_dict())
        super().add_adapter(adapter_config, *args, **kwargs)

    def _attach(self, host: PreTrainedModel, place: HostPlace | None, found: bool | None) -> LoadStateDictInfo | None:
        """Attach a host, and load the adapters that wait for it.

        Args:
            host: the host.
            place: what it was loaded by; `None` for a model object.
            found: whether a loader finds these weights there; `None` if this is not known.

        Returns:
            What the last of the adapters lacked; `None` without adapters.
        """
        if place is None:
            check_part("host", host)
            check_structure("host", host)
        config, recorded = self.config, HostPlace.recorded(self.config)
        given = HostPlace.of_model(host) if place is None else place
        attached = fingerprint(host)
        present = attached and attached.text
        same, named_same = same_weights(config.host_fingerprint, present), given.name == recorded.name
        # The same weights may be in several files; of others, the object's own place is the one to record.
        moved = not named_same or (same is None and given.is_elsewhere(recorded))
        if same is False and given.name is not None and (given == recorded or (place is None and named_same)):
            raise ValueError(
                f"The host {given} has other weights (fingerprint {present}) than the host {recorded} that this "
                f"SemCoT model was made with (fingerprint {config.host_fingerprint}): pass host= with that model or "
                "its folder, or host_kwargs={'revision': ...}. To take this one all the same, set "
                "config.host_fingerprint=None, or pass host_fingerprint=None to from_pretrained."
            )
        if same is False:
            logger.warning(
                f"The host {given} has other weights than the host {recorded} that this SemCoT model was made with."
            )
        if place is None and named_same and moved:
            logger.warning(
                f"The host {given} is taken in place of the host {recorded} that this SemCoT model was made with: its "
                "quantized weights cannot be compared with those."
            )
        if found and given == recorded:
            changed = changed_settings(settings_of(config.host_config), settings_of(host.config))
            if changed:
                logger.warning(f"The host {given} has other settings than when this model was saved: {changed}.")
        self._set_host(host)
        if place is not None or moved:
            for name, value in given.fields().items():
                setattr(config, name, value)
            self._host_is_there = found
        elif same is None:
            self._host_is_there = None
        if same is False or config.host_fingerprint is None or (same is None and (moved or place is None)):
            config.host_fingerprint = present
        self._note_host(attached)
        self._note_folders("host", host, given.name, **given.arguments())
        places = whole_device_map(self, host)
        if places is not None:
            self.hf_device_map = places
        report = None
        waiting, self._adapters_for_later = self._adapters_for_later, ()
        for args, kwargs in waiting:
            report = self.load_adapter(*args, **kwargs)
        return report

    def _note_folders(self, role: str, part: PreTrainedModel, name: Any = None, **kwargs: Any) -> None:
        """Remember the folders that hold a part: those of `name`, loaded with `kwargs`, and of its configuration."""
        commit = {"revision": getattr(part.config, "_commit_hash", None)}
        places = ((name, kwargs), (part.config.name_or_path, {**commit, **kwargs}))
        self._local_names |= {str(place) for place, _ in places if is_folder(place)}
        folders = {folder for place, options in places if (folder := folder_of(place, options)) is not None}
        self._part_folders += tuple((role, folder) for folder in sorted(folders))

    def _note_host(self, attached: Fingerprint | None) -> None:
        """Remember the weights and the settings that the host has when it is attached."""
        self._attached_fingerprint, self._attached_settings = attached, settings_of(self.host.config)

    def _set_host(self, host: PreTrainedModel) -> None:
        wanted, got = text_config(self.config.host_config), host.config.get_text_config()
        for name in ("hidden_size", "vocab_size"):
            if getattr(wanted, name) != getattr(got, name):
                raise ValueError(
                    f"host has {name}={getattr(got, name)}, but this SemCoT model was made for a host with "
                    f"{name}={getattr(wanted, name)}: pass the host it was trained with "
                    f"({self.config.host_name_or_path or 'its id is not recorded'})."
                )
        check_part("host", host)
        check_word_size(host)
        if getattr(got, "hidden_size_per_layer_input", None):
            raise ValueError(
                f"host is a {got.model_type}, whose layers re-read input ids "
                f"(hidden_size_per_layer_input={got.hidden_size_per_layer_input}). Implicit tokens have no ids, so "
                "such a host is not supported."
            )
        if not takes_cache(host):
            raise ValueError(
                f"host is a {got.model_type}, which keeps no keys and values (its forward has no past_key_values): "
                "take one with attention in some of its layers."
            )
        # Generation checks whether the cache can be cropped.
        self._is_stateful = host._is_stateful
        # Shared, so that resizing the host's embeddings updates both.
        self.config.host_config = unquantized(host.config)
        self._attached_words = got.vocab_size
        if shares_weights(host, self.generator):
            # Training the generator would change the host.
            self.generator = copy.deepcopy(self.generator)
        self.host = host.requires_grad_(False).eval()
        names = (self.config.host_name_or_path, self.config.generator_name_or_path)
        self._local_names |= {name for name in names if name is not None and is_folder(name)}
        make_head_read_new_tensors(host)

    @torch.no_grad()
    def match_scales(self) -> None:
        """Scale new implicit tokens like word embeddings: projection weights and `config.feedback_scale`.

        Hidden states of a backbone are several times larger than its word embeddings, and a transformer hardly
        changes an input of that size in its residual stream.
        """
        config = text_config(self.config.generator_config)
        ids = torch.arange(min(64, config.vocab_size, context_of(config) or 64), device=self.projection_device())
        words = self.generator.get_input_embeddings()(ids[None])
        states = self.generator(inputs_embeds=words, use_cache=False).last_hidden_state
        table = self.get_input_embeddings()
        host_ids = torch.arange(min(64, self.config.get_text_config().vocab_size), device=execution_device(table))
        host_words = table(host_ids[None])
        sizes = [tensor.float().pow(2).mean().sqrt().item() for tensor in (words, states, host_words)]
        self.config.feedback_scale = sizes[0] / sizes[1]
        if self.config.projection == "linear" and isinstance(self.projection, nn.Linear):
            nn.init.normal_(self.projection.weight, std=sizes[2] / sizes[1] * self.projection.in_features**-0.5)

    def train(self, mode: bool = True) -> "SemCoTPreTrainedModel":
        """Set training mode, except for the frozen host, which stays in evaluation mode (no dropout, caches kept)."""
        super().train(mode)
        if self.host is not None:
            self.host.eval()
        return self

    def add_step_decoder(self, decoder: PreTrainedModel) -> None:
        """Attach a causal LM that is trained to decode implicit tokens into text (SIM-CoT's auxiliary decoder).

        Each implicit token, mapped linearly to the decoder's hidden size, is the first input embedding before the
        text of its reasoning step. Generation never runs the decoder; `drop_step_decoder` removes it.

        Raises:
            ValueError: for a decoder that could not be saved and loaded again: a SemCoT model, a quantized one, one
                without an LM head, one with code of its own, or changed in its layers.
        """
        check_part("step decoder", decoder)
        check_structure("step decoder", decoder)
        if shares_weights(decoder, self.host) or shares_weights(decoder, self.generator):
            decoder = copy.deepcopy(decoder)
        self.config.step_decoder_config = decoder.config
        projection = self._set_step_decoder(decoder).to(device=self.projection_device(), dtype=decoder.dtype)
        self._init_weights(projection)

    def drop_step_decoder(self) -> None:
        """Remove the step decoder; answers do not change."""
        self.config.step_decoder_config = None
        self.step_decoder = self.step_projection = None

    def _set_step_decoder(self, decoder: PreTrainedModel) -> nn.Linear:
        sizes = (self.config.get_text_config().hidden_size, decoder.config.get_text_config().hidden_size)
        self.step_decoder, self.step_projection = decoder, nn.Linear(*sizes)
        return self.step_projection

    @property
    def host_word_ids(self) -> torch.Tensor | None:
        """The host's id of each of the generator's words, -1 where it has none; `None` for a shared vocabulary."""
        return in_memory(self.projection, "host_word_ids") if hasattr(self.projection, "host_word_ids") else None

    def projection_device(self) -> torch.device:
        """Return the device on which implicit tokens are computed."""
        return execution_device(self, "thought_embedding")

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(enable, *args, **kwargs)
        if self.config.generator_mode == "sequential":
            # Checkpointed layers drop the cache, which a sequential generator needs from step to step.
            module: Any
            for module in self.generator.modules():
                if hasattr(module, "gradient_checkpointing"):
                    module.gradient_checkpointing = False

    def add_model_tags(self, tags: list[str] | str) -> None:
        """Add tags to the model card, as transformers does; TRL's trainers, which do so too, are refused.

        Raises:
            ValueError: for the tags of a trainer of TRL.
        """
        if "trl" in ([tags] if isinstance(tags, str) else tags):
            raise ValueError(f"A trainer of TRL (tags {tags!r}) was given a SemCoT model. {OTHER_TRAINERS}")
        super().add_model_tags(tags)

    @property
    def base_model(self) -> Any:
        """What stands for a backbone, of which callers compute hidden states: calling it raises an error."""
        return NoBackbone()

    def get_input_embeddings(self) -> Any:
        return None if self.host is None else self.host.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.host.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        return None if self.host is None else self.host.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.host.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> Any:
        return self.host.get_decoder()


class NoBackbone:
    """What takes the place of a backbone in a model that has none, since two models make its logits."""

    _tp_plan = _pp_plan = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raise ValueError: callers would compute losses without implicit tokens."""
        raise ValueError(
            "model.base_model is called for hidden states: a SemCoT model has no such backbone. "
            f"{OTHER_TRAINERS} The host's states are those of model.host.base_model."
        )


def unquantized(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a host's configuration without quantization, which would apply to the checkpoint's own weights."""
    if not hasattr(config, "quantization_config"):
        return config
    config = copy.deepcopy(config)
    del config.quantization_config
    return config


def check_word_size(host: PreTrainedModel) -> None:
    """Raise ValueError if the word embeddings of a host, or of its backbone, are not of its layers' size."""
    size = host.config.get_text_config().hidden_size
    width = getattr(host.get_input_embeddings(), "embedding_dim", size)
    if width != size:
        raise ValueError(
            f"host has word embeddings of size {width} and layers of size {size}: projected word embeddings (as in "
            "OPT-350m) are not supported; take a host with equal sizes."
        )


def make_head_read_new_tensors(lm: PreTrainedModel) -> None:
    """Have a causal LM's head, frozen or to be frozen, read its inputs by `contiguous_input`."""
    head = lm.get_output_embeddings()
    if isinstance(head, nn.Linear) and contiguous_input not in head._forward_pre_hooks.values():
        head.register_forward_pre_hook(contiguous_input)


def contiguous_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the inputs of an LM head, a slice of all positions' states, as new tensors.

    With other strides torch copies the head's whole frozen weight once for each row of the batch, instead of the
    states. `contiguous()` keeps them where a batch of one row makes them irrelevant.
    """
    return tuple(
        value.clone(memory_format=torch.contiguous_format) if isinstance(value, torch.Tensor) else value
        for value in args
    )


def takes_cache(model: PreTrainedModel) -> bool:
    """Return whether a model's forward takes `past_key_values`."""
    return "past_key_values" in signature(type(model).forward).parameters


def first_position(generator: PreTrainedModel) -> int:
    """Return the position of a generator's first token: 0, but behind that of padding in families such as RoBERTa."""
    table = getattr(getattr(generator, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1
