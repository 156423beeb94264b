"""The embedded demo models and their paths."""

from pathlib import Path

HOST_PATH = Path(__file__).parent / "models" / "host"
GENERATOR_PATH = Path(__file__).parent / "models" / "generator"

__all__ = ["GENERATOR_PATH", "HOST_PATH"]
