"""Stage 1: the loss, the two phases, what may move and what not, retrieval, resuming, bad input."""

import logging

import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from alignment_models import Snapshots, config, make_host, snapshot
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, set_seed

from semcot_hf.alignment.data import reasoning_pairs
from semcot_hf.alignment.encoder import alignment_layers, build_alignment_encoder
from semcot_hf.alignment.state_cache import HeadFeatures, TrainingTexts
from semcot_hf.alignment.trainer import PairRetrievalEvaluator, SemCoTAlignmentTrainer, info_nce, retrieval_scores
from semcot_hf.data.schema import FEATURES
from semcot_hf.data.tasks import coin_flip


@pytest.fixture(scope="module", autouse=True)
def datasets_cache(tmp_path_factory):
    """A store of these tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="module")
def rows():
    return coin_flip.generate(300, min_people=4, max_people=6)


@pytest.fixture(scope="module")
def dataset(rows):
    return Dataset.from_list(rows, features=FEATURES)


@pytest.fixture(scope="module")
def tokenizer(rows):
    """One word, one token."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<pad>", "<eos>"])
    tokenizer.train_from_iterator([row["query"] + " " + row["reasoning"] for row in rows], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        chat_template="{% for message in messages %}{{ 'Zoe ' + message.content }}{% endfor %}",
    )


@pytest.fixture
def host(tokenizer):
    return make_host(tokenizer)


# Loss and metrics


def by_hand(reasoning, condensed, tau):
    """InfoNCE of the paper, pair by pair."""
    total = 0.0
    for i in range(len(reasoning)):
        cosines = torch.stack(
            [(reasoning[i] @ s) / (reasoning[i].norm() * s.norm()) for s in condensed],
        )
        total = total - torch.log(torch.exp(cosines[i] / tau) / torch.exp(cosines / tau).sum())
    return total / len(reasoning)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_loss_is_the_papers_info_nce(host, tokenizer, dataset, tmp_path, symmetric):
    encoder = build_alignment_encoder(host, tokenizer, embedding_dim=16)
    pairs = dataset[:6]
    embeddings = [encoder.encode(pairs[name], convert_to_tensor=True) for name in ("reasoning", "condensed_reasoning")]
    expected = by_hand(*embeddings, tau=0.1)
    if symmetric:
        expected = (expected + by_hand(*embeddings[::-1], tau=0.1)) / 2
    gradients = []
    for mini_batch_size in (None, 2):
        args = config(tmp_path, temperature=0.1, symmetric=symmetric, mini_batch_size=mini_batch_size)
        features = [encoder.preprocess(pairs[name]) for name in ("reasoning", "condensed_reasoning")]
        encoder.zero_grad()
        loss = info_nce(encoder, args)(features, None)
        loss.backward()
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=0)
        gradients.append(encoder[0].model.layers[1].mlp.up_proj.weight.grad.clone())
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_retrieval_scores_count_ties_against_the_encoder():
    related = torch.eye(4, dtype=torch.bool)
    assert retrieval_scores(torch.eye(4), related) == (1.0, 1.0)
    assert retrieval_scores(torch.ones(4, 4), related) == (0.0, 0.25)


def test_evaluator_joins_equal_texts():
    class OneHot:
        model_card_data = type("Card", (), {"set_evaluation_metrics": lambda *_: None})()

        def encode(self, texts, **_):
            return torch.tensor([[float(text[0] == letter) for letter in "abc"] for text in texts])

    pairs = Dataset.from_dict({"reasoning": ["a1", "a2", "b1"], "condensed_reasoning": ["a", "a", "b"]})
    assert PairRetrievalEvaluator(pairs)(OneHot()) == {
        "top1_reasoning_to_condensed": 1.0,
        "top1_condensed_to_reasoning": 1.0,
        "mrr_reasoning_to_condensed": 1.0,
        "mrr_condensed_to_reasoning": 1.0,
        "mrr": 1.0,
    }
    wrong = Dataset.from_dict({"reasoning": ["a1", "b1", "c1"], "condensed_reasoning": ["a", "c", "b"]})
    metrics = PairRetrievalEvaluator(wrong)(OneHot())
    assert metrics["top1_reasoning_to_condensed"] == pytest.approx(1 / 3)
    assert metrics["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 3) / 3)


# A whole run


@pytest.fixture(scope="module")
def run(dataset, tokenizer, tmp_path_factory):
    """One training of 100 steps, and what it left."""
    folder = tmp_path_factory.mktemp("run")
    snapshots, host = Snapshots(), make_host(tokenizer)
    args = config(
        folder,
        first_layer=0,
        last_layer=1,
        num_train_epochs=12,
        head_warmup=0.2,
        symmetric=True,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=25,
        save_steps=25,
    )
    trainer = SemCoTAlignmentTrainer(
        host, args, train_dataset=dataset, processing_class=tokenizer, callbacks=[snapshots]
    )
    start = snapshot(trainer.model)
    before = trainer.evaluate()
    trainer.train()
    return trainer, snapshots.after, start, before, host


def test_training_raises_retrieval_both_ways(run):
    trainer, _, _, before, _ = run
    after = trainer.evaluate()
    for name in ("reasoning_to_condensed", "condensed_to_reasoning"):
        assert before[f"eval_top1_{name}"] < 0.2
        assert after[f"eval_top1_{name}"] > before[f"eval_top1_{name}"] + 0.3
        assert after[f"eval_mrr_{name}"] > before[f"eval_mrr_{name}"] + 0.2
    assert after["eval_loss"] < before["eval_loss"] - 1
    history = [entry["eval_mrr"] for entry in trainer.state.log_history if "eval_mrr" in entry]
    assert after["eval_mrr"] == pytest.approx(max(history[1:]))


def test_the_linear_layer_trains_first_then_the_layers(run):
    trainer, after, start, _, host = run
    last = trainer.state.max_steps
    head_steps = round(0.2 * last)
    for name, value in start.items():
        moved_by_head = not torch.equal(after[head_steps][name], value)
        moved_later = not torch.equal(after[last][name], after[head_steps][name])
        if name.startswith("2.linear."):
            assert moved_by_head and moved_later, name
        elif name.startswith("0.model.layers."):
            assert not moved_by_head and moved_later, name
        else:
            assert not moved_by_head and not moved_later, name
    assert any(name.startswith("0.model.embed_tokens") for name in start)
    assert not torch.equal(
        after[head_steps + 1]["0.model.layers.1.mlp.up_proj.weight"],
        after[head_steps]["0.model.layers.1.mlp.up_proj.weight"],
    )


def test_the_host_is_untouched_and_lower_layers_are_its_own(dataset, host, tokenizer, tmp_path):
    untouched = make_host(tokenizer)
    args = config(tmp_path, head_warmup=0.0, eval_strategy="no", save_strategy="no", max_steps=3)
    trainer = SemCoTAlignmentTrainer(host, args, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    for name, value in host.state_dict().items():
        assert torch.equal(value, untouched.state_dict()[name]), name
    trained = trainer.model[0].model.state_dict()
    frozen = [name for name in trained if name.startswith(("embed_tokens", "layers.0.", "norm."))]
    assert len(frozen) == 11
    assert all(torch.equal(trained[name], host.model.state_dict()[name]) for name in frozen)
    moved = [name for name in trained if not torch.equal(trained[name], host.model.state_dict()[name])]
    assert {name.split(".")[1] for name in moved} == {"1", "2"} and len(moved) == 18


def test_learning_rates_and_gradient_norm_are_logged_and_kept_apart(run):
    trainer, *_ = run
    rates = sorted({group["initial_lr"] for group in trainer.optimizer.param_groups if group["params"]})
    assert rates == [3e-3, 1e-2]
    for group in trainer.optimizer.param_groups:
        shapes = {tuple(parameter.shape) for parameter in group["params"]}
        if group["initial_lr"] == 1e-2:
            assert shapes <= {(32, 32), (32,)}
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == trainer.state.max_steps and all(entry["grad_norm"] > 0 for entry in steps)


def test_saved_model_opens_as_a_sentence_transformer(run, dataset, tmp_path):
    trainer, *_ = run
    trainer.save_model(str(tmp_path))
    texts = dataset["reasoning"][:4]
    loaded = SentenceTransformer(str(tmp_path), device="cpu")
    assert torch.equal(
        loaded.encode(texts, convert_to_tensor=True), trainer.model.encode(texts, convert_to_tensor=True)
    )
    assert alignment_layers(loaded) == (0, 1)
    card = (tmp_path / "README.md").read_text()
    assert "mrr" in card and "sentence-transformers" in card


def test_evaluate_on_other_pairs(run):
    trainer, *_ = run
    fresh = Dataset.from_list(coin_flip.generate(40, split="test", min_people=4, max_people=6), features=FEATURES)
    own, other = trainer.evaluate(), trainer.evaluate(fresh)
    assert other["eval_mrr"] != own["eval_mrr"]
    assert trainer.evaluate()["eval_mrr"] == own["eval_mrr"]
    assert trainer.evaluate(fresh.remove_columns(["query", "answer", "steps"]))["eval_loss"] == other["eval_loss"]
    predicted = trainer.predict(fresh).metrics
    assert all(predicted[f"test_{name}"] == pytest.approx(other[f"eval_{name}"]) for name in ("mrr", "loss"))
    assert trainer.evaluate()["eval_mrr"] == own["eval_mrr"]


def test_the_run_makes_no_noise(dataset, host, tokenizer, tmp_path, capfd, caplog):
    args = config(tmp_path, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2, max_steps=2)
    trainer = SemCoTAlignmentTrainer(host, args, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    out, err = capfd.readouterr()
    assert "it/s" not in out + err and "warn" not in (out + err).lower(), out + err
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING], caplog.text


# Equalities


def test_head_features_equal_the_plain_path(dataset, tokenizer, tmp_path):
    weights = []
    for cached in (True, False):
        args = config(
            tmp_path / str(cached),
            head_warmup=1.0,
            num_train_epochs=2,
            cache_head_features=cached,
            eval_strategy="no",
            save_strategy="no",
        )
        trainer = SemCoTAlignmentTrainer(make_host(tokenizer), args, train_dataset=dataset, processing_class=tokenizer)
        trainer.train()
        assert (trainer._head_features is not None) == cached
        weights.append(snapshot(trainer.model))
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)


def test_head_features_tell_texts_with_equal_tokens_apart_from_others(host, tokenizer):
    encoder = build_alignment_encoder(host, tokenizer)
    pairs = Dataset.from_dict(
        {"reasoning": ["Qux flips", "Quux flips", "Ann flips"], "condensed_reasoning": ["heads", "tails", "heads"]}
    )
    table = HeadFeatures(TrainingTexts(encoder, [*pairs["reasoning"], *pairs["condensed_reasoning"]], batch_size=2))
    for text in ("Qux flips", "Quux flips", "Ann flips", "heads", "tails"):
        features = encoder.preprocess([text])
        expected = encoder[1](encoder[0](dict(features)))["sentence_embedding"]
        torch.testing.assert_close(table(features["input_ids"], features["attention_mask"]), expected)


@pytest.mark.parametrize("mini_batch_size", [None, 8])
@pytest.mark.parametrize("cache_head_features", [True, False])
def test_stored_states_equal_the_plain_path(dataset, tokenizer, tmp_path, mini_batch_size, cache_head_features):
    weights, logs = [], []
    for gigabytes in (0.0, 1e-6, 1.0):
        args = config(
            tmp_path / str(gigabytes),
            num_train_epochs=2,
            mini_batch_size=mini_batch_size,
            cache_head_features=cache_head_features,
            state_cache_gb=gigabytes,
            eval_strategy="no",
            save_strategy="no",
        )
        trainer = SemCoTAlignmentTrainer(make_host(tokenizer), args, train_dataset=dataset, processing_class=tokenizer)
        trainer.train()
        assert (trainer._layer_states is not None) == (gigabytes > 0)
        assert gigabytes == 0 or trainer._layer_states.fits == (gigabytes == 1)
        weights.append(snapshot(trainer.model))
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    for name, value in weights[0].items():
        assert torch.equal(weights[1][name], value), name
        torch.testing.assert_close(weights[2][name], value, rtol=1e-3, atol=2e-4)
    for plain, stored in zip(logs[0], logs[2], strict=True):
        assert stored["loss"] == pytest.approx(plain["loss"], rel=1e-4)
        assert stored["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)


def test_a_second_run_computes_no_states_and_other_texts_have_their_own(dataset, tokenizer, tmp_path, monkeypatch):
    def run(host, rows):
        args = config(tmp_path, num_train_epochs=2, eval_strategy="no", save_strategy="no")
        trainer = SemCoTAlignmentTrainer(host, args, train_dataset=rows, processing_class=tokenizer)
        trainer.train()
        return snapshot(trainer.model)

    texts = dataset.select(range(64))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    first = run(make_host(tokenizer), texts)
    monkeypatch.setattr("semcot_hf.alignment.state_cache.frozen_states", None)
    again = run(make_host(tokenizer), texts)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    changed = make_host(tokenizer)
    changed.model.layers[0].mlp.up_proj.weight.data += 0.1
    for host, rows in ((make_host(tokenizer), dataset.select(range(1, 65))), (changed, texts)):
        with pytest.raises(TypeError, match="'NoneType' object is not callable"):
            run(host, rows)


def test_the_head_has_its_own_weight_decay(dataset, host, tokenizer, tmp_path):
    args = config(tmp_path, weight_decay=0.01, head_weight_decay=0.3, eval_strategy="no", save_strategy="no")
    trainer = SemCoTAlignmentTrainer(host, args, train_dataset=dataset, processing_class=tokenizer)
    trainer.create_optimizer()
    decays = {}
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        decays.update({names[id(parameter)]: group["weight_decay"] for parameter in group["params"]})
    assert decays["2.linear.weight"] == 0.3 and decays["2.linear.bias"] == 0.0
    assert decays["0.model.layers.1.mlp.up_proj.weight"] == 0.01
    assert decays["0.model.layers.1.input_layernorm.weight"] == 0.0


@pytest.mark.parametrize("mini_batch_size", [None, 8])
def test_a_resumed_run_ends_with_the_same_weights(dataset, tokenizer, tmp_path, mini_batch_size):
    """From a checkpoint of the first phase (step 2 of 4) and from one of the second (6 of 8), with stored states."""
    dataset = dataset.select(range(128))

    def trainer(**changes):
        args = config(
            tmp_path,
            max_steps=8,
            eval_strategy="no",
            save_total_limit=None,
            mini_batch_size=mini_batch_size,
            **changes,
        )
        return SemCoTAlignmentTrainer(make_host(tokenizer), args, train_dataset=dataset, processing_class=tokenizer)

    whole = trainer(save_strategy="steps", save_steps=2)
    whole.train()
    expected = whole.model.state_dict()
    for step in (2, 6):
        resumed = trainer(save_strategy="no")
        set_seed(123)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert resumed.state.global_step == 8 and resumed._layer_states is not None
        assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_hosts_and_encoders_are_taken_by_path(dataset, host, tokenizer, tmp_path):
    host.save_pretrained(tmp_path / "host")
    tokenizer.save_pretrained(tmp_path / "host")
    args = config(tmp_path / "first", eval_strategy="no", save_strategy="no", max_steps=2)
    by_object = SemCoTAlignmentTrainer(host, args, train_dataset=dataset, processing_class=tokenizer)
    by_path = SemCoTAlignmentTrainer(str(tmp_path / "host"), args, train_dataset=dataset)
    for trainer in (by_object, by_path):
        trainer.train()
        trainer.save_model(str(tmp_path / "encoder"))
    expected = by_object.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in by_path.model.state_dict().items())
    again = SemCoTAlignmentTrainer(str(tmp_path / "encoder"), args, train_dataset=dataset)
    assert all(torch.equal(value, expected[name]) for name, value in again.model.state_dict().items())
    shallow = SemCoTAlignmentTrainer(
        str(tmp_path / "host"),
        config(tmp_path, model_init_kwargs='{"num_hidden_layers": 2}', last_layer=1),
        train_dataset=dataset,
    )
    assert alignment_layers(shallow.model) == (1, 1)
    with pytest.raises(ValueError, match="processing_class is None and the model has no id or path"):
        SemCoTAlignmentTrainer(host, args, train_dataset=dataset)


# Data


def test_validation_is_cut_by_the_question(host, dataset, tokenizer, tmp_path):
    doubled = Dataset.from_list(
        [*dataset, *({**row, "condensed_reasoning": "x " + row["condensed_reasoning"]} for row in dataset)]
    )
    cuts = []
    for seed in (0, 1):
        trainer = SemCoTAlignmentTrainer(
            host, config(tmp_path, seed=seed), train_dataset=doubled, processing_class=tokenizer
        )
        train, validation = trainer.train_dataset, trainer.eval_dataset
        assert train.column_names == ["reasoning", "condensed_reasoning"]
        assert len(train) + len(validation) == 600 and 30 <= len(validation) <= 90
        assert not set(train["reasoning"]) & set(validation["reasoning"])
        cuts.append(validation["reasoning"])
    assert cuts[0] == cuts[1]


def test_streams_are_read_once(host, dataset, tokenizer, tmp_path):
    turned = dataset.select_columns(["condensed_reasoning", "reasoning", "query"])
    trainer = SemCoTAlignmentTrainer(
        host, config(tmp_path), train_dataset=turned.to_iterable_dataset(), processing_class=tokenizer
    )
    assert len(trainer.train_dataset) + len(trainer.eval_dataset) == 300
    assert trainer.train_dataset.column_names == ["reasoning", "condensed_reasoning"]  # the first is the anchor


def test_paper_files_train(host, tokenizer, tmp_path, shared_data):
    from semcot_hf.data import load_reasoning_dataset

    train = load_reasoning_dataset(shared_data / "gsm8k" / "train_42.json", split="train")
    pairs = reasoning_pairs(train)
    assert len(pairs) == len(train) > 500
    trainer = SemCoTAlignmentTrainer(
        host,
        config(tmp_path, max_steps=1, save_strategy="no", load_best_model_at_end=False),
        train_dataset=train,
        processing_class=tokenizer,
    )
    assert trainer.train().training_loss > 0


def pairs_of(reasoning, condensed):
    return Dataset.from_dict({"reasoning": reasoning, "condensed_reasoning": condensed})


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.fixture
def heard(caplog, monkeypatch):
    """The package's warnings; transformers' loggers do not propagate on their own."""
    monkeypatch.setattr(logging.getLogger("semcot_hf"), "propagate", True)
    return caplog


def test_empty_rows_are_counted_and_left_out(heard):
    pairs = reasoning_pairs(pairs_of(["a", "", "b", "c"], ["x", "y", None, " "]))
    assert pairs["reasoning"] == ["a"]
    message = "train_dataset: 3 of 4 rows have an empty reasoning or condensed_reasoning and are left out."
    assert warnings_of(heard) == [message]


def test_overlap_and_truncation_are_counted(host, dataset, tokenizer, tmp_path, heard):
    held_out = coin_flip.generate(4, split="test", min_people=20, max_people=20)
    mixed = Dataset.from_list([*held_out, *list(dataset)[:2]], features=FEATURES)
    SemCoTAlignmentTrainer(
        host, config(tmp_path), train_dataset=dataset, eval_dataset=mixed, processing_class=tokenizer
    )
    assert warnings_of(heard) == [
        "eval_dataset: 2 of 6 pairs are in train_dataset too, so its metrics are too high.",
        "eval_dataset: 4 of 6 pairs are longer than 64 tokens and are truncated.",
    ]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            lambda d: d.remove_columns("condensed_reasoning"),
            "train_dataset lacks the column condensed_reasoning; it has",
        ),
        (lambda d: d.select([]), "train_dataset has 0 rows, none of them with both reasoning and condensed_reasoning"),
        (lambda d: pairs_of(["", "a"], ["x", ""]), "train_dataset has 2 rows, none of them with both"),
        (lambda d: DatasetDict(train=d, test=d), r"train_dataset holds the splits train, test: pass one of them"),
        (lambda d: d.select(range(2)), "validation_fraction=0.1 of 2 pairs leaves 2 to train and 0 to validate on"),
    ],
)
def test_unusable_data_is_refused(host, dataset, tokenizer, tmp_path, train, message):
    with pytest.raises(ValueError, match=message):
        SemCoTAlignmentTrainer(host, config(tmp_path), train_dataset=train(dataset), processing_class=tokenizer)


@pytest.mark.parametrize(
    ("pairs", "column"),
    [
        (pairs_of(["a"], ["x"]), "reasoning"),
        (pairs_of(["a", "a"], ["x", "y"]), "reasoning"),
        (pairs_of(["a", "b", "c"], ["x", "x", "x"]), "condensed_reasoning"),
    ],
)
def test_pairs_without_negatives_are_refused(host, tokenizer, tmp_path, pairs, column):
    args = config(tmp_path, eval_strategy="no", save_strategy="no")
    with pytest.raises(
        ValueError, match=f"all of its {len(pairs)} pairs to train on have the same {column}, so InfoNCE has no"
    ):
        SemCoTAlignmentTrainer(host, args, train_dataset=pairs, processing_class=tokenizer)


def test_validating_on_the_training_pairs_is_refused(host, dataset, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="eval_dataset: all of its 300 pairs are in train_dataset too"):
        SemCoTAlignmentTrainer(
            host, config(tmp_path), train_dataset=dataset, eval_dataset=dataset, processing_class=tokenizer
        )


def test_a_loss_that_is_no_number_stops_the_run(host, dataset, tokenizer, tmp_path):
    args = config(tmp_path, eval_strategy="no", save_strategy="no")
    trainer = SemCoTAlignmentTrainer(host, args, train_dataset=dataset, processing_class=tokenizer)
    trainer.model[2].linear.weight.data[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"The loss is nan at step 0: lower head_learning_rate \(0.01\)"):
        trainer.train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must lie in \\(0, inf\\)"),
        ({"head_warmup": 1.5}, "head_warmup=1.5 must lie in \\[0, 1\\]"),
        ({"head_learning_rate": 0.0}, "head_learning_rate=0.0 must lie in \\(0, inf\\)"),
        ({"state_cache_gb": -1.0}, "state_cache_gb=-1.0 must lie in \\[0, inf\\)"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0 must lie in \\[0, 1\\)"),
        ({"mini_batch_size": 0}, "mini_batch_size=0 must be at least 1, or None"),
        ({"per_device_train_batch_size": 1}, "per_device_train_batch_size=1: InfoNCE needs at least 2 pairs"),
        ({"pooling": "median"}, "pooling='median' is unknown"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)


# Two processes


def _train_in_a_process(dataset, tokenizer, folder, batch_size):
    AcceleratorState._reset_state(reset_partial_state=True)
    args = config(
        folder,
        max_steps=6,
        per_device_train_batch_size=batch_size,
        cache_head_features=False,
        symmetric=True,
        eval_strategy="no",
        save_strategy="no",
    )
    trainer = SemCoTAlignmentTrainer(make_host(tokenizer), args, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    save_file(trainer.model.state_dict(), folder / f"{args.world_size}-{args.process_index}.safetensors")


# Raised inside accelerate and sentence-transformers, which use what this torch renames.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:torch.distributed.nn.functional.all_gather is deprecated:FutureWarning")
def test_two_processes_train_as_one_with_twice_the_batch(rows, tokenizer, tmp_path):
    first = {row["condensed_reasoning"]: row for row in rows}
    dataset = Dataset.from_list(list(first.values())[:64])
    debug_launcher(_train_in_a_process, (dataset, tokenizer, tmp_path, 16), num_processes=2)
    _train_in_a_process(dataset, tokenizer, tmp_path, 32)
    one, *two = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    for name, value in one.items():
        assert torch.equal(two[0][name], two[1][name]), name
        torch.testing.assert_close(two[0][name], value, rtol=0, atol=2e-5)


def test_an_output_dir_that_would_overwrite_the_host(host, tokenizer, dataset, tmp_path):
    host.save_pretrained(tmp_path / "host")
    tokenizer.save_pretrained(tmp_path / "host")
    named = type(host).from_pretrained(tmp_path / "host")
    for model in (str(tmp_path / "host"), tmp_path / "host", named):
        with pytest.raises(ValueError, match="output_dir=.* is where the host comes from, which would be overwritten"):
            SemCoTAlignmentTrainer(model=model, args=config(tmp_path / "host"), train_dataset=dataset)


@pytest.mark.parametrize("kind", ["a word", "padding"])
def test_a_tokenizer_with_more_tokens_than_the_host_is_told(host, tokenizer, rows, kind, tmp_path):
    size = len(tokenizer)
    larger = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    larger.unk_token, larger.pad_token, larger.eos_token = "<unk>", "<pad>", "<eos>"
    changed = [dict(row) for row in rows]
    if kind == "a word":
        larger.add_tokens(["<extra>"], special_tokens=True)
        changed[40]["reasoning"] += " <extra>"
        message = f"train_dataset has a text with the token id {size}"
    else:
        larger.add_special_tokens({"pad_token": "<extra>"})
        message = f"The padding token '<extra>' has the id {size}"
    with pytest.raises(ValueError, match=f"{message}: the tokenizer has {size + 1} tokens, .* vocabulary only {size}"):
        SemCoTAlignmentTrainer(
            host, config(tmp_path), Dataset.from_list(changed, features=FEATURES), processing_class=larger
        )
