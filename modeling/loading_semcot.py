"""Making, loading and saving SemCoT models: the attached layout (host by reference) and the whole one."""

import os

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .configuration_semcot import SemCoTConfig

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token")
SHARED_ARGUMENTS = ("dtype", "device_map", "attn_implementation", "quantization_config", "max_memory")


class SemCoTLoadingMixin:
    """`from_host_generator_pretrained`, `from_pretrained` and `save_pretrained` of `SemCoTForCausalLM`."""

    @classmethod
    def from_host_generator_pretrained(
        cls, host, generator, *, num_implicit_tokens=5, host_kwargs=None, generator_kwargs=None, **config_kwargs
    ):
        """Put a SemCoT model together from two pretrained models.

        Args:
            host: id, path or model of the host causal LM; it is frozen.
            generator: id, path or model (with or without LM head) of the generator.
            num_implicit_tokens: k.
            host_kwargs, generator_kwargs: arguments for their `from_pretrained` (dtype, device_map, revision ...).
            config_kwargs: further fields of `SemCoTConfig`, such as `generator_mode="sequential"`.

        Returns:
            `SemCoTForCausalLM` whose projection and <thought> embedding are fresh.
        """
        if not isinstance(host, PreTrainedModel):
            host = AutoModelForCausalLM.from_pretrained(host, **(host_kwargs or {}))
        if not isinstance(generator, PreTrainedModel):
            generator = AutoModel.from_pretrained(generator, **(generator_kwargs or {}))
        backbone = generator.base_model
        config = SemCoTConfig(
            host_config=host.config,
            generator_config=backbone.config,
            num_implicit_tokens=num_implicit_tokens,
            host_name_or_path=host.config.name_or_path or None,
            host_revision=getattr(host.config, "_commit_hash", None),
            generator_name_or_path=generator.config.name_or_path or None,
            **config_kwargs,
        )
        model = cls(config, host=host, generator=backbone)
        model.generation_config = host.generation_config
        embeddings = backbone.get_input_embeddings().weight
        model.thought_embedding.data = embeddings.detach().float().mean(dim=0).to(embeddings)
        model.projection.to(embeddings)
        return model.eval()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *model_args, config=None, host=None, host_kwargs=None, **kwargs
    ):
        """Load a checkpoint of either layout.

        An attached checkpoint brings its host from `config.host_name_or_path` at `config.host_revision`. `dtype`,
        `device_map`, `attn_implementation` and `quantization_config` reach host and generator alike; without `dtype`
        each has the one it was saved with.

        Args:
            host: a host model, id or path to use instead of the recorded one (attached layout only).
            host_kwargs: arguments for the host alone; they win over the shared ones.
            kwargs: as in transformers.

        Raises:
            ValueError: when a checkpoint that carries its host is given another one, or the host does not fit.
            OSError: when the host cannot be found; the message says where it was looked for.
        """
        if "torch_dtype" in kwargs:
            kwargs["dtype"] = kwargs.pop("torch_dtype")
        if not isinstance(config, PreTrainedConfig):
            names = (*HUB_ARGUMENTS, "revision", "subfolder")
            found = {name: kwargs[name] for name in names if name in kwargs}
            config = SemCoTConfig.from_pretrained(config or pretrained_model_name_or_path, **found)
        if config.includes_host:
            if host is not None or host_kwargs:
                raise ValueError(
                    f"{pretrained_model_name_or_path} carries its host: leave host and host_kwargs out, and pass "
                    "dtype, device_map and the like directly."
                )
            return _load_whole(super().from_pretrained, pretrained_model_name_or_path, *model_args, config, kwargs)
        loaded = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, config=config, build_host=False, **kwargs
        )
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if not isinstance(host, PreTrainedModel):
            host = _load_host(host, model.config, host_kwargs, kwargs)
        model.attach_host(host)
        return loaded

    def save_pretrained(self, save_directory, *args, include_host=None, state_dict=None, **kwargs):
        """Save a checkpoint: generator, projection and config, with the host by reference or included.

        Args:
            save_directory: the folder.
            include_host: `True` for one self-contained folder, `False` for the attached layout; `None` keeps the
                layout the model was loaded in, and includes a host that has no id or path to be found by.
            state_dict, args, kwargs: as in transformers.
        """
        if include_host is None:
            include_host = self.config.includes_host or self.config.host_name_or_path is None
        if not include_host and self.config.host_name_or_path is None:
            raise ValueError(
                "include_host=False needs config.host_name_or_path, by which a loader finds the host: set it, or "
                "pass include_host=True."
            )
        if os.path.isfile(save_directory):
            raise ValueError(f"save_directory={str(save_directory)!r} is a file: pass a folder.")
        layout = self.config.includes_host
        self.config.host_config.dtype, self.config.generator_config.dtype = self.host.dtype, self.generator.dtype
        state_dict = self.state_dict() if state_dict is None else state_dict
        if not include_host:
            state_dict = {key: value for key, value in state_dict.items() if not key.startswith("host.")}
        self.config.includes_host = include_host
        try:
            return super().save_pretrained(save_directory, *args, state_dict=state_dict, **kwargs)
        finally:
            self.config.includes_host = layout


def _load_whole(load, name, *args):
    """Load a checkpoint that carries its host, each part in the dtype it was saved with unless one is given."""
    *model_args, config, kwargs = args
    host_dtype, generator_dtype = config.host_config.dtype, config.generator_config.dtype
    apart = kwargs.get("dtype", "auto") == "auto" and host_dtype != generator_dtype
    if apart:
        kwargs["dtype"] = torch.promote_types(host_dtype, generator_dtype)
    loaded = load(name, *model_args, config=config, **kwargs)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    if apart:
        host = model.host.to(host_dtype)
        model.host = None
        model.to(generator_dtype).host = host
    model.attach_host(model.host)
    return loaded


def _load_host(host, config, host_kwargs, kwargs):
    arguments = {name: kwargs[name] for name in (*HUB_ARGUMENTS, *SHARED_ARGUMENTS) if name in kwargs}
    name = config.host_name_or_path if host is None else host
    if host is None and config.host_revision is not None:
        arguments["revision"] = config.host_revision
    arguments.setdefault("dtype", config.host_config.dtype or "auto")
    arguments.update(host_kwargs or {})
    try:
        AutoConfig.from_pretrained(
            name, **{key: arguments[key] for key in (*HUB_ARGUMENTS, "revision") if key in arguments}
        )
    except (OSError, ValueError) as error:
        raise OSError(
            f"This checkpoint holds the generator alone; its host {name!r}"
            + (f" at revision {arguments['revision']}" if "revision" in arguments else "")
            + " could not be found. Pass host= with a path, id or model of that host, or have the checkpoint saved "
            "with include_host=True."
        ) from error
    return AutoModelForCausalLM.from_pretrained(name, **arguments)
