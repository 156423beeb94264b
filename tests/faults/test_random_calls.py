"""Random calls of `generate` and `forward` against the slow path: none may differ, and what is refused says why."""

import os
from pathlib import Path

import pytest
from random_calls import call
from random_draws import Pool

COUNT = int(os.environ.get("SEMCOT_FAULTS_CALLS", 100))


@pytest.mark.timeout(1800)
def test_random_calls_equal_the_slow_path_or_are_refused(tiny_lm, tiny_semcot, tiny_tokenizer, char_tokenizer):
    pool = Pool(tiny_lm, tiny_semcot, (tiny_tokenizer, char_tokenizer))
    outcomes = [call(pool, seed) for seed in range(COUNT)]
    if log := os.environ.get("SEMCOT_FAULTS_LOG"):
        Path(log).write_text("".join(f"{outcome}\n" for outcome in outcomes))
    problems = [str(outcome) for outcome in outcomes if outcome.problem]
    assert not problems, "\n".join(problems)
    refused = sum(outcome.refused is not None for outcome in outcomes)
    assert refused < COUNT / 3
