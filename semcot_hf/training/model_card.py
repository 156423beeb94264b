"""Model cards of SemCoT checkpoints: metadata the Hub reads, what was trained on what, and a snippet."""

import os

from huggingface_hub import ModelCard, ModelCardData

# What a field of `SemCoTDistillationConfig` adds to the loss where it is above 0.
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


def model_card(model_config, *, model_id, datasets=(), training=None, adapters=False):
    """Make the card of a SemCoT checkpoint.

    Args:
        model_config: `SemCoTConfig` of the checkpoint.
        model_id: Hub id or folder that the snippet loads.
        datasets: Hub ids of the training data.
        training: dict of what was set for training, shown as a table, the weights of `OBJECTIVES` among it.
        adapters: whether adapters were trained instead of the generator's layers.

    Returns:
        `huggingface_hub.ModelCard`.
    """
    sources = {"host": model_config.host_name_or_path, "generator": model_config.generator_name_or_path}
    base_models = [name for name in sources.values() if _is_hub_id(name)]
    name = model_id.rstrip("/").rpartition("/")[2]
    data = ModelCardData(
        base_model=base_models or None,
        base_model_relation=("finetune" if model_config.includes_host else "adapter") if base_models else None,
        datasets=list(datasets) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["semcot", "implicit-chain-of-thought", "latent-reasoning"],
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


def snippet(model_id):
    """Python that loads the model and asks it a question; it runs as it stands.

    >>> compile(snippet("lab/semcot"), "snippet", "exec") is not None
    True
    """
    return (
        "from transformers import pipeline\n\n"
        f'pipe = pipeline("text-generation", model="{model_id}", trust_remote_code=True)\n'
        'question = [{"role": "user", "content": "Ann has 3 apples and gives one to Bob. How many has she now?"}]\n'
        'print(pipe(question, max_new_tokens=32)[0]["generated_text"][-1]["content"])\n'
    )


def _is_hub_id(name):
    return bool(name) and name.count("/") <= 1 and not name.startswith((".", "/", "~")) and not os.path.exists(name)


def _description(config, sources):
    if config.includes_host:
        layout = "This checkpoint carries its host."
    else:
        revision = f" at commit `{config.host_revision}`" if config.host_revision else ""
        layout = f"This checkpoint holds the generator alone; loading it brings `{sources['host']}`{revision}."
    return (
        f"A frozen host LLM (`{sources['host'] or 'included'}`) that answers at once, with "
        f"{config.num_implicit_tokens} implicit tokens of reasoning put before its answer by a small generator "
        f"(`{sources['generator'] or 'included'}`, {config.generator_mode}), after "
        "[SemCoT](https://arxiv.org/abs/2510.24940). " + layout
    )


def _training(config, training, datasets, adapters):
    generator = "adapters merged into the generator" if adapters else "the generator"
    trained = [generator, *PROJECTIONS[config.projection], "the embedding of `<thought>`"]
    text = f"## Training\n\nThe host stays frozen; {_listed(trained)} are trained"
    if training:
        answer = ["the host's loss on the answer"] if training["alpha"] < 1 else []
        text += " on " + _listed([*answer, *(what for name, what in OBJECTIVES.items() if training[name] > 0)])
    text += "."
    if config.state_offset:
        text += f" The tokens are the generator's states {config.state_offset} position from the `<thought>` tokens."
    if datasets:
        text += " Data: " + ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in datasets) + "."
    if training:
        text += "\n\n" + _table(["setting", "value"], [[f"`{key}`", value] for key, value in training.items()])
    return text


def _listed(parts):
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
