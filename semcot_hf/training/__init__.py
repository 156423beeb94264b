"""What both training stages share: adapters, checkpoints, device defaults, stored tensors, model cards."""
