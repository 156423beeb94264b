"""Serving: an OpenAI-compatible endpoint, its engines, and a page in the browser."""
