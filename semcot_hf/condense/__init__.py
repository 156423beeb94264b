"""Condensed reasoning for datasets that lack it."""
