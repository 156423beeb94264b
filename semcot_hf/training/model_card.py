"""Model cards of SemCoT checkpoints: metadata for the Hub, how the model was trained, and a code snippet."""

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..modeling.configuration_semcot import SemCoTConfig

# What the loss compares while a field of `SemCoTDistillationConfig` is above 0.
OBJECTIVES = {
    "alpha": "the meaning of the reasoning",
    "step_weight": "a step decoder's loss on the reasoning's steps",
    "kl_weight": "the host's answer distribution after its explicit reasoning",
    "hidden_weight": "the host's hidden states before the answer, after its explicit reasoning",
}
PROJECTIONS = {
    "linear": ["the projection to the host's hidden size"],
    "identity": [],
    "vocabulary": ["the LM head that mixes the host's word embeddings"],
}


def model_card(
    model_config: SemCoTConfig,
    *,
    model_id: str,
    datasets: Collection[str] = (),
    training: Mapping[str, Any] | None = None,
    adapters: bool = False,
    tags: Collection[str] = (),
) -> ModelCard:
    """Return the card of a SemCoT checkpoint.

    Args:
        model_config: the checkpoint's configuration.
        model_id: Hub id or folder that the snippet loads.
        datasets: Hub ids of the training data.
        training: training settings, shown as a table; they include the weights named in `OBJECTIVES`.
        adapters: whether adapters were trained instead of the generator's layers.
        tags: further tags for the Hub.
    """
    sources = {"host": model_config.host_name_or_path, "generator": model_config.generator_name_or_path}
    base_models = [source for source in sources.values() if source and _is_hub_id(source)]
    name = model_id.rstrip("/").rpartition("/")[2]
    data = ModelCardData(
        base_model=base_models or None,
        base_model_relation=("finetune" if model_config.includes_host else "adapter") if base_models else None,
        datasets=list(datasets) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys(["semcot", "implicit-chain-of-thought", "latent-reasoning", *tags])),
        model_name=name,
    )
    sections = [
        f"# {name}",
        _description(model_config, sources),
        f"## How to use it\n\n```python\n{snippet(model_id)}```",
        _training(model_config, training, datasets, adapters),
        "## License\n\nNot stated yet: set `license` at the head of this card.",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def snippet(model_id: str) -> str:
    """Return complete Python code that loads the model and asks it a question.

    >>> compile(snippet("lab/semcot"), "snippet", "exec") is not None
    True
    """
    return (
        "from transformers import pipeline\n\n"
        f'pipe = pipeline("text-generation", model="{model_id}", trust_remote_code=True)\n'
        'question = [{"role": "user", "content": "Ann has 3 apples and gives one to Bob. How many has she now?"}]\n'
        'print(pipe(question, max_new_tokens=32)[0]["generated_text"][-1]["content"])\n'
    )


def _is_hub_id(name: str) -> bool:
    return name.count("/") <= 1 and not name.startswith((".", "/", "~")) and not os.path.exists(name)


def _description(config: SemCoTConfig, sources: Mapping[str, str | None]) -> str:
    if config.includes_host:
        layout = "This checkpoint includes the host."
    else:
        revision = f" at commit `{config.host_revision}`" if config.host_revision else ""
        layout = f"This checkpoint holds the generator only; loading it also loads `{sources['host']}`{revision}."
    return (
        f"A frozen host LLM (`{sources['host'] or 'included'}`) that answers directly. Before the answer, a small "
        f"generator (`{sources['generator'] or 'included'}`, {config.generator_mode}) inserts "
        f"{config.num_implicit_tokens} implicit tokens of reasoning "
        f"([SemCoT](https://arxiv.org/abs/2510.24940)). {layout}"
    )


def _training(
    config: SemCoTConfig, training: Mapping[str, Any] | None, datasets: Collection[str], adapters: bool
) -> str:
    generator = "adapters merged into the generator" if adapters else "the generator"
    trained = [generator, *PROJECTIONS[config.projection], "the embedding of `<thought>`"]
    text = f"## Training\n\nThe host is frozen; {_listed(trained)} are trained"
    if training:
        answer = ["the host's loss on the answer"] if training["alpha"] < 1 else []
        text += " on " + _listed([*answer, *(words for name, words in OBJECTIVES.items() if training[name] > 0)])
    text += "."
    if config.state_offset:
        text += f" The tokens are the generator's states {config.state_offset} position from the `<thought>` tokens."
    if datasets:
        text += " Data: " + ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in datasets) + "."
    if training:
        values = {name: str(value).replace("|", "\\|") for name, value in training.items()}
        rows = ("| setting | value |", "| --- | --- |", *(f"| `{name}` | {value} |" for name, value in values.items()))
        text += "\n\n" + "\n".join(rows)
    return text


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
