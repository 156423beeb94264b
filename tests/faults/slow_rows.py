"""The slow path of the random calls: one row at a time, without cache, mask or batch, tokens spliced in by hand."""

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel

from semcot_hf import SemCoTForCausalLM


def find(ids: list[int], part: list[int], start: int = 0) -> int:
    """Return the first place of `part` in `ids` from `start` on; -1 if there is none."""
    places = (place for place in range(start, len(ids) - len(part) + 1) if ids[place : place + len(part)] == part)
    return next(places, -1)


def words_of(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """Return the word embeddings (tokens, size) of a text."""
    return model.get_input_embeddings()(torch.tensor([ids], dtype=torch.long))[0]


def mixture(model: SemCoTForCausalLM, state: Tensor, part: PreTrainedModel) -> Tensor:
    """Return the mixture of a part's word embeddings that a generator's state (size) stands for."""
    config, table = model.config, part.get_input_embeddings()
    logits = (model.projection.weight @ state)[: table.weight.shape[0]].float() / config.mixture_temperature
    kept = sorted(range(len(logits)), key=lambda place: -float(logits[place]))[: config.mixture_top_k or None]
    shares = logits[kept].softmax(-1).to(table.weight)
    return (shares[:, None] * words_of(part, kept)).sum(dim=0)


def host_mixture(model: SemCoTForCausalLM, state: Tensor) -> Tensor:
    """Return the mixture of the host's words for a generator's state (size), of words that both tokenizers have."""
    if not model.config.separate_generator_tokenizer:
        return mixture(model, state, model.host)
    config, tokenizers = model.config, (model.host_tokenizer, model.generator_tokenizer)
    written: dict[str, int] = {}
    for token in range(len(tokenizers[0])):
        if token not in tokenizers[0].all_special_ids:
            written.setdefault(tokenizers[0].decode([token]), token)
    special = set(tokenizers[1].all_special_ids)
    words = [
        (token, written[text])
        for token in range(len(tokenizers[1]))
        if token not in special and (text := tokenizers[1].decode([token])) in written
    ]
    logits = (model.projection.weight @ state).float() / config.mixture_temperature
    kept = sorted(words, key=lambda pair: -float(logits[pair[0]]))[: config.mixture_top_k or None]
    shares = logits[[word for word, _ in kept]].softmax(-1).to(model.host.get_input_embeddings().weight)
    return (shares[:, None] * words_of(model.host, [word for _, word in kept])).sum(dim=0)


def thoughts(model: SemCoTForCausalLM, query: list[int], count: int) -> Tensor:
    """Return the implicit tokens (k, host size) of one query; fewer than `count` if its thought ends by itself."""
    config, generator = model.config, model.generator
    if config.thought_prompt_ids is not None:
        before, after = config.thought_prompt_ids
        opening, closing = config.question_marker_ids
        starts = [place for place in range(len(query)) if query[place : place + len(opening)] == opening]
        if starts:
            start = starts[-1] + len(opening)
            end = find(query, closing, start) if closing else -1
            query = query[start : end if end >= 0 else None] or query
        query = [*before, *query, *after]
    if config.separate_generator_tokenizer:
        query = model.generator_tokenizer(model.host_tokenizer.decode(query), add_special_tokens=False)["input_ids"]
    read = words_of(generator, query)
    thought = model.thought_embedding.to(read)[None]
    if config.generator_mode == "parallel":
        states = generator(inputs_embeds=torch.cat([read, thought.expand(count, -1)])[None], use_cache=False)
        start = len(query) + config.state_offset
        made = list(states.last_hidden_state[0, start : start + count])
    else:
        made = []
        read = torch.cat([read, thought]) if config.starts_with_thought_token else read
        while len(made) < count:
            state = generator(inputs_embeds=read[None], use_cache=False).last_hidden_state[0, -1]
            if config.thought_length == "adaptive" and int((model.projection.weight @ state).argmax()) in set(
                config.thought_ends
            ):
                break
            made.append(state)
            vocabulary = config.projection == "vocabulary"
            fed = mixture(model, state, generator) if vocabulary else state * config.feedback_scale
            if config.word_feedback:
                fed = words_of(generator, [int((model.projection.weight @ state).argmax())])[0]
            read = torch.cat([read, fed.to(read)[None]])
    if config.projection == "vocabulary":
        tokens = [host_mixture(model, state) for state in made]
    else:
        tokens = [model.projection(state.to(model.thought_embedding.dtype)) for state in made]
    words = model.host.get_input_embeddings().weight
    return torch.stack(tokens).to(words) if tokens else words.new_zeros(0, words.shape[1])


def cut_of(model: SemCoTForCausalLM, prompt: list[int]) -> int:
    """Return the number of a prompt's tokens before its answer prompt."""
    answer = model.config.answer_prompt_ids
    return len(prompt) - len(answer) if answer and prompt[-len(answer) :] == answer else len(prompt)


class Row:
    """One prompt with its implicit tokens.

    Args:
        model: the model.
        prompt: its ids, without padding.
        count: k.
        tokens: (k, size), used instead of the generator's.
    """

    def __init__(self, model: SemCoTForCausalLM, prompt: list[int], count: int, tokens: Tensor | None = None) -> None:
        self.model, self.prompt, self.cut = model, prompt, cut_of(model, prompt)
        if count == 0 and tokens is None:
            tokens = model.host.get_input_embeddings().weight.new_zeros(0, model.config.hidden_size)
        with torch.no_grad():
            self.tokens = thoughts(model, prompt[: self.cut], count) if tokens is None else tokens

    def embeds(self, text: list[int]) -> Tensor:
        """Return the host's input (1, columns, size) for a text that begins with the prompt."""
        words = words_of(self.model.host, text)
        return torch.cat([words[: self.cut], self.tokens.to(words), words[self.cut :]])[None]

    @torch.no_grad()
    def logits(self, text: list[int]) -> Tensor:
        """Return the logits (length, vocabulary) that predict the token after each of the text's."""
        host = self.model.host(inputs_embeds=self.embeds(text), use_cache=False).logits[0]
        k = len(self.tokens)
        return torch.cat([host[: self.cut - 1], host[self.cut - 1 + k :]])


def text_by_hand(
    rows: list[Row], ids: Tensor, steps: int, ends: list[int] | None, processors: LogitsProcessorList, sampled: bool
) -> tuple[list[list[int]], list[Tensor]]:
    """Return the new ids of each row, greedy or sampled from the random state, and the logits (rows, words) of each
    step."""
    texts, done, seen = [[] for _ in rows], [False] * len(rows), ids
    logits = []
    for _ in range(steps):
        raw = torch.stack([row.logits(row.prompt + text)[-1].float() for row, text in zip(rows, texts, strict=True)])
        logits.append(raw)
        scores = processors(seen, raw.clone())
        chosen = scores.softmax(-1).multinomial(1)[:, 0] if sampled else scores.argmax(-1)
        for place, token in enumerate(chosen.tolist()):
            token = 0 if done[place] else token
            texts[place].append(token)
            done[place] = done[place] or token in (ends or [])
        seen = torch.cat([seen, torch.tensor([text[-1:] for text in texts])], dim=1)
        if all(done):
            break
    return texts, logits
