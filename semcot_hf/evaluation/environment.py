"""The machine and the library versions of a run, for its report."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def environment(device: torch.device) -> dict[str, str | int | None]:
    """Return library versions, platform, processor, number of threads and device."""
    cuda = device.type == "cuda"
    return {
        "python": platform.python_version(),
        **{name.replace("-", "_"): _version(name) for name in ("torch", "transformers", "trl", "semcot-hf")},
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
