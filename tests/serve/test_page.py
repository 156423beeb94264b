"""The page: three answers side by side, the thought in words, another question's thought; in a browser too."""

import copy
import dataclasses
import functools
import os
import shutil
import socket

import gradio
import gradio_client
import httpx2
import pytest
import torch
from served import free_port

from semcot_hf.cli.main import main
from semcot_hf.data.tasks import facts
from semcot_hf.demo import QUESTION as DEMO_QUESTION
from semcot_hf.inference.answering import answer_questions
from semcot_hf.inference.prompting import answer_prompt_ids, with_answer_prompt
from semcot_hf.modeling.escalation_semcot import Escalation
from semcot_hf.serve import space
from semcot_hf.serve.comparison import METHODS, Comparison
from semcot_hf.serve.page import make_page, show, thought_html

QUESTION, OTHER = "How many apples has Ann?", "Bob gives Ann three apples. How many?"


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return with_answer_prompt(tiny_tokenizer)


@pytest.fixture(scope="module")
def model_of(tiny_lm, tiny_semcot, tiny_tokenizer):
    def make(**fields):
        return tiny_semcot(
            tiny_lm(),
            tiny_lm(hidden_size=32, seed=5),
            answer_prompt_ids=answer_prompt_ids(tiny_tokenizer),
            generator_mode="sequential",
            **fields,
        )

    return make


@pytest.fixture(scope="module")
def words_model(model_of):
    return model_of(projection="vocabulary", num_implicit_tokens=4)


@pytest.fixture(scope="module")
def url(words_model, tokenizer):
    page = make_page(Comparison(words_model, tokenizer), "tiny")
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", ssr_mode=False)
    yield address
    page.close()


def words_of(model, tokenizer, question):
    ids = torch.tensor(
        [
            tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)[
                "input_ids"
            ]
        ]
    )
    words, shares = model.implicit_words(ids)
    return [
        (tokenizer.decode([word]), share) for word, share in zip(words[0].tolist(), shares[0].tolist(), strict=True)
    ]


def test_the_answers_are_those_of_each_method(words_model, tokenizer):
    compared = Comparison(words_model, tokenizer).ask(QUESTION, 6)
    assert set(compared.answers) == set(METHODS)
    for method, answer in compared.answers.items():
        [alone] = answer_questions(words_model, tokenizer, [QUESTION], method=method, max_new_tokens=6)
        assert (answer.output, answer.new_tokens) == (alone.output, alone.new_tokens) and answer.seconds > 0
    assert compared.words == words_of(words_model, tokenizer, QUESTION)


def test_confidence_of_a_calibrated_checkpoint(words_model, tokenizer, monkeypatch):
    calibration = {"kind": "logistic", "coefficients": [1.0], "intercept": 0.0, "means": [5.0], "scales": [1.0]}
    rule = Escalation(1.0, ["thought_entropy"], calibration)
    monkeypatch.setattr(words_model.config, "escalation", rule.to_dict())
    ids = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)
    made = words_model.generate(
        torch.tensor([ids["input_ids"]]),
        escalation=Escalation(0.0, ["thought_entropy"], calibration),
        max_new_tokens=6,
        return_dict_in_generate=True,
    )
    compared = Comparison(words_model, tokenizer).ask(QUESTION, 6)
    assert compared.confidence == pytest.approx(float(made.confidence), abs=1e-4)
    assert compared.route == "explicit"
    rule.threshold = compared.confidence / 2
    monkeypatch.setattr(words_model.config, "escalation", rule.to_dict())
    assert Comparison(words_model, tokenizer).ask(QUESTION, 6).route == "implicit"
    assert Comparison(words_model, tokenizer).ask(QUESTION, 6, OTHER).route is None
    router = {"signals": ["host_probability"], "calibration": None, "threshold": 0.0, "sends": "at_once"}
    monkeypatch.setattr(words_model.config, "escalation", {**rule.to_dict(), "router": router})
    routed = Comparison(words_model, tokenizer).ask(QUESTION, 6)
    assert routed.route == "at_once" and 0 < routed.confidence < 1
    # A rule without calibration goes by the answer's probability, whatever signals it names.
    plain = Escalation(1.0, ["thought_entropy"])
    monkeypatch.setattr(words_model.config, "escalation", plain.to_dict())
    assert Comparison(words_model, tokenizer).ask(QUESTION, 6).route == "explicit"
    rule.signals = ["similarity"]
    monkeypatch.setattr(words_model.config, "escalation", rule.to_dict())
    assert Comparison(words_model, tokenizer).ask(QUESTION, 6).route is None


@pytest.mark.parametrize("fields", [{"projection": "vocabulary"}, {}], ids=["words", "vectors"])
def test_the_host_gets_the_other_questions_thought(model_of, tokenizer, fields):
    model = model_of(**fields)
    compared = Comparison(model, tokenizer)
    own, swapped = compared.ask(QUESTION, 8), compared.ask(QUESTION, 8, OTHER)
    for method in ("no_cot", "cot"):
        assert own.answers[method].output == swapped.answers[method].output
    prompts = [
        torch.tensor(
            [
                tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)[
                    "input_ids"
                ]
            ]
        )
        for text in (QUESTION, OTHER)
    ]
    ids = model.generate(prompts[0], implicit_embeddings=model.implicit_embeddings(prompts[1]), max_new_tokens=8)
    assert swapped.answers["semcot"].output == tokenizer.decode(
        ids[0, prompts[0].shape[1] :], skip_special_tokens=True
    )
    assert swapped.answers["semcot"].output != own.answers["semcot"].output
    assert swapped.words == (words_of(model, tokenizer, OTHER) if fields else None)


def test_what_cannot_be_answered_is_explained(words_model, tokenizer, tiny_lm):
    compared = Comparison(words_model, tokenizer)
    with pytest.raises(ValueError, match="question is empty"):
        compared.ask("  ", 6)
    with pytest.raises(ValueError, match="other is empty"):
        compared.ask(QUESTION, 6, "")
    with pytest.raises(ValueError, match="question holds half a surrogate pair"):
        compared.ask("half \ud83d", 6)
    with pytest.raises(ValueError, match="other holds half a surrogate pair"):
        compared.ask(QUESTION, 6, "\udc00")
    with pytest.raises(ValueError, match="more than the context of 256"):
        compared.ask("apples " * 300, 6)
    with pytest.raises(ValueError, match="model_type='llama' makes no implicit tokens"):
        Comparison(tiny_lm(), tokenizer)


def test_words_are_shown_as_text():
    assert "<script>" not in thought_html([("<script>", 0.5)])
    assert "no words" in thought_html(None)


def test_the_pages_programming_interface(url, words_model, tokenizer):
    client = gradio_client.Client(url, verbose=False)
    compared = Comparison(words_model, tokenizer).ask(QUESTION, 6)
    shown = client.predict(QUESTION, 6, False, "", api_name="/ask")
    assert [shown[2 * n] for n in range(3)] == [compared.answers[method].output.strip() for method in METHODS]
    assert all("6 new tokens" in shown[2 * n + 1] for n in range(3))
    assert shown[6] == thought_html(compared.words)
    assert client.predict(QUESTION, 6, True, OTHER, api_name="/ask")[6] != shown[6]
    assert client.predict("👩‍👩‍👧 has <b>3</b> 🍎", 6, False, "", api_name="/ask")[0]


# gradio's own use of pandas, in the statistics that follow the first error.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((" ", 6, False, ""), "question is empty"),
        ((None, 6, False, ""), "question is empty"),
        ((QUESTION, 6, True, ""), "other is empty"),
        ((QUESTION, 6, True, None), "other is empty"),
        (("apples " * 500, 6, False, ""), "more than the context of 256"),
        (("a" * 4001, 6, False, ""), "4001 characters: write at most 4000"),
        ((QUESTION, 6, True, "a" * 100_000), "100000 characters: write at most 4000"),
        ((QUESTION, 0, False, ""), "less than minimum"),
        ((QUESTION, 10**9, False, ""), "greater than maximum"),
    ],
)
def test_what_is_wrong_is_shown_on_the_page_only(url, given, said, capsys):
    client = gradio_client.Client(url, verbose=False)
    with pytest.raises(gradio_client.exceptions.AppError, match=said):
        client.predict(*given, api_name="/ask")
    if "imum" not in said:
        # The limit of the slider is gradio's own, which says so in the terminal, too.
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_failures_of_the_model_are_shown(words_model, tokenizer, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("out of something")

    monkeypatch.setattr(Comparison, "ask", fail)
    page = make_page(Comparison(words_model, tokenizer), "tiny")
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", ssr_mode=False)
    with pytest.raises(gradio_client.exceptions.AppError, match="The model failed: the program's output has the"):
        gradio_client.Client(address, verbose=False).predict(QUESTION, 6, False, "", api_name="/ask")
    assert "RuntimeError: out of something" in capsys.readouterr().err
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_the_page_in_a_browser(url, words_model, tokenizer, width):
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        pytest.skip("there is no Chromium here")
    from playwright.sync_api import expect, sync_playwright

    compared = Comparison(words_model, tokenizer)
    own, swapped = compared.ask(QUESTION, 128), compared.ask(QUESTION, 128, OTHER)
    asked = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=["--no-sandbox"], timeout=120_000)
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.set_default_timeout(120_000)
        expect.set_options(timeout=120_000)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        page.locator("#question textarea").fill(QUESTION)
        page.locator("#ask").click()
        for method in METHODS:
            expect(page.locator(f"#answer-{method} textarea")).to_have_value(own.answers[method].output.strip())
            expect(page.locator(f"#time-{method}")).to_contain_text(" s, ")
        expect(page.locator("#thought span")).to_have_count(len(own.words))
        expect(page.locator("#other textarea")).to_have_count(0)
        page.locator("#swap input").check()
        page.locator("#other textarea").fill(OTHER)
        page.locator("#ask").click()
        expect(page.locator("#answer-semcot textarea")).to_have_value(swapped.answers["semcot"].output.strip())
        # Nothing is wider than the screen; on a phone the answers stand below each other.
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        places = [page.locator(f"#answer-{method}").bounding_box() for method in METHODS]
        assert len({round(place["y"]) for place in places}) == (1 if width > 1000 else 3)
        browser.close()
    assert asked and all(address.startswith((url, "data:", "blob:")) for address in asked), asked


@pytest.mark.slow
def test_bad_input_and_markup_in_a_browser(words_model, tokenizer, monkeypatch):
    """Each mistake has its message, and markup is text: in the question, the answers, the thought and the name."""
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        pytest.skip("there is no Chromium here")
    from playwright.sync_api import expect, sync_playwright

    markup = "<img src=x onerror=alert(1)><script>alert(2)</script> **bold** </textarea>"
    calls, ask = [], Comparison.ask

    def marked(comparison, *given):
        calls.append(given)
        made = ask(comparison, *given)
        answers = {method: dataclasses.replace(answer, output=markup) for method, answer in made.answers.items()}
        return dataclasses.replace(made, answers=answers, words=[(markup, 0.5)])

    page_of = make_page(Comparison(words_model, tokenizer), f"`model` {markup}")
    _, address, _ = page_of.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", ssr_mode=False)
    dialogs = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=["--no-sandbox"], timeout=120_000)
        page = browser.new_page()
        page.set_default_timeout(120_000)
        expect.set_options(timeout=120_000)
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto(address)
        question, message = page.locator("#question textarea"), page.locator(".toast-body")
        expect(page.locator("h1 + p code")).to_have_text(f"`model` {markup}")
        # The other question is asked for before any was answered.
        page.locator("#swap input").check()
        for text, said in (
            ("  ", "question is empty"),
            ("How many?", "other is empty"),
            ("apples " * 500, "more than the context of 256"),
            ("half \\ud83d", "half a surrogate pair"),
        ):
            if "apples" in text:
                page.locator("#swap input").uncheck()
            question.evaluate(
                f"(box) => {{ box.value = '{text}'; box.dispatchEvent(new Event('input', {{bubbles: true}})); }}"
            )
            page.locator("#ask").click()
            expect(message).to_contain_text(said)
            page.locator(".toast-close").click()
            expect(message).to_have_count(0)
        monkeypatch.setattr(Comparison, "ask", marked)
        question.fill(markup)
        # Clicks beside an open question ask no other one.
        page.locator("#ask").click(click_count=4)
        for method in METHODS:
            expect(page.locator(f"#answer-{method} textarea")).to_have_value(markup)
        expect(page.locator("#thought span")).to_have_text(f"{markup} 50 %")
        assert len(calls) == 1 and calls[0][0] == markup
        assert page.locator("img[src=x]").count() == 0 and not dialogs
        browser.close()
    page_of.close()


def test_a_space_is_published_for_checkpoints_of_the_hub(monkeypatch, capsys, tmp_path):
    calls = []

    class Api:
        def create_repo(self, repo_id, **options):
            calls.append((repo_id, options))
            return f"https://hub/spaces/{repo_id}"

        def upload_folder(self, *, folder_path, **options):
            calls.append({name: open(os.path.join(folder_path, name)).read() for name in os.listdir(folder_path)})

    monkeypatch.setattr(space, "HfApi", Api)
    monkeypatch.setattr(space, "get_token", lambda: None)
    assert main(["page", "--model", "me/model", "--push", "me/page"]) == 1 and not calls
    assert "push='me/page' needs a token" in capsys.readouterr().err
    monkeypatch.setattr(space, "get_token", lambda: "hf_token")
    assert main(["page", "--model", "me/model", "--push", "me/page"]) == 0
    assert "https://hub/spaces/me/page" in capsys.readouterr().out
    assert calls[0] == ("me/page", {"repo_type": "space", "space_sdk": "gradio", "exist_ok": True})
    compile(calls[1]["app.py"], "app.py", "exec")
    assert "'me/model'" in calls[1]["app.py"] and "sdk: gradio" in calls[1]["README.md"]
    assert calls[1]["requirements.txt"].startswith("semcot-hf[page]==")
    assert main(["page", "--model", str(tmp_path), "--push", "me/page"]) == 1
    assert "is no Hub id" in capsys.readouterr().err

    def unreachable(*_, **__):
        raise httpx2.ConnectError("no such name")

    monkeypatch.setattr(Api, "create_repo", unreachable)
    assert main(["page", "--model", "me/model", "--push", "me/page"]) == 1
    assert "the Hub cannot be reached (no such name)" in capsys.readouterr().err


def test_the_spaces_program_shows_the_page(words_model, tokenizer, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("gradio.Blocks.launch", lambda page, **options: shown.append((page, options)))
    words_model.save_pretrained(tmp_path / "model", include_host=True)
    tokenizer.save_pretrained(tmp_path / "model")
    text = space.space_files("me/model")["app.py"].replace("'me/model'", repr(str(tmp_path / "model")))
    exec(compile(text, "app.py", "exec"), {})
    show(Comparison(words_model, tokenizer), "tiny", host="127.0.0.1", port=1, password="secret")
    assert [options["auth"] for _, options in shown] == [None, ("semcot", "secret")]
    assert shown[0][1]["server_port"] == 7860 and not shown[0][1]["share"]


def test_addresses_of_other_machines_need_a_password(capsys):
    assert main(["page", "--model", "m", "--host", "0.0.0.0"]) == 1
    assert "pass --password" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["page", "serve"])
def test_what_cannot_be_shown_is_said_before_a_model_is_loaded(command, tmp_path, monkeypatch, capsys):
    loads = []
    monkeypatch.setattr(
        "semcot_hf.cli.arguments.AutoModelForCausalLM.from_pretrained", lambda *_, **__: loads.append(1)
    )
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main([command, "--model", str(tmp_path), "--port", str(port)]) == 1
    assert f"port={port}: nothing can listen there (Address already in use)" in capsys.readouterr().err
    secret = ["--password" if command == "page" else "--api_key", "x"]
    assert main([command, "--model", str(tmp_path), "--host", "nowhere.invalid", *secret]) == 1
    assert "host='nowhere.invalid'" in capsys.readouterr().err
    monkeypatch.setattr(f"semcot_hf.cli.{command}.check_address", lambda *_: None)
    assert main([command, "--model", str(tmp_path / "nowhere")]) == 1
    assert "there is no such folder" in capsys.readouterr().err and not loads


def test_models_that_have_no_page_are_named(tiny_lm, tiny_tokenizer, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no model")
    port = ["--port", str(free_port())]
    assert main(["page", "--model", str(tmp_path), *port]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    tiny_lm().save_pretrained(tmp_path / "plain")
    tiny_tokenizer.save_pretrained(tmp_path / "plain")
    assert main(["page", "--model", str(tmp_path / "plain"), *port]) == 1
    assert "makes no implicit tokens: pass a SemCoT checkpoint" in capsys.readouterr().err


def test_a_checkpoint_without_a_chat_template(model_of, tiny_tokenizer):
    plain = copy.deepcopy(tiny_tokenizer)
    plain.chat_template = None
    compared = Comparison(model_of(), plain).ask(QUESTION, 4)
    [alone] = answer_questions(model_of(), plain, [QUESTION], method="semcot", max_new_tokens=4)
    assert compared.answers["semcot"].output == alone.output and compared.words is None


def test_a_password_is_asked_for(words_model, tokenizer, monkeypatch):
    port = free_port()
    monkeypatch.setattr(
        "gradio.Blocks.launch", functools.partialmethod(gradio.Blocks.launch, prevent_thread_lock=True)
    )
    show(Comparison(words_model, tokenizer), "tiny", host="127.0.0.1", port=port, password="secret")
    url = f"http://127.0.0.1:{port}"
    for password, status in (("secre", 400), ("Secret", 400), ("secret", 200)):
        answer = httpx2.post(f"{url}/login", data={"username": "semcot", "password": password}, timeout=60)
        assert answer.status_code == status
    assert httpx2.get(f"{url}/config", timeout=60).status_code == 401
    with pytest.raises(Exception, match="401|credentials|Could not"):
        gradio_client.Client(url, auth=("semcot", "secre"), verbose=False)
    shown = gradio_client.Client(url, auth=("semcot", "secret"), verbose=False).predict(
        QUESTION, 2, False, "", api_name="/ask"
    )
    assert len(shown) == 7


def test_the_demos_model_is_shown_by_default(words_model, tokenizer, tmp_path, monkeypatch, capsys):
    """Where it was not trained yet, it is first."""
    runs, shown = [], []

    def train(argv):
        runs.append(argv)
        words_model.save_pretrained(tmp_path / "runs/demo/model", include_host=True)
        tokenizer.save_pretrained(tmp_path / "runs/demo/model")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("semcot_hf.cli.demo.run", train)
    monkeypatch.setattr("gradio.Blocks.launch", lambda page, **options: shown.append(page))
    port = ["--port", str(free_port())]
    assert main(["page", *port]) == main(["page", *port]) == 0
    assert runs == [[]] and len(shown) == 2
    # The demo's model knows the words of its own task only.
    filled = [field.value for field in shown[0].blocks.values() if getattr(field, "elem_id", None) == "question"]
    assert filled == [DEMO_QUESTION] and facts.solve(DEMO_QUESTION)
    assert "the demo's embedded models are trained first" in capsys.readouterr().out
