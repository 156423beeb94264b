"""Inference: prompts, batched decoding, and files of questions."""
