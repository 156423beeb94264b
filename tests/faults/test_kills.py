"""Commands killed at random moments, and on a full disk: run again, they end as if nothing had happened."""

import json
import os
import random
import shutil
from contextlib import suppress

import pytest
import torch
from commands import COMMANDS, Server, arguments, result, resumed, small_disk
from full_disks import BLOCK

from semcot_hf import SemCoTForCausalLM
from semcot_hf.data.tasks import coin_flip
from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt

KILLS = int(os.environ.get("SEMCOT_FAULTS_KILLS", 2))
DISKS = int(os.environ.get("SEMCOT_FAULTS_DISKS", 2))
# Of what full disks left, the most that is run again.
RERUNS = int(os.environ.get("SEMCOT_FAULTS_RERUNS", 1000))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def models(tiny_lm, tiny_tokenizer, tmp_path_factory):
    """Folder of a host, a generator, a checkpoint of both, questions, and rows whose reasoning holds equations."""
    folder = tmp_path_factory.mktemp("models")
    sizes = {"dtype": torch.float32, "max_position_embeddings": 512, "eos_token_id": 2}
    for name, size in (("host", 32), ("generator", 16)):
        tiny_lm(hidden_size=size, **sizes).save_pretrained(folder / name)
        tiny_tokenizer.save_pretrained(folder / name)
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        folder / "host", folder / "generator", answer_prompt_ids=answer_prompt_ids(tiny_tokenizer)
    )
    model.save_pretrained(folder / "semcot")
    with_answer_prompt(tiny_tokenizer).save_pretrained(folder / "semcot")
    questions = [{"query": row["query"]} for row in coin_flip.generate(20, seed=4)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (folder / "rows").mkdir()
    sums = [{"query": f"What is {n} + 2?", "reasoning": f"{n} + 2 = {n + 2}", "answer": str(n + 2)} for n in range(20)]
    (folder / "rows" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    server = Server(folder, {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "datasets")})
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(models, server, tmp_path_factory):
    """Function (command) -> what an uninterrupted run leaves, its number of writes and its seconds."""
    known = {}

    def of(name):
        if name not in known:
            output = tmp_path_factory.mktemp(name)
            done = server.run(arguments(name, models, output), folder=str(output))
            assert done["code"] == 0, done["printed"]
            known[name] = result(name, output), done["writes"], done["seconds"]
        return known[name]

    return of


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_ends_as_if_it_had_not_been(models, server, whole, tmp_path, name):
    """Half of the kills are before a write in the output folder, half after a share of the time."""
    expected, writes, seconds = whole(name)
    note(f"kill {name}: {writes} writes, {seconds:.1f} s")
    rng, killed = random.Random(name), 0
    for number in range(KILLS):
        output = tmp_path / str(number)
        output.mkdir()
        argv = arguments(name, models, output)
        moment = {"kill_at": rng.randint(1, writes)} if number % 2 == 0 else {"kill_after": rng.random() * seconds}
        done = server.run(argv, folder=str(output), **moment)
        assert done["code"] in (-9, 0), done["printed"]
        killed += done["code"] == -9
        check_models(name, output, expected)
        if name == "generate" and (output / "answers.jsonl").exists():
            assert result(name, output)["answers.jsonl"] == expected["answers.jsonl"], moment
        if (output / "run" / "report.json").exists():
            json.loads((output / "run" / "report.json").read_text())
        again = server.run(resumed(name, argv) if done["code"] else [*argv], folder=str(output)) if killed else done
        if done["code"] == -9:
            # Killed behind its last step, a command is finished, and refuses to replace what it made.
            assert again["code"] == 0 or "already exists" in again["printed"], (moment, again["printed"])
        compare(result(name, output), expected, moment)
        note(f"kill {name} {moment} code {done['code']}, again: same result")
        shutil.rmtree(output)
    assert killed >= KILLS // 2


def compare(found, expected, moment):
    # A kill may leave a temporary file, which the next run does not read.
    left = {name for name in found if name.rpartition("/")[2].startswith(".")}
    assert found.keys() - left == expected.keys(), (moment, sorted(found), sorted(expected))
    different = [name for name in expected if found[name] != expected[name]]
    assert not different, (moment, different)


def check_models(name, output, expected):
    """Load what a fault left: a model is refused, or it is whole."""
    if not name.startswith("distill"):
        return
    for folder in [output / "run", *(output / "run").glob("checkpoint-*")]:
        if (folder / "config.json").exists():
            # Loading compares the weights with their checksum.
            with suppress(OSError, ValueError):
                SemCoTForCausalLM.from_pretrained(folder)
                if folder.name == "run":
                    assert (folder / "model.safetensors").read_bytes() == expected["run/model.safetensors"]


def note(text):
    if log := os.environ.get("SEMCOT_FAULTS_LOG"):
        with open(log, "a") as file:
            file.write(f"{text}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_told_and_nothing_is_lost(models, server, whole, tmp_path, name):
    """Full at a write of the command, or some blocks behind it; then there is room, and it is run again."""
    expected, _, _ = whole(name)
    disk = tmp_path / "disk"
    argv = arguments(name, models, disk, few_checkpoints=True)
    before = b"kept" * BLOCK

    def run(results, cases):
        """Run the command on a disk with a file of the first run; return the blocks in use before each write."""
        results.mkdir()
        with small_disk(disk, 2**30):
            (disk / "before.txt").write_bytes(before)
            done = server.run(argv, folder=str(disk), disks={"cases": cases, "results": str(results)})
            assert done["code"] == 0, done["printed"]
            (disk / "before.txt").unlink()
            compare(result(name, disk), expected, "not disturbed")
        return json.loads((results / "used.json").read_text())

    try:
        used = run(tmp_path / "first", {})
    except PermissionError as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    # Code that is not Python's writes without notice to the hook that counts, but it needs blocks.
    cases = [(n + 1, free) for n in range(len(used) - 1) for free in range(max(1, used[n + 1] - used[n]))]
    note(f"disk {name}: {len(used) - 1} writes, {len(cases)} blocks and writes")
    chosen: dict[int, list[int]] = {}
    for write, free in sorted(random.Random(name).sample(cases, min(len(cases), DISKS))):
        chosen.setdefault(write, []).append(free)
    run(tmp_path / "results", chosen)
    found = [json.loads(line) for line in (tmp_path / "results" / "cases.jsonl").read_text().splitlines()]
    assert [(case["write"], case["free"]) for case in found] == [(n, free) for n in chosen for free in chosen[n]]
    states = {}
    for case in found:
        # Where what is left is the same to the byte, so is the next run.
        states.setdefault((case["state"], case["code"]), []).append(case)
        if case["code"]:
            assert f"the disk is full ({disk}" in case["printed"], case
    for state, _ in states:
        assert (tmp_path / "results" / state / "before.txt").read_bytes() == before
        check_models(name, tmp_path / "results" / state, expected)
    note(f"disk {name}: {len(found)} tried, {len(states)} differ in what they left")
    for state, code in random.Random(name).sample(list(states), min(len(states), RERUNS)):
        left = states[state, code]
        shutil.rmtree(disk)
        shutil.copytree(tmp_path / "results" / state, disk, symlinks=True)
        (disk / "before.txt").unlink()
        if code == 0:
            compare(result(name, disk), expected, left[0])
        again = server.run(resumed(name, argv))
        if code:
            assert again["code"] == 0, (left[0], again["printed"])
        compare(result(name, disk), expected, left[0])
        note(f"disk {name} {[(case['write'], case['free']) for case in left]} code {code}, again: same result")
    assert any(case["code"] for case in found)
