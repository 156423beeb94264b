"""Model cards of SemCoT checkpoints: metadata the Hub reads, measured results with their controls, and a snippet."""

import os

from huggingface_hub import EvalResult, ModelCard, ModelCardData

METHODS = {"no_cot": "no CoT", "cot": "explicit CoT", "semcot": "SemCoT"}
CONTROLS = {
    "none": "no implicit tokens (k=0)",
    "other_question": "implicit tokens of another question",
    "mean": "their mean over questions",
}


def model_card(model_config, report=None, *, model_id, datasets=(), training=None, license=None):
    """Make the card of a SemCoT checkpoint.

    Args:
        model_config: `SemCoTConfig` of the checkpoint.
        report: content of a report.json, or `None` when nothing was measured.
        model_id: Hub id or folder that the snippet loads.
        datasets: Hub ids of the training data.
        training: dict of what was set for training, shown as a table.
        license: id of a license as the Hub knows it; the card says that it is to be filled in when `None`.

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
        license=license,
        pipeline_tag="text-generation",
        tags=["semcot", "implicit-chain-of-thought", "latent-reasoning"],
        model_name=name,
        eval_results=_eval_results(report, datasets),
    )
    sections = [
        f"# {name}",
        _description(model_config, sources),
        f"## How to use it\n\n```python\n{snippet(model_id)}```",
        _results(report),
        _training(model_config, training, datasets),
        "## License\n\n" + (f"`{license}`" if license else "Not stated yet: set `license` at the head of this card."),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n")


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


def _eval_results(report, datasets):
    rows = {row["method"]: row for row in (report or {}).get("rows", ())}
    if "semcot" not in rows:
        return None
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Question answering with implicit chain of thought",
            dataset_type=datasets[0] if len(datasets) == 1 else report["task"],
            dataset_name=report["task"],
            metric_type="accuracy",
            metric_name="accuracy",
            metric_value=rows["semcot"]["accuracy"],
        )
    ]


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


def _results(report):
    if report is None:
        return ""
    text = [
        f"## Results\n\nTask: {report['task']}. A final answer is extracted and compared.",
        _table(
            ["method", "accuracy", "95 % interval", "questions", "s per query", "new tokens", "implicit tokens"],
            [
                [
                    METHODS.get(row["method"], row["method"]),
                    f"{row['accuracy']:.3f}",
                    _interval(row["ci95"]),
                    row["n"],
                    f"{row['seconds_per_query']:.4g}",
                    f"{row['new_tokens_per_query']:.1f}",
                    row["implicit_tokens"],
                ]
                for row in report["rows"]
            ],
        ),
    ]
    if report.get("controls"):
        text += [
            "### Controls\n\nWhat is left when the implicit tokens are taken away or exchanged. Tokens that carry the "
            "reasoning make these fall to the level without CoT.",
            _table(
                ["SemCoT with", "accuracy", "95 % interval", "questions"],
                [
                    [
                        CONTROLS.get(row["control"], row["control"]),
                        f"{row['accuracy']:.3f}",
                        _interval(row["ci95"]),
                        row["n"],
                    ]
                    for row in report["controls"]
                ],
            ),
        ]
    if report.get("command"):
        text.append(f"Measured by `{report['command']}` (seed {report.get('seed')}).")
    return "\n\n".join(text)


def _training(config, training, datasets):
    text = (
        "## Training\n\nThe host stays frozen; the generator, the projection to the host's hidden size and the "
        "embedding of `<thought>` are trained on the host's loss on the answer and on the meaning of the reasoning."
    )
    if config.state_offset:
        text += f" The tokens are the generator's states {config.state_offset} position from the `<thought>` tokens."
    if datasets:
        text += " Data: " + ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in datasets) + "."
    if training:
        text += "\n\n" + _table(["setting", "value"], [[f"`{key}`", value] for key, value in training.items()])
    return text


def _interval(bounds):
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
