"""The plot of a sweep: reasoning, condensed reasoning and implicit tokens in the space of the encoder f."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sentence_transformers import SentenceTransformer
from sklearn.decomposition import PCA
from transformers import AutoModelForCausalLM, AutoTokenizer

from ...alignment.encoder import backbone_in
from ...alignment.trainer import retrieval_scores
from ...evaluation.controls import ControlTokens
from ...inference.answering import Answerer
from ...inference.settings import AnswerSettings
from ...storage import write_atomically

PLOT = "embeddings.png"
_COLOURS = {"reasoning": "#0072B2", "condensed reasoning": "#56B4E9", "implicit tokens": "#D55E00"}
_MARKERS = {"reasoning": "o", "condensed reasoning": "^", "implicit tokens": "x"}
_BATCH = 16


def embed_and_plot(
    encoder: SentenceTransformer, pairs: Dataset, models: Mapping[str, str], count: int, folder: Path
) -> dict[str, Any]:
    """Embed the first `count` pairs and their implicit tokens by f, plot them in two dimensions, and return figures.

    Args:
        encoder: f.
        pairs: with `query`, `reasoning` and `condensed_reasoning`; without `query` no implicit tokens are made.
        models: checkpoints whose implicit tokens are embedded, by name; each gets a panel of its own.
        count: most pairs.
        folder: where the plot is written.

    Returns:
        `pairs`, the number of them; `explained`, the share of the variance in both dimensions; `models`: by name, the
        mean cosine of the implicit tokens with their own reasoning and with others', and how often and at what mean
        reciprocal rank their own reasoning is found by them.

    Raises:
        ValueError: for a model of another width than the encoder's.
    """
    pairs = pairs.select(range(min(count, len(pairs))))
    texts = {"reasoning": list(pairs["reasoning"]), "condensed reasoning": list(pairs["condensed_reasoning"])}
    found = {
        name: encoder.encode(each, batch_size=_BATCH, show_progress_bar=False).astype("float32")
        for name, each in texts.items()
    }
    queries = list(pairs["query"]) if "query" in pairs.column_names else []
    implicit = {name: implicit_vectors(path, encoder, queries) for name, path in models.items() if queries}
    pca = PCA(n_components=2).fit(np.concatenate([*found.values(), *implicit.values()]))
    points = {name: pca.transform(vectors) for name, vectors in {**found, **implicit}.items()}
    explained = [round(float(share), 4) for share in pca.explained_variance_ratio_]
    figure = _figure(points, list(implicit), explained)
    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    write_atomically(folder / PLOT, image.getvalue())
    related = _related(texts["reasoning"])
    figures = {name: _figures_of(vectors, found["reasoning"], related) for name, vectors in implicit.items()}
    return {"pairs": len(pairs), "explained": explained, "models": figures}


@torch.no_grad()
def implicit_vectors(path: str, encoder: SentenceTransformer, queries: list[str]) -> np.ndarray:
    """Return f of the implicit tokens that a checkpoint makes for each question, (questions, embedding_dim).

    Raises:
        ValueError: for a checkpoint of another width than the encoder's.
    """
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    model.to(cast(Any, encoder.device)).eval()
    widths = [part.config.get_text_config().hidden_size for part in (backbone_in(encoder), model)]
    if widths[0] != widths[1]:
        raise ValueError(
            f"model={path!r} makes tokens of size {widths[1]}, and the host of this sweep has hidden size "
            f"{widths[0]}: pass a checkpoint that was trained for this host."
        )
    answerer = Answerer(model, AutoTokenizer.from_pretrained(path), AnswerSettings(method="semcot"))
    control = ControlTokens(model, list(answerer.prompts(queries)), batch_size=_BATCH)
    tokens, mask = control.tokens, control.mask
    mask = torch.ones(tokens.shape[:2], dtype=torch.long) if mask is None else mask.long()
    dtype, device = next(encoder.parameters()).dtype, encoder.device
    vectors = [
        encoder({"inputs_embeds": part.to(device, dtype), "attention_mask": used.to(device)})["sentence_embedding"]
        for part, used in zip(tokens.split(_BATCH), mask.split(_BATCH), strict=True)
    ]
    return torch.cat(vectors).float().cpu().numpy()


def _related(texts: list[str]) -> torch.Tensor:
    """Return (texts, texts), True where two are equal."""
    numbers = torch.tensor([texts.index(text) for text in texts])
    return numbers[:, None] == numbers


def _figures_of(implicit: np.ndarray, reasoning: np.ndarray, related: torch.Tensor) -> dict[str, float]:
    cosines = torch.from_numpy(implicit) @ torch.from_numpy(reasoning).T
    top1, mrr = retrieval_scores(cosines, related)
    others = cosines[~related].mean().item() if (~related).any() else float("nan")
    figures = {"cosine_own": cosines.diagonal().mean().item(), "cosine_others": others, "top1": top1, "mrr": mrr}
    return {name: round(value, 4) for name, value in figures.items()}


def _figure(points: Mapping[str, np.ndarray], models: list[str], explained: list[float]) -> Figure:
    panels = models or [""]
    figure = Figure(figsize=(1 + 4.6 * len(panels), 4.8), dpi=130, layout="constrained")
    for number, (axes, model) in enumerate(
        zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True)
    ):
        shown = {"reasoning": points["reasoning"], "condensed reasoning": points["condensed reasoning"]}
        for one, other in zip(*shown.values(), strict=True):
            axes.plot(*zip(one, other, strict=True), color="#d0d0d0", linewidth=0.5, zorder=0)
        if model:
            shown["implicit tokens"] = points[model]
        for name, each in shown.items():
            axes.scatter(
                each[:, 0], each[:, 1], s=14, marker=_MARKERS[name], color=_COLOURS[name], label=name, linewidths=0.9
            )
        axes.set_title(model or "f's space", loc="left", fontsize="medium")
        axes.set_xlabel(f"first principal component ({explained[0]:.0%} of the variance)")
        axes.set_ylabel(f"second ({explained[1]:.0%})")
        axes.spines[["top", "right"]].set_visible(False)
        if number == 0:
            axes.legend(fontsize="small", frameon=False)
    return figure
