"""Code shared by both training stages: device defaults, the base trainer, adapters, checkpoints, cards."""
