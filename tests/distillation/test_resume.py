"""Stage 2, stopped and gone on with, or run by two processes: the same weights as without."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distillation_models import make_model, train
from peft import LoraConfig
from safetensors import SafetensorError

from semcot_hf import SemCoTForCausalLM
from semcot_hf.training.checkpoints import check_checkpoint, last_complete_checkpoint

pytest_plugins = ["distillation_fixtures"]
pytestmark = pytest.mark.usefixtures("datasets_cache")

SCRIPT = Path(__file__).parents[1] / "distillation_models.py"
# Two epochs, in which stored questions serve.
OPTIONS = {"max_steps": 8, "save_steps": 2, "save_strategy": "steps", "per_device_train_batch_size": 8}


def start(folder, options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(options["output_dir"]) + "-cache"}
    command = [sys.executable, str(SCRIPT), str(folder), json.dumps(options)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)


def assert_same(weights, expected):
    assert weights.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(weights[name], expected[name])]
    assert not different


@pytest.fixture(scope="module")
def uninterrupted(tiny_folder, tmp_path_factory):
    """Output folder and final weights of a run of eight steps, the first four of them the projection's."""
    output = tmp_path_factory.mktemp("uninterrupted")
    return output, train(tiny_folder, output, **OPTIONS).model.state_dict()


@pytest.mark.parametrize("step", [2, 6])
def test_resumed_run_ends_on_the_same_bits(uninterrupted, tiny_folder, tmp_path, caplog, step):
    """Before and behind the end of the projection's phase; the attached layout has no host, and nobody misses it."""
    output, expected = uninterrupted
    checkpoint = output / f"checkpoint-{step}"
    trainer = train(tiny_folder, tmp_path, resume=str(checkpoint), max_steps=8, per_device_train_batch_size=8)
    assert trainer._question_cache.host.fits
    assert trainer.state.global_step == 8
    assert_same(trainer.model.state_dict(), expected)
    host = make_model(tiny_folder).host.state_dict()
    assert_same(trainer.model.host.state_dict(), host)
    assert "keys" not in caplog.text


@pytest.mark.slow
def test_killed_run_ends_on_the_same_bits(uninterrupted, tiny_folder, tmp_path, caplog):
    """SIGKILL amid the writing of the checkpoint of step 6, which is passed over: the run goes on from step 4."""
    output = tmp_path / "killed"
    done = start(tiny_folder, {**OPTIONS, "output_dir": str(output), "kill_at": 6})
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert (output / "checkpoint-6" / "optimizer.pt").exists()
    assert last_complete_checkpoint(str(output)) == str(output / "checkpoint-4")
    trainer = train(tiny_folder, output, resume=True, **OPTIONS)
    assert "checkpoint-6 is incomplete" in caplog.text
    assert_same(trainer.model.state_dict(), uninterrupted[1])


@pytest.mark.parametrize(("free", "error"), [(0, errno.ENOSPC), (2**30, errno.EIO)])
def test_torch_says_nothing_of_a_full_disk_the_trainer_does(tiny_folder, tmp_path, monkeypatch, free, error):
    """What torch's writer raises, "iostream error" or "unexpected pos", names neither the file nor the disk."""
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda value, path, *rest, **more: save(value, "/dev/full", *rest, **more))
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"could not be written .*pos") as failure:
        train(tiny_folder, tmp_path, **OPTIONS)
    assert failure.value.errno == error and str(tmp_path) in failure.value.filename
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_with_the_folder(tiny_folder, tmp_path, monkeypatch, failure):
    """Errors of writing to an open file, and those of safetensors and tokenizers, name no file."""

    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space left on device") as raised:
        train(tiny_folder, tmp_path, **OPTIONS)
    assert raised.value.errno == errno.ENOSPC and str(tmp_path) in raised.value.filename


def test_only_unfinished_checkpoints_start_anew_and_none_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="has no checkpoint: leave it out"):
        last_complete_checkpoint(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="has no checkpoint: leave it out"):
        last_complete_checkpoint(str(tmp_path))
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text('{"epoch": 1')
    assert last_complete_checkpoint(str(tmp_path)) is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_damaged_checkpoints_are_refused_and_missing_files_make_them_incomplete(
    uninterrupted, tiny_folder, tmp_path, name
):
    for step in (4, 6):
        shutil.copytree(uninterrupted[0] / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    path = tmp_path / "checkpoint-6" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged.*delete the folder .*checkpoint-6"):
        train(tiny_folder, tmp_path, resume=str(tmp_path / "checkpoint-6"), **OPTIONS)
    path.unlink()
    assert last_complete_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-4")
    check_checkpoint(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / "checksums.json").unlink()
    check_checkpoint(tmp_path / "checkpoint-4")


@pytest.mark.parametrize("dtype, step_weight", [("float32", 0.0), ("float32", 1.0), ("bfloat16", 1.0)])
def test_adapters_resume_on_the_same_bits(tiny_folder, tmp_path, caplog, dtype, step_weight):
    adapters = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    options = {"max_steps": 4, "peft_config": adapters, "projection_warmup": 0.0, "step_weight": step_weight}
    options["fields"] = {"generator_kwargs": {"dtype": dtype}}
    whole = train(tiny_folder, tmp_path / "a", save_steps=2, save_strategy="steps", **options)
    shutil.rmtree(tmp_path / "a" / "checkpoint-4")
    resumed = train(tiny_folder, tmp_path / "a", resume=True, **options)
    assert_same(resumed.model.state_dict(), whole.model.state_dict())
    assert "keys" not in caplog.text


@pytest.mark.parametrize("adapters", [None, LoraConfig(r=2, target_modules=["q_proj", "v_proj"])])
def test_a_step_decoder_that_is_not_kept_resumes_too(tiny_folder, tmp_path, caplog, adapters):
    """Checkpoints are models without it; its weights, which go on being trained, lie beside them."""
    options = {"max_steps": 4, "keep_step_decoder": False, "projection_warmup": 0.0, "peft_config": adapters}
    whole = train(tiny_folder, tmp_path / "a", save_steps=2, save_strategy="steps", **options)
    assert SemCoTForCausalLM.from_pretrained(tmp_path / "a" / "checkpoint-2").step_decoder is None
    shutil.rmtree(tmp_path / "a" / "checkpoint-4")
    resumed = train(tiny_folder, tmp_path / "a", resume=True, **options)
    assert any(name.startswith("step_decoder.") for name in whole.model.state_dict())
    assert_same(resumed.model.state_dict(), whole.model.state_dict())
    assert "keys" not in caplog.text


@pytest.fixture
def two_processes(tiny_folder, tmp_path):
    """Function (**options) -> what `train` leaves on each of two processes."""

    def run(**options):
        output, processes = tmp_path / "two", []
        # Below the ports that the system hands out meanwhile, and another for each worker of the tests.
        port = 20_000 + os.getpid() % 10_000
        # As torchrun sets them; the processes meet on the loopback, without the machine's name.
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        shared |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": f"{output}-cache"}
        command = [sys.executable, str(SCRIPT), str(tiny_folder), json.dumps({**options, "output_dir": str(output)})]
        for rank in ("0", "1"):
            environment = {**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank}
            with (tmp_path / f"stderr{rank}").open("w") as stderr:
                processes.append(subprocess.Popen(command, env=environment, stdout=stderr, stderr=stderr))
        try:
            codes = [process.wait(timeout=280) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        told = [(tmp_path / f"stderr{rank}").read_text() for rank in range(2)]
        assert codes == [0, 0], "\n".join(text[-3000:] for text in told)
        assert not any("unused" in text for text in told)
        return [torch.load(output / f"rank{rank}.pt", weights_only=True) for rank in range(2)]

    return run


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_accumulation(two_processes, tiny_folder, tmp_path):
    options = {"max_steps": 8, "per_device_train_batch_size": 8, "eval_generations": 5, "learning_rate": 1e-3}
    ranks = two_processes(**options)
    assert_same(ranks[0]["weights"], ranks[1]["weights"])
    alone = train(tiny_folder, tmp_path / "one", gradient_accumulation_steps=2, **options)
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(ranks[0]["weights"][name], value, rtol=1e-4, atol=1e-6, msg=name)
    for log, expected in zip(ranks[0]["log"][:4], alone.state.log_history[:4], strict=True):
        for part in ("loss", "answer_loss", "alignment_loss", "step_loss", "grad_norm"):
            assert log[part] == pytest.approx(expected[part], rel=1e-4)
    evaluated = alone.evaluate()
    assert ranks[0]["evaluated"]["eval_accuracy"] == evaluated["eval_accuracy"]


@pytest.mark.slow
def test_two_processes_read_a_stream_as_one_does(two_processes, tiny_folder, tmp_path):
    """Each of them has its own share of it; in evaluation they have equally many batches, whatever its shards."""
    options = {"max_steps": 4, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 1, "stream": True}
    ranks = two_processes(learning_rate=1e-3, **options)
    assert_same(ranks[0]["weights"], ranks[1]["weights"])
    alone = train(tiny_folder, tmp_path / "one", gradient_accumulation_steps=2, learning_rate=1e-3, **options)
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(ranks[0]["weights"][name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert ranks[0]["evaluated"]["eval_loss"] == ranks[1]["evaluated"]["eval_loss"]


@pytest.mark.slow
def test_two_processes_teach_words_as_one_does(two_processes, tiny_folder, tmp_path):
    """The words phase and a step through the host after it, on thoughts of different lengths."""
    fields = {
        "projection": "vocabulary",
        "thought_length": "adaptive",
        "num_implicit_tokens": 48,
        "mixture_top_k": 4,
        "starts_with_thought_token": False,
        "end_of_thought_token_ids": [2],
    }
    options = {"words_max_steps": 3, "max_steps": 1, "words_column": "reasoning", "eval_generations": 5}
    options |= {"alpha": 0.0, "step_weight": 0.0, "curriculum": 0.0, "projection_warmup": 0.0, "learning_rate": 1e-3}
    options |= {"per_device_train_batch_size": 4, "fields": fields}
    ranks = two_processes(**options)
    assert_same(ranks[0]["weights"], ranks[1]["weights"])
    alone = train(tiny_folder, tmp_path / "one", gradient_accumulation_steps=2, **options)
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(ranks[0]["weights"][name], value, rtol=1e-4, atol=1e-6, msg=name)
    for log, expected in zip(ranks[0]["log"][:4], alone.state.log_history[:4], strict=True):
        assert {"words_loss", "answer_loss"} & log.keys()
        for part in {"loss", "words_loss", "answer_loss", "grad_norm"} & log.keys():
            assert log[part] == pytest.approx(expected[part], rel=1e-4)
    evaluated = alone.evaluate()
    for name in ("eval_accuracy", "eval_thoughts_right", "eval_thoughts_ended"):
        assert ranks[0]["evaluated"].get(name) == evaluated.get(name)
