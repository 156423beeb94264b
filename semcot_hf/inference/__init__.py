"""From questions to answers: prompts, batched decoding, files of questions."""
