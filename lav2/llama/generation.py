"""Text from a language model: batched, cached, greedy, sampled or searched with beams, whole or as it comes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from lav2.errors import UserError
from lav2.llama.beams import beam_search
from lav2.llama.decoder import Decoder, Ending, check_prompts
from lav2.llama.model import BlockHooks, Llama
from lav2.llama.sampling import Sampler
from lav2.llama.settings import GenerationSettings
from lav2.llama.text import AnswerText


def generate(
    llama: Llama,
    prompts: list[list[int]],
    *,
    eos_id: int | Sequence[int],
    hooks: Sequence[BlockHooks] | None = None,
    decode: Callable[[list[int]], str] | None = None,
    rows: Sequence[int] | None = None,
    **settings: Any,
) -> list[list[int]]:
    """Continue each prompt until an end token, a stop text, ``max_new_tokens`` or the model's ``max_length``.

    An answer does not depend on the other rows: not on their padding, nor on their draws.

    Args:
        llama: the language model.
        prompts: token ids, each row with its BOS.
        eos_id: the token, or the tokens, that end a row; they are not returned.
        hooks: an adapter bound to its visual features (:meth:`lav2.adapter.AdaptedLlama.bind`), one row of features a
            prompt.
        decode: token ids → text, needed for ``stop``.
        rows: each prompt's number in the whole call, when this is one of its batches; what is drawn depends on it.
        settings: those of :class:`lav2.llama.settings.GenerationSettings`.

    Returns:
        The new token ids of each row. The last of them completes the stop text, if there is one;
        :class:`lav2.llama.text.AnswerText` cuts it off.

    Raises:
        UserError: a setting is wrong, or a prompt is empty or leaves no room within ``max_length``.
    """
    chosen = GenerationSettings.checked(settings)
    check_prompts(llama.config, prompts)
    ending = Ending(llama.config, prompts, eos_id, decode, chosen)
    if not prompts:
        return []
    if chosen.num_beams > 1:
        return beam_search(llama, prompts, ending, chosen, hooks)
    *_, answers = grow(llama, prompts, ending, chosen, hooks, rows or range(len(prompts)))
    return answers


def stream(
    llama: Llama,
    prompt: list[int],
    decode: Callable[[list[int]], str],
    *,
    eos_id: int | Sequence[int],
    hooks: Sequence[BlockHooks] | None = None,
    **settings: Any,
) -> Iterator[str]:
    """The answer to one prompt in pieces as they come; together they are the answer that is not streamed.

    A piece is held back while it may be the beginning of a stop text, half a character, or white space at the end.
    Closing the iterator ends the generation.

    Args:
        decode: token ids → text.

    The others are those of :func:`generate`.

    Raises:
        UserError: as for :func:`generate`, and for beams, which settle on their first word last.
    """
    chosen = GenerationSettings.checked(settings)
    if chosen.num_beams > 1:
        raise UserError(f"num_beams is {chosen.num_beams}, but beam search cannot be streamed: set it to 1")
    check_prompts(llama.config, [prompt])
    ending = Ending(llama.config, [prompt], eos_id, decode, chosen)
    return pieces(grow(llama, [prompt], ending, chosen, hooks, [0]), AnswerText(decode, chosen.stop))


def pieces(answers: Iterator[list[list[int]]], text: AnswerText) -> Iterator[str]:
    """What is new in the text of the first answer, each time that something is settled."""
    ids: list[int] = []
    shown = 0
    for [ids] in answers:
        settled = text.settled(ids)
        if len(settled) > shown:
            yield settled[shown:]
            shown = len(settled)
    if rest := text.whole(ids)[shown:]:
        yield rest


@torch.inference_mode()
def grow(
    llama: Llama,
    prompts: list[list[int]],
    ending: Ending,
    settings: GenerationSettings,
    hooks: Sequence[BlockHooks] | None,
    rows: Sequence[int],
) -> Iterator[list[list[int]]]:
    """The new tokens of each prompt, again after each step until all have ended; it is the same list, grown."""
    decoder = Decoder(llama, prompts, max(ending.limits), hooks)
    choose = Sampler(settings, prompts, rows, max(ending.limits), llama.tok_embeddings.weight)
    answers: list[list[int]] = [[] for _ in prompts]
    batch = list(range(len(prompts)))  # whose answer each row of the decoder's batch writes
    running = set(batch)
    logits = decoder.read_prompts()
    while True:
        tokens = choose(logits)
        for row, token in zip(batch, tokens.tolist(), strict=True):
            if row in running:
                if token not in ending.tokens:
                    answers[row].append(token)
                if token in ending.tokens or ending.reached(row, answers[row]):
                    running.remove(row)
        yield answers
        if not running:
            return
        if 2 * len(running) <= len(batch):  # rows that have ended no longer cost time
            kept = [place for place, row in enumerate(batch) if row in running]
            batch = [batch[place] for place in kept]
            places = torch.tensor(kept, device=tokens.device)
            decoder.select(places)
            choose.select(places)
            tokens = tokens[places]
        logits = decoder.read(tokens)
