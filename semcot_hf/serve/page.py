"""The page: a question, its three answers side by side with their times, and the thought word by word."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .comparison import METHODS, Comparison

if TYPE_CHECKING:
    import gradio

QUESTION = "Ann flips the coin. Bob does not flip the coin. Is the coin still heads up?"
_LONGEST_QUESTION = 4000
# What the checkpoint's rule of escalation would do, by its route.
_CHOSEN = {
    "at_once": "the host would answer at once",
    "implicit": "kept",
    "explicit": "explicit reasoning would replace it",
}
_STYLE = """
.thought { display: flex; flex-wrap: wrap; gap: 0.4rem; }
.thought span { border: 1px solid var(--border-color-primary); border-radius: 0.4rem; padding: 0.1rem 0.5rem; }
.thought small { color: var(--body-text-color-subdued); }
"""


def make_page(comparison: Comparison, name: str, first: str = QUESTION) -> "gradio.Blocks":
    """Return the page, which `launch` shows; nothing on it comes from another host.

    Args:
        comparison: answers the questions.
        name: of the model.
        first: the question that stands there at first.
    """
    # Imported here, because it takes seconds and is an extra.
    import gradio

    def ask(question: str, limit: float, swapped: bool, other: str) -> list[str]:
        try:
            # A program may send what the fields do not let through.
            asked = [text or "" for text in ([question, other] if swapped else [question])]
            for text in asked:
                if len(text) > _LONGEST_QUESTION:
                    raise ValueError(f"A question of {len(text)} characters: write at most {_LONGEST_QUESTION}.")
            compared = comparison.ask(asked[0], int(limit), *asked[1:])
        except ValueError as problem:
            # Its text is shown as HTML.
            raise gradio.Error(html.escape(str(problem)), print_exception=False) from problem
        except Exception as failure:  # Without a message, the page would stay as it was.
            raise gradio.Error("The model failed: the program's output has the reason.") from failure
        shown: list[str] = []
        for method in METHODS:
            answer = compared.answers[method]
            said = f"{answer.seconds:.2f} s, {answer.new_tokens} new tokens"
            said += "" if answer.finished else ", not ended"
            if method == "semcot" and compared.route is not None:
                said += f"; confidence {compared.confidence:.0%}: {_CHOSEN[compared.route]}".replace("%", " %")
            shown += [answer.output.strip(), said]
        return [*shown, thought_html(compared.words)]

    with gradio.Blocks(title=f"semcot: {name}", analytics_enabled=False) as page:
        gradio.HTML(
            f"<h1>Implicit reasoning</h1><p>The same question to <code>{html.escape(name)}</code> in three ways.</p>"
        )
        question = gradio.Textbox(first, label="Question", lines=3, max_length=_LONGEST_QUESTION, elem_id="question")
        with gradio.Row():
            limit = gradio.Slider(1, 1024, 128, step=1, label="Most tokens of an answer", elem_id="limit")
            swapped = gradio.Checkbox(False, label="Give the host another question's thought", elem_id="swap")
        other = gradio.Textbox(
            "", label="The other question", lines=2, max_length=_LONGEST_QUESTION, visible=False, elem_id="other"
        )
        button = gradio.Button("Ask", variant="primary", elem_id="ask")
        outputs: list[gradio.components.Component] = []
        with gradio.Row():
            for method, title in METHODS.items():
                with gradio.Column(min_width=280):
                    outputs.append(gradio.Textbox(label=title, lines=4, interactive=False, elem_id=f"answer-{method}"))
                    outputs.append(gradio.Markdown(elem_id=f"time-{method}"))
        gradio.Markdown("## What the implicit tokens say\n\nThe most probable word of each, and its share.")
        outputs.append(gradio.HTML(elem_id="thought"))
        swapped.change(
            lambda on: gradio.update(visible=on), swapped, other, api_visibility="private", show_progress="hidden"
        )
        button.click(ask, [question, limit, swapped, other], outputs, api_name="ask")
    return page


def thought_html(words: Sequence[tuple[str, float]] | None) -> str:
    """Return the words of a thought with their shares.

    >>> thought_html([(" 4<", 0.931)])
    '<div class="thought"><span>4&lt; <small>93 %</small></span></div>'
    >>> thought_html([])
    '<p>The thought is empty.</p>'
    """
    if words is None:
        return "<p>This model's implicit tokens are no words.</p>"
    if not words:
        return "<p>The thought is empty.</p>"
    spans = [
        f"<span>{html.escape(word.strip() or repr(word)[1:-1])} <small>{share:.0%}</small></span>".replace("%", " %")
        for word, share in words
    ]
    return f'<div class="thought">{"".join(spans)}</div>'


def show(
    comparison: Comparison, name: str, first: str = QUESTION, *, host: str, port: int, password: str | None = None
) -> None:
    """Show the page until the process is stopped.

    Args:
        comparison: answers the questions.
        name: of the model.
        first: the question that stands there at first.
        host, port: address to listen on.
        password: asked for, with the user name "semcot", if it is set.
    """
    make_page(comparison, name, first).launch(
        server_name=host,
        server_port=port,
        auth=None if password is None else ("semcot", password),
        css=_STYLE,
        footer_links=[],
        share=False,
        ssr_mode=False,
        quiet=False,
    )
