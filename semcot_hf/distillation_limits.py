"""How long a row of stage 2 may be: in the host, in the generator, which reads its query, and in the step decoder."""

from .modeling.retokenizing_semcot import generator_text


def check_lengths(ids, settings, name, query):
    """Check that each model can read its part of a row whole: nothing is ever cut.

    Args:
        ids: what `tokenize_row` makes; settings: `RowSettings`.
        name: what the error calls the data set; query: by which it tells the row.

    Raises:
        ValueError: for a part that is longer than its limit.
    """
    count, prompt, answer = settings.num_implicit_tokens, len(ids["prompt_ids"]), len(ids["completion_ids"])
    host = (settings.max_length, "max_length={}", "raise max_length")
    checks = [(f"prompt, {count} implicit tokens and answer", prompt + count + answer, *host)]
    if settings.teacher:
        checks.append(("prompt, reasoning and answer", len(ids["teacher_ids"]) + answer, *host))
    if settings.words:
        words = max(map(len, ids["word_ids"]))
        parts = f"prompt, {count} implicit tokens, words of the curriculum and answer"
        checks.append((parts, prompt + count + words + answer, *host))
    if settings.generator_context is not None:
        size = _query_size(ids["prompt_ids"], settings) + count
        limit = (settings.generator_context, "the generator's context of {}", "take another generator")
        checks.append((f"query and {count} implicit tokens", size, *limit))
    if settings.step_context is not None:
        # One position is the implicit token's, and the last token is told, not read.
        size = max(map(len, ids["step_ids"]), default=0)
        limit = (settings.step_context, "the step decoder's context of {}", "take another step_decoder")
        checks.append(("an implicit token and the steps that it must tell", size, *limit))
    for parts, length, limit, limit_name, remedy in checks:
        if limit is not None and length > limit:
            raise ValueError(
                f"{name} has a row of {length} tokens ({parts}), beyond {limit_name.format(limit)}, where it would be "
                f"cut: drop long rows or {remedy}. Its query starts {query[:80]!r}."
            )


def _query_size(prompt, settings):
    """Tokens that the generator reads of a prompt, in its own ids."""
    query = prompt[: len(prompt) - settings.answer_prompt_size]
    if settings.tokenizers is None:
        return len(query)
    text = generator_text(query, *settings.tokenizers)
    return len(settings.tokenizers[1](text, add_special_tokens=False)["input_ids"])
