"""Files are whole or absent, journals survive kills, and another run's settings are named."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from semcot_hf.storage import (
    Journal,
    atomic_path,
    check_same_run,
    name_path,
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
    assert [record["a"] for record in read_json_lines(tmp_path / "j")] == [1, 3]


@pytest.mark.parametrize("line", [b"[1]", b"nonsense", b"\xff\xfe", b""])
@pytest.mark.parametrize("strict", [False, True])
def test_a_line_that_is_no_record_is_an_error_and_stays(tmp_path, line, strict):
    content = b'{"a": 1}\n' + line + b'\n{"a": 2}\n'
    (tmp_path / "j").write_bytes(content)
    with Journal(tmp_path / "j", strict=strict) as journal:
        with pytest.raises(ValueError, match="line 2 of .*: delete that"):
            list(journal.read())
    assert (tmp_path / "j").read_bytes() == content


def test_a_damaged_last_line_is_dropped_or_an_error(tmp_path):
    (tmp_path / "j").write_bytes(b'{"a": 1}\n\0\0\n')
    with Journal(tmp_path / "j", strict=True) as journal, pytest.raises(ValueError, match="line 2 of .*: delete that"):
        list(journal.read())
    with Journal(tmp_path / "j") as journal:
        assert list(journal.read()) == [{"a": 1}]
    assert (tmp_path / "j").read_bytes() == b'{"a": 1}\n'


@pytest.mark.parametrize("bit", range(0, 8))
def test_no_flipped_bit_changes_a_record_unnoticed(tmp_path, bit):
    records = [{"a": 1, "text": "seven"}, {"a": 2}, {"a": 3}]
    with Journal(tmp_path / "j") as journal:
        journal.append(*records)
    whole = (tmp_path / "j").read_bytes()
    for place in range(bit, len(whole), 5):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        (tmp_path / "j").write_bytes(damaged)
        with Journal(tmp_path / "j") as journal:
            try:
                found = list(journal.read())
            except ValueError:
                continue
        known = [{name: value for name, value in record.items() if name in ("a", "text")} for record in found]
        assert known == records[: len(found)]


def test_records_of_another_run_are_refused(tmp_path):
    with Journal(tmp_path / "j", context="semcot") as journal:
        journal.append({"a": 1}, {"a": 2})
    with (
        Journal(tmp_path / "j", context="cot", strict=True) as journal,
        pytest.raises(ValueError, match="another run"),
    ):
        list(journal.read())
    with pytest.raises(ValueError, match="line 1 of .* another run's"):
        read_json_lines(tmp_path / "j", "cot")
    assert read_json_lines(tmp_path / "j", "semcot") == read_json_lines(tmp_path / "j") == [{"a": 1}, {"a": 2}]


def test_a_record_that_does_not_fit_the_disk_leaves_none_of_it(tmp_path, monkeypatch):
    """A full disk takes part of a record; what is appended when there is space again stands on a line of its own."""
    journal = Journal(tmp_path / "j")
    journal.append({"a": 1})
    file, room = journal._file, [5]

    class FullDisk:
        def write(self, data):
            if room:
                return file.write(data[: room.pop()])
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name):
            return getattr(file, name)

    monkeypatch.setattr(journal, "_file", FullDisk())
    with pytest.raises(OSError, match="No space left.*/j'"):
        journal.append({"a": 2})
    monkeypatch.setattr(journal, "_file", file)
    journal.append({"a": 3})
    journal.close()
    assert read_json_lines(tmp_path / "j", "") == [{"a": 1}, {"a": 3}]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_an_error_of_writing_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left.*/a.json'"), atomic_path(tmp_path / "a.json"):
        Path("/dev/full").write_bytes(b"1")


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


def test_errors_get_the_path_that_they_lack_and_keep_their_message(tmp_path):
    for error, told in (
        (OSError(errno.EIO, "broken"), f"[Errno {errno.EIO}] broken: '{tmp_path}'"),
        (OSError(errno.EIO, "broken", "its/own"), f"[Errno {errno.EIO}] broken: 'its/own'"),
        (OSError("push failed: 403"), "push failed: 403"),
    ):
        with pytest.raises(OSError) as raised, name_path(tmp_path):
            raise error
        assert str(raised.value) == told
