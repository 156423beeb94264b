"""A Space of the Hub that shows the page of a checkpoint."""

from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
from huggingface_hub import HfApi, get_token

from .. import __version__

_APP = '''"""The page of a SemCoT checkpoint, as a Space."""

from transformers import AutoModelForCausalLM, AutoTokenizer

import semcot_hf  # noqa: F401  # registers the model classes
from semcot_hf.serve.comparison import Comparison
from semcot_hf.serve.page import show

MODEL = {model!r}
model = AutoModelForCausalLM.from_pretrained(MODEL)
show(Comparison(model, AutoTokenizer.from_pretrained(MODEL)), MODEL, host="0.0.0.0", port=7860)
'''
_CARD = """---
title: Implicit reasoning
sdk: gradio
app_file: app.py
models: [{model}]
---
Answers of [{model}](https://huggingface.co/{model}) at once, with explicit reasoning and with implicit tokens.
"""


def space_files(model: str) -> dict[str, str]:
    """Return the files of a Space by name.

    Args:
        model: Hub id of the checkpoint.

    Raises:
        ValueError: for a folder of this machine.
    """
    if Path(model).exists() or model.count("/") != 1 or model[0] in "./~":
        raise ValueError(
            f"model={model!r} is no Hub id, which a Space needs: push the checkpoint first, and pass its id."
        )
    return {
        "app.py": _APP.format(model=model),
        "README.md": _CARD.format(model=model),
        "requirements.txt": f"semcot-hf[page]=={__version__}\n",
    }


def push_space(repo_id: str, model: str) -> str:
    """Publish a Space and return its address.

    Args:
        repo_id: Hub id of the Space, which is created if it is missing.
        model: Hub id of the checkpoint.

    Raises:
        ValueError: for a folder of this machine, or without a token.
        OSError: when the Hub cannot be reached or refuses.
    """
    files = space_files(model)
    if get_token() is None:
        raise ValueError(f"push={repo_id!r} needs a token that may write: run `hf auth login`, or set HF_TOKEN.")
    api = HfApi()
    try:
        url = api.create_repo(repo_id, repo_type="space", space_sdk="gradio", exist_ok=True)
        with TemporaryDirectory() as folder:
            for name, text in files.items():
                (Path(folder) / name).write_text(text)
            message = f"Page of {model}"
            api.upload_folder(repo_id=repo_id, repo_type="space", folder_path=folder, commit_message=message)
    except httpx2.TransportError as error:
        raise OSError(f"push={repo_id!r}: the Hub cannot be reached ({error}).") from error
    return str(url)
