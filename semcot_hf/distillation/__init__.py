"""Stage 2: distillation of explicit reasoning into implicit tokens."""
