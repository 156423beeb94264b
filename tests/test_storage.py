"""Files are whole or absent, journals survive kills, and another run's settings are named."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from semcot_hf.storage import (
    Journal,
    check_same_run,
    read_json_lines,
    weights_digest,
    write_atomically,
    write_json,
    write_json_lines,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_atomically(path, "half")
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_text_that_cannot_be_encoded_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "report.md"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_lines_read_back_with_every_separator_of_unicode(tmp_path):
    rows = [{"text": "a\u2028b\x85c"}, {"text": "é"}]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    assert read_json_lines(tmp_path / "rows.jsonl") == rows


def test_a_journal_gives_back_what_was_appended(tmp_path):
    with Journal(tmp_path / "j") as journal:
        journal.append({"a": 1}, {"a": "\ud83d"})
        journal.append({"a": 3})
    with Journal(tmp_path / "j") as journal:
        assert list(journal.read()) == [{"a": 1}, {"a": "\ud83d"}, {"a": 3}]
        journal.keep(1)
        journal.append({"a": 4})
    with Journal(tmp_path / "j") as journal:
        assert list(journal.read()) == [{"a": 1}, {"a": 4}]
        journal.delete()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("tail", [b'{"a": 2', b"{", b'{"a": 2}x', b'{"a": 2}\xff'])
def test_half_a_line_is_dropped_and_overwritten(tmp_path, tail):
    (tmp_path / "j").write_bytes(b'{"a": 1}\n' + tail)
    with Journal(tmp_path / "j", strict=True) as journal:
        assert list(journal.read()) == [{"a": 1}]
        journal.append({"a": 3})
    assert (tmp_path / "j").read_bytes() == b'{"a": 1}\n{"a": 3}\n'


@pytest.mark.parametrize("line", [b"[1]", b"nonsense", b"\xff\xfe", b""])
def test_a_line_that_is_no_record_is_an_error_or_the_end(tmp_path, line):
    content = b'{"a": 1}\n' + line + b'\n{"a": 2}\n'
    (tmp_path / "j").write_bytes(content)
    with Journal(tmp_path / "j", strict=True) as journal, pytest.raises(ValueError, match="line 2 of .*: delete that"):
        list(journal.read())
    assert (tmp_path / "j").read_bytes() == content
    with Journal(tmp_path / "j") as journal:
        assert list(journal.read()) == [{"a": 1}]
    assert (tmp_path / "j").read_bytes() == b'{"a": 1}\n'


def test_two_writers_are_refused_until_the_first_has_closed(tmp_path):
    with Journal(tmp_path / "j"), pytest.raises(ValueError, match="another run is writing .*choose another output"):
        Journal(tmp_path / "j")
    with Journal(tmp_path / "j") as journal:
        journal.append({})


def test_threads_never_mix_their_lines(tmp_path):
    with Journal(tmp_path / "j") as journal:
        threads = [
            threading.Thread(target=lambda n=n: [journal.append({"n": n, "text": "x" * 5000}) for _ in range(50)])
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with Journal(tmp_path / "j") as journal:
        assert sorted(record["n"] for record in journal.read()) == sorted(list(range(8)) * 50)


def test_a_killed_process_loses_nothing_that_was_appended(tmp_path):
    code = (
        "import sys, os, signal; from pathlib import Path; from semcot_hf.storage import Journal\n"
        "journal = Journal(Path(sys.argv[1])); [journal.append({'n': n}) for n in range(100)]\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "j")])
    assert killed.returncode == -signal.SIGKILL
    with Journal(tmp_path / "j") as journal:
        assert [record["n"] for record in journal.read()] == list(range(100))


def test_equal_settings_pass_as_json_reads_them_and_differences_are_named():
    check_same_run({"rates": [0.1], "k": 4}, {"rates": (0.1,), "k": 4}, place="x", remedy="y")
    with pytest.raises(
        ValueError, match=r"^here holds another run \(k: 4 there, 5 now, new: None there, 1 now\)\. Go\.$"
    ):
        check_same_run({"k": 4}, {"k": 5, "new": 1}, place="here", remedy="Go.")


def test_digests_of_weights_tell_trained_models_apart_and_skip_offloaded_ones():
    model = torch.nn.Linear(30, 30)
    before = weights_digest(model)
    assert weights_digest(model) == before
    with torch.no_grad():
        model.weight += 1e-3
    assert weights_digest(model) != before
    assert weights_digest(torch.nn.Linear(2, 2, device="meta")) == weights_digest(torch.nn.Linear(2, 2, device="meta"))
