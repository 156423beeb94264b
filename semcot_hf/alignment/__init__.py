"""Stage 1: the alignment encoder and its contrastive training."""
