"""Many processes that load one checkpoint's code at once, into a module cache that is empty.

transformers copies the code into the cache in place, so that one process may read what another has written half. That
happens before any code of the checkpoint runs; what is tested are the ways around it that the documentation names.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from semcot_hf import SemCoTForCausalLM

PROCESSES = int(os.environ.get("SEMCOT_FAULTS_PROCESSES", 4))
ROUNDS = int(os.environ.get("SEMCOT_FAULTS_ROUNDS", 1))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SCRIPT = """
import json, os, shutil, sys, traceback
sys.modules["semcot_hf"] = None
folder, way, count, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
cache = os.environ["HF_MODULES_CACHE"]
import torch, transformers
from transformers import AutoModelForCausalLM, dynamic_module_utils
torch.set_num_threads(1)
ids = torch.tensor([[10, 11, 12]])

def load():
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    return model.generate(ids, max_new_tokens=2, do_sample=False).tolist()

deaths = []
for number in range(rounds):
    shutil.rmtree(cache, ignore_errors=True)
    if way == "one first":
        first = os.fork()
        if not first:
            load()
            os._exit(0)
        assert os.waitpid(first, 0)[1] == 0
    read, write = os.pipe()
    children = []
    for place in range(count):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(write)
            os.read(read, 1)  # until all have started
            if way == "caches apart":
                dynamic_module_utils.HF_MODULES_CACHE = f"{cache}-{place}"
            try:
                text = json.dumps({"ids": load()})
            except BaseException as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                text = json.dumps({"error": f"{error!r} at {where.filename}:{where.lineno}"})
            os.write(writer, text.encode())
            os._exit(0)
        os.close(writer)
        children.append((child, reader))
    os.close(read)
    os.close(write)
    for child, reader in children:
        with os.fdopen(reader) as file:
            deaths.append(json.loads(file.read() or "{}"))
        os.waitpid(child, 0)
print(json.dumps(deaths))
"""


@pytest.fixture(scope="module")
def checkpoint(tiny_lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("semcot")
    host, generator = (tiny_lm(hidden_size=size, dtype=torch.float32) for size in (32, 16))
    SemCoTForCausalLM.from_host_generator_pretrained(host, generator).save_pretrained(folder, include_host=True)
    return folder


def loads(checkpoint, tmp_path, way):
    """What each process found."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(checkpoint), way, str(PROCESSES), str(ROUNDS)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("way", ["one first", "caches apart"])
def test_no_process_dies_on_the_ways_that_are_documented(checkpoint, tmp_path, way):
    found = loads(checkpoint, tmp_path, way)
    expected = SemCoTForCausalLM.from_pretrained(checkpoint).generate(
        torch.tensor([[10, 11, 12]]), max_new_tokens=2, do_sample=False
    )
    assert found == [{"ids": expected.tolist()}] * (PROCESSES * ROUNDS)


def test_all_at_once_no_process_loads_another_model(checkpoint, tmp_path):
    """Those that read a file of code that is half written end with an error."""
    found = loads(checkpoint, tmp_path, "at once")
    answers = [one["ids"] for one in found if "ids" in one]
    assert len(found) == PROCESSES * ROUNDS and all(ids == answers[0] for ids in answers)
    assert all("ids" in one or one["error"] for one in found)
    print(f"{len(found) - len(answers)} of {len(found)} died:", {one["error"] for one in found if "error" in one})
