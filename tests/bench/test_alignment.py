"""The sweep of stage 1: its plan, runs that are kept, judgement from stored states, the plot, and the alphas."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from alignment_models import config
from datasets import Dataset

from semcot_hf import SemCoTForCausalLM
from semcot_hf.alignment.encoder import build_alignment_encoder, encode_hidden_states, load_alignment_encoder
from semcot_hf.alignment.state_cache import StoredStatesEncoder
from semcot_hf.alignment.trainer import PairRetrievalEvaluator
from semcot_hf.bench.alignment import alphas, sweep
from semcot_hf.bench.alignment.embeddings import implicit_vectors
from semcot_hf.bench.alignment.report import markdown
from semcot_hf.bench.alignment.settings import AlignmentBenchSettings, plan
from semcot_hf.bench.alignment.sweep import sweep_alignment
from semcot_hf.cli.main import main
from semcot_hf.data.tasks import coin_flip
from semcot_hf.evaluation.statistics import mcnemar
from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt
from semcot_hf.storage import read_json_lines

ONE_OF_EACH = {
    "temperatures": [0.05],
    "poolings": ["mean"],
    "layers": ["0-1"],
    "learning_rates": [3e-3],
    "batch_sizes": [8],
}


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="module")
def host(tiny_lm, tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "host"
    tiny_lm("llama", num_hidden_layers=3, dtype=torch.float32, max_position_embeddings=512).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def splits():
    return {"train": Dataset.from_list(coin_flip.generate(60, seed=0, min_people=1, max_people=3))}


def centre(folder, **changes):
    given = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False, "embedding_dim": 16}
    return config(folder, **{**given, "per_device_train_batch_size": 8, "validation_fraction": 0.3, **changes})


def test_one_setting_is_changed_at_a_time(tmp_path):
    settings = AlignmentBenchSettings(layers=["0", "1-2", "0-2"], batch_sizes=[8, 16])
    points = plan(settings, centre(tmp_path), 3)
    middle = points[1].values
    assert [point.factor for point in points[:2]] == ["untrained", "centre"] and points[0].values == middle
    assert middle["layers"] == (1, 2) and middle["temperature"] == 0.05
    for point in points[2:]:
        assert [name for name in middle if point.values[name] != middle[name]] == [point.factor]
    # The value of the centre is in no list of its own.
    found = {name: [p.values[name] for p in points if p.factor == name] for name in middle}
    assert found["temperature"] == [0.01, 0.1, 1.0] and found["pooling"] == ["max", "lasttoken", "weightedmean"]
    assert found["layers"] == [(0, 0), (0, 2)] and found["batch_size"] == [16]
    args = points[-1].config(centre(tmp_path), "elsewhere")
    assert args.per_device_train_batch_size == 16 and args.output_dir == "elsewhere"
    # As many layers before and behind, if none are named.
    named = plan(AlignmentBenchSettings(), centre(tmp_path), 12)
    assert [p.values["layers"] for p in named if p.factor == "layers"] == [(0, 1), (4, 5)]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"layers": ["two"]}, "layers='two': write a range as first-last"),
        ({"temperatures": [0.1, 0]}, r"temperatures=\[0.1, 0\]: give one number or more, each above 0"),
        ({"batch_sizes": [1]}, r"batch_sizes=\[1\]"),
        ({"poolings": ["sum"]}, r"poolings=\['sum'\]: must be some of mean"),
        ({"alphas": [0.1]}, r"alphas=\[0.1\]: give numbers in \[0, 1\], and among them 0"),
        ({"alphas": [0, 2]}, r"alphas=\[0, 2\]"),
        ({"plot_samples": 1}, "plot_samples=1"),
    ],
)
def test_values_out_of_range_are_refused(given, told):
    with pytest.raises(ValueError, match=told):
        AlignmentBenchSettings(**given)


def test_layers_that_the_host_lacks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="last_layer=3: the host has 3 layers"):
        plan(AlignmentBenchSettings(layers=["1-3"]), centre(tmp_path), 3)


def test_judging_from_stored_states_is_judging_from_texts(tiny_lm, tiny_tokenizer, splits):
    encoder = build_alignment_encoder(
        tiny_lm("llama", num_hidden_layers=3, dtype=torch.float32), tiny_tokenizer, first_layer=1, last_layer=2
    )
    evaluator = PairRetrievalEvaluator(splits["train"].select(range(12)), batch_size=5)
    texts = [text for column in evaluator.texts for text in column]
    stored = StoredStatesEncoder(encoder, texts, 5, 2**30)
    assert stored.states.fits
    slow = encoder.encode(evaluator.texts[0], convert_to_tensor=True)
    torch.testing.assert_close(stored.encode(evaluator.texts[0], batch_size=5), slow, rtol=0, atol=1e-5)
    assert [ranks.tolist() for ranks in evaluator.ranks(stored)] == [
        ranks.tolist() for ranks in evaluator.ranks(encoder)
    ]
    # Beyond the budget the texts are read.
    without = StoredStatesEncoder(encoder, texts, 5, 0.0)
    assert not without.states.fits
    torch.testing.assert_close(without.encode(evaluator.texts[0], convert_to_tensor=True), slow, rtol=0, atol=1e-6)


def run(host, splits, folder, settings=None, **changes):
    told = []
    given = AlignmentBenchSettings(**{**ONE_OF_EACH, "combine": False, "plot_samples": 20, **(settings or {})})
    report = sweep_alignment(given, splits, host, host, centre(folder, **changes), progress=told.append)
    return report, told


def test_a_sweep_keeps_its_runs_and_the_best_encoder(host, splits, tmp_path, monkeypatch):
    folder, computed = tmp_path / "sweep", []
    frozen = sweep.run_point.__globals__["StoredStatesEncoder"].__init__.__globals__["LayerStates"]
    compute = frozen._compute
    monkeypatch.setattr(frozen, "_compute", lambda self: computed.append(len(self.texts.rows)) or compute(self))
    report, told = run(host, splits, folder, {"temperatures": [0.05, 0.5], "combine": True}, num_train_epochs=4)
    assert [row["label"] for row in report["rows"][:4]] == ["untrained", "centre", "temperature 0.5", "layers 0-1"]
    # The states of training and validation texts, once for each first layer.
    assert len(computed) == 4
    assert report["rows"][0]["steps"] == 0 < report["rows"][1]["steps"] and report["rows"][0]["losses"] == []
    records = read_json_lines(folder / "runs.jsonl")
    assert len(records) == len(report["rows"]) and records[1]["config"]["temperature"] == 0.05
    assert records[1]["config"]["first_layer"] == 1 and records[3]["config"]["first_layer"] == 0
    best = max(report["rows"][1:], key=lambda row: row["retrieval"]["mrr"])
    assert report["best"] == best["label"] and best["losses"][0][1] > best["losses"][-1][1]
    # What is kept gives the ranks that the journal holds.
    [kept] = folder.glob("encoder-*")
    assert str(kept) == report["encoder"] and not (folder / sweep.WORK).exists()
    train, validation = sweep._pairs(splits, centre(folder))
    assert len(train) + len(validation) == 60 and not set(train["query"]) & set(validation["query"])
    evaluator = PairRetrievalEvaluator(validation)
    forth, back = evaluator.ranks(load_alignment_encoder(str(kept)))
    assert [forth[evaluator.columns[0]].tolist(), back[evaluator.columns[1]].tolist()] == best["ranks"]
    assert best["retrieval"]["mrr"] == pytest.approx(evaluator.metrics(forth, back)["mrr"], abs=1e-4)
    assert (folder / "embeddings.png").stat().st_size > 5_000
    text = (folder / "report.md").read_text()
    assert text == markdown(report) and "| temperature | 0.5 |" in text and f"of: {report['best']}" in text

    # The same command trains nothing; a further value is one more run.
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "run_point", lambda *_: 1 / 0)
        again, told = run(host, splits, folder, {"temperatures": [0.05, 0.5], "combine": True}, num_train_epochs=4)
    assert again["best"] == report["best"]
    assert [row["retrieval"] for row in again["rows"]] == [row["retrieval"] for row in report["rows"]]
    assert any("are done already" in line for line in told)
    made = []
    real = sweep.run_point
    monkeypatch.setattr(sweep, "run_point", lambda point, *rest: made.append(point.label) or real(point, *rest))
    # An encoder that was not kept is trained again, to the same weights.
    weights = load_alignment_encoder(str(kept)).state_dict()
    shutil.rmtree(kept)
    run(host, splits, folder, {"temperatures": [0.05, 0.5], "combine": True}, num_train_epochs=4)
    assert made == [report["best"]]
    others = load_alignment_encoder(str(kept)).state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    run(host, splits, folder, {"temperatures": [0.05, 0.5, 0.1]}, num_train_epochs=4)
    assert made[1] == "temperature 0.1" and len(read_json_lines(folder / "runs.jsonl")) == len(records) + 1


def test_a_sweep_deletes_only_what_it_made(host, splits, tmp_path):
    folder = tmp_path / "runs"
    for own in ("encoder-gsm8k", "encoder-0123456789abcdef", "work"):
        (folder / own).mkdir(parents=True)
        (folder / own / "model.safetensors").write_text("mine")
    (folder / "encoder-notes").write_text("mine")
    before = {path.name for path in folder.iterdir()}
    first, _ = run(host, splits, folder)
    # A sweep of other settings in this folder replaces the encoder of the first one.
    second, _ = run(host, splits, folder, seed=1)
    assert first["encoder"] != second["encoder"]
    made = {Path(second["encoder"]).name, "runs.jsonl", "report.md", "report.json", "embeddings.png"}
    assert {path.name for path in folder.iterdir()} == before | made
    assert all((folder / name).is_file() or (folder / name / "model.safetensors").is_file() for name in before)


def test_implicit_tokens_are_embedded_as_the_encoder_embeds_them(host, tiny_tokenizer, splits, tmp_path):
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        host, host, num_implicit_tokens=3, answer_prompt_ids=answer_prompt_ids(tiny_tokenizer)
    )
    model.save_pretrained(tmp_path / "model")
    with_answer_prompt(tiny_tokenizer).save_pretrained(tmp_path / "model")
    report, _ = run(host, splits, tmp_path / "sweep", {"layers": ["1-2"], "model": str(tmp_path / "model")})
    figures = report["embeddings"]["models"]["given"]
    encoder = load_alignment_encoder(report["encoder"])
    _, validation = sweep._pairs(splits, centre(tmp_path))
    rows = validation.select(range(min(20, len(validation))))
    vectors = implicit_vectors(str(tmp_path / "model"), encoder, list(rows["query"]))
    prompt = tiny_tokenizer.apply_chat_template(
        [{"role": "user", "content": rows[0]["query"]}], add_generation_prompt=True
    )["input_ids"]
    ids = torch.tensor([[*prompt, *model.config.answer_prompt_ids]])
    with torch.no_grad():
        tokens = model.eval().implicit_embeddings(ids)
        states = encoder[0].model.layers[0](
            tokens, position_embeddings=encoder[0].model.rotary_emb(tokens, torch.arange(3)[None])
        )
        states = states[0] if isinstance(states, tuple) else states
        alone = encode_hidden_states(encoder, states, torch.ones(1, 3, dtype=torch.long))
    np.testing.assert_allclose(vectors[0], alone[0].numpy(), atol=1e-4)
    cosines = vectors @ encoder.encode(list(rows["reasoning"])).T
    assert figures["cosine_own"] == pytest.approx(np.diag(cosines).mean(), abs=1e-3)
    assert "| given |" in (tmp_path / "sweep/report.md").read_text()


def test_alphas_are_trained_with_the_best_encoder_and_compared_with_none(host, splits, tmp_path, monkeypatch):
    asked = []

    def semcot(words):
        asked.append(words)
        assert main(words) == 0

    monkeypatch.setattr(alphas, "semcot", semcot)
    data = {**splits, "test": Dataset.from_list(coin_flip.generate(8, seed=1, split="test", max_people=3))}
    flags = {
        "alphas": [0.5, 0],
        "layers": ["1-2"],
        "distill_flags": "--max_steps 2 --per_device_train_batch_size 4 --use_cpu --bf16 False --save_strategy no "
        "--eval_strategy no --num_implicit_tokens 2 --disable_tqdm True --report_to none",
        "evaluate_flags": "--max_new_tokens 3",
    }
    report, told = run(host, data, tmp_path / "sweep", flags)
    found = report["alphas"]
    assert found["split"] == "test" and [row["alpha"] for row in found["rows"]] == [0, 0.5]
    assert all(row["n"] == 8 == len(row["verdicts"]) for row in found["rows"])
    verdicts = [[mark == "1" for mark in row["verdicts"]] for row in found["rows"]]
    assert found["rows"][1]["p"] == mcnemar(verdicts[1], verdicts[0]) and found["rows"][0]["p"] is None
    trained = [words for words in asked if words[0] == "distill"]
    assert [words[words.index("--alpha") + 1] for words in trained] == ["0", "0.5"]
    assert "--alignment_encoder" not in trained[0]
    assert trained[1][trained[1].index("--alignment_encoder") + 1] == report["encoder"]
    # Its validation questions were not trained on.
    rows = [json.loads(line) for line in (tmp_path / "sweep/alphas/data/train.jsonl").read_text().splitlines()]
    train, validation = sweep._pairs(splits, centre(tmp_path))
    assert [row["query"] for row in rows] == list(train["query"])
    # Each model has a panel and a row.
    assert list(report["embeddings"]["models"]) == ["alpha 0", "alpha 0.5"]
    assert "| 0.5 |" in (tmp_path / "sweep/report.md").read_text()
    asked.clear()
    again, _ = run(host, data, tmp_path / "sweep", flags)
    assert again["alphas"] == found and [words[0] for words in asked] == ["evaluate"] * 2
    with pytest.raises(ValueError, match=r"holds another run \(distill_flags"):
        run(host, data, tmp_path / "sweep", {**flags, "distill_flags": "--max_steps 3"})


def test_the_command_sweeps_and_prints_a_table(host, tmp_path, capsys):
    rows = coin_flip.generate(40, seed=3, min_people=1, max_people=2)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = f"--host {host} --dataset {tmp_path / 'rows.jsonl'} --output_dir {tmp_path / 'out'} --use_cpu --bf16 False"
    flags += " --max_steps 1 --per_device_train_batch_size 4 --embedding_dim 8 --temperatures 0.05 --poolings mean max"
    flags += " --layers 1 --learning_rates 1e-5 --batch_sizes 4 --combine False --report_to none"
    assert main(["bench", "alignment", *flags.split()]) == 0
    told = capsys.readouterr().out
    assert "| pooling | max |" in told and "report.md, the best encoder" in told
    assert len(read_json_lines(tmp_path / "out/runs.jsonl")) == 3
