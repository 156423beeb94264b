"""A model saved over an earlier one: the earlier one stays whole until the new one is."""

import pytest

from semcot_hf.modeling.folders_semcot import ReplacedFolder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def old(tmp_path):
    for name in ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.txt"):
        (tmp_path / name).write_text("old")
    return tmp_path


def test_a_save_that_fails_changes_nothing(old):
    before = contents(old)
    with pytest.raises(OSError, match="full"), ReplacedFolder(old) as folder:
        with open(f"{folder.path}/model.safetensors", "w") as file:
            file.write("ne")
        raise OSError("full")
    assert contents(old) == before


def test_a_whole_save_replaces_its_files_and_the_weights_of_the_old_model(old):
    (old / ".unfinished").mkdir()
    (old / ".unfinished" / "model.safetensors").write_text("left by a kill")
    with ReplacedFolder(old) as folder:
        for name in ("config.json", "model.safetensors"):
            with open(f"{folder.path}/{name}", "w") as file:
                file.write("new")
    assert contents(old) == {"config.json": "new", "model.safetensors": "new", "notes.txt": "old"}
