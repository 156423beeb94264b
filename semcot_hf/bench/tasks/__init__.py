"""The tasks of the bench: definitions, rows, and the models pretrained for them."""
