"""Generated tasks: each module has `generate` (seeded rows of one split) and `solve` (answer from the text alone)."""

__all__ = ["arithmetic", "coin_flip", "graph", "multiplication"]
