"""A bar on a terminal; elsewhere silence, plain lines, or a function that is called."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from semcot_hf import progress


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def output(request, monkeypatch):
    """Whether the console is a terminal, and the stream that it writes to."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=request.param, width=160)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    return request.param, stream


def test_a_bar_shows_title_share_and_text_on_a_terminal_alone(output):
    terminal, stream = output
    with progress.progress_bar("generate", 4000, 1000) as advance:
        advance(0, "5/20")
        advance(2000, "10/20, 5.0 questions/s")
    printed = stream.getvalue()
    assert all((part in printed) == terminal for part in ("generate", "75%", "left", "10/20, 5.0 questions/s"))
    assert bool(printed.strip()) == terminal


def test_nothing_is_shown_when_switched_off(output):
    with progress.progress_bar("generate", 10, show=False) as advance:
        advance(5, "text")
    assert output[1].getvalue() == ""


def test_a_function_gets_text_and_share_instead(output):
    calls = []
    with progress.progress_bar("evaluate", 8, 2, lambda *call: calls.append(call)) as advance:
        advance(2, "cot")
        advance(4)
    assert calls == [("cot", 0.5), ("", 1.0)]
    assert output[1].getvalue() == ""


def test_lines_tell_the_minutes_left_where_there_is_no_terminal(output, monkeypatch):
    terminal, stream = output
    clock = iter([100.0, 220.0, 220.0])
    if not terminal:
        # Not the clock of all: threads that other tests have started may still read it.
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with progress.progress_bar("host", 10, 4, lines=True) as advance:
        advance(2, "step 6 of 10, loss 0.500")
    if terminal:
        assert "step 6 of 10" in stream.getvalue() and "min left" not in stream.getvalue()
    else:
        assert stream.getvalue() == "host: step 6 of 10, loss 0.500, about 4 min left\n"


def test_a_stage_is_a_bar_or_two_lines(output):
    terminal, stream = output
    with progress.stage("2/5 alignment") as update:
        update(0.25)
        update(0.5)
    if terminal:
        assert "2/5 alignment" in stream.getvalue() and "100%" in stream.getvalue()
    else:
        assert stream.getvalue() == "2/5 alignment ...\n2/5 alignment done in 0 s\n"


def test_a_stage_that_fails_does_not_end_well(output):
    with pytest.raises(KeyboardInterrupt), progress.stage("2/5 alignment"):
        raise KeyboardInterrupt
    assert "100%" not in output[1].getvalue() and "done" not in output[1].getvalue()
