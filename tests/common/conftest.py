"""Keeps this folder out of the quick suite: its tests need a download."""

collect_ignore_glob = ["common_tests.py", "generation_tests.py", "fetch_and_run.py"]
