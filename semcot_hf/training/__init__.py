"""Code shared by both training stages: options, the base trainer, adapters, checkpoints, stored tensors, cards."""
