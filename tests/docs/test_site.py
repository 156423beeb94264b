"""The documentation builds without a warning and without a network, and loads nothing from other hosts."""

import ast
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def start_build(folder):
    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    return subprocess.Popen(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    # Two at once: `make docs` may run beside the tests.
    folders = [tmp_path_factory.mktemp(name) for name in ("site", "other_site")]
    builds = [start_build(folder) for folder in folders]
    outputs = [build.communicate()[0] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], "".join(outputs)
    return folders[0]


def test_builds_at_the_same_time_are_alike(site):
    pages = [page.relative_to(site) for page in site.rglob("*.html")]
    other = site.with_name(site.name.replace("site", "other_site"))
    assert pages
    assert all((site / page).read_text() == (other / page).read_text() for page in pages)


class Assets(HTMLParser):
    """Collects what a page loads: the addresses of its scripts, style sheets, icons, images and frames."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio") and attrs.get("src"):
            self.found.append(attrs["src"])
        elif tag == "link" and attrs.get("rel") != "canonical":
            self.found.append(attrs["href"])


def test_pages_load_only_their_own_assets(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").glob("*.md")))
    for page in pages:
        for address in Assets(page.read_text()).found:
            assert not re.match(r"(\w+:)?//", address), f"{page.name} loads {address}"
            if page.name != "404.html" and not address.startswith("data:"):
                assert (page.parent / re.split("[?#]", address)[0]).exists(), f"{page.name}: {address} is missing"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text()), sheet


def test_the_list_of_files_is_the_tree(site):
    text = (site / "architecture.html").read_text()
    folders = ("modeling", "semcot_hf", "examples")
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split()
    paths = [ROOT / name for name in files] or [path for name in folders for path in (ROOT / name).rglob("*.py")]
    paths = [path for path in paths if path.suffix == ".py" and path.is_file()]
    assert text.count("<li><code>") >= len(paths) > 50
    for path in paths:
        assert f"<li><code>{path.name}</code>" in text, path
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_the_reference_shows_signatures_and_fields(site):
    text = (site / "api.html").read_text()
    for name in ("semcot_hf.modeling.SemCoTForCausalLM.generate", "semcot_hf.evaluation.evaluate.evaluate"):
        assert f'id="{name}"' in text
    for name in ("projection_warmup", "head_warmup", "num_implicit_tokens"):
        assert name in text
