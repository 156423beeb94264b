"""Generated tasks: each module has `generate` (seeded rows of one split) and `solve` (answer from the text alone)."""

from . import arithmetic, coin_flip, countdown, elements, facts, graph, multiplication

GENERATED_TASKS = {
    "coin_flip": coin_flip,
    "arithmetic": arithmetic,
    "multiplication": multiplication,
    "graph": graph,
    "facts": facts,
    "elements": elements,
    "countdown": countdown,
}

__all__ = ["GENERATED_TASKS", "arithmetic", "coin_flip", "countdown", "elements", "facts", "graph", "multiplication"]
