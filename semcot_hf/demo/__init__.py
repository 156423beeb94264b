"""The embedded demo models: their paths, and a question of their task."""

from pathlib import Path

HOST_PATH = Path(__file__).parent / "models" / "host"
GENERATOR_PATH = Path(__file__).parent / "models" / "generator"
QUESTION = "A letter is in Seoul. Ned carries it two on. Ola keeps it. Which animal is on the flag where it ends?"

__all__ = ["GENERATOR_PATH", "HOST_PATH", "QUESTION"]
