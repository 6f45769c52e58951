"""Beam search, with transformers' rules and so with its answers.

Notation: B prompts still searched, N = num_beams, V vocabulary.
"""

from collections.abc import Sequence

import torch

from lav2.llama.decoder import Decoder, Ending
from lav2.llama.model import BlockHooks, Llama
from lav2.llama.sampling import penalize, seen_tokens
from lav2.llama.settings import GenerationSettings

HOPELESS = -1e9  # the log-likelihood of a beam that only fills its place


class Search:
    """The beams of one prompt.

    A beam is a log-likelihood and the new tokens. ``live`` ones go on, the likeliest first. Those of ``finished`` ones
    are divided by their length, end token included, to the power ``length_penalty``; the best comes first.
    """

    def __init__(self, row: int, ending: Ending, settings: GenerationSettings):
        self.row, self.ending, self.settings = row, ending, settings
        self.live: list[tuple[float, list[int]]] = [(0.0, [])]
        self.parents: list[int] = []  # of the live beams, among those before
        self.finished: list[tuple[float, list[int]]] = []
        self.done = False

    def advance(self, candidates: Sequence[tuple[float, int, int]]) -> None:
        """Take one more token: ``candidates`` are (log-likelihood, beam, token), the likeliest first.

        Only one among the first N may finish; the others are there so that N can go on.
        """
        num_beams = self.settings.num_beams
        norm = (len(self.live[0][1]) + 1) ** self.settings.length_penalty
        live, parents = [], []
        for rank, (score, beam, token) in enumerate(candidates):
            ids = self.live[beam][1] + [token]
            if token in self.ending.tokens or self.ending.reached(self.row, ids):
                if rank < num_beams:
                    self.finished.append((score / norm, ids))
            elif len(live) < num_beams:
                live.append((score, ids))
                parents.append(beam)
        self.finished = sorted(self.finished, key=lambda beam: -beam[0])[:num_beams]
        if not live:
            self.done = True
            return
        # The best live beam, if it ended here, would not be among the finished: transformers' early_stopping=False.
        self.done = len(self.finished) == num_beams and live[0][0] / norm <= self.finished[-1][0]
        missing = num_beams - len(live)
        self.live = live + [(HOPELESS, live[0][1])] * missing
        self.parents = parents + parents[:1] * missing

    @property
    def best(self) -> list[int]:
        """The answer without its end token."""
        ids = self.finished[0][1]
        return ids[:-1] if ids[-1] in self.ending.tokens else ids


@torch.inference_mode()
def beam_search(
    llama: Llama,
    prompts: list[list[int]],
    ending: Ending,
    settings: GenerationSettings,
    hooks: Sequence[BlockHooks] | None,
) -> list[list[int]]:
    """The best answer to each prompt that beams find; arguments as for :func:`lav2.llama.generation.generate`."""
    like, vocab_size = llama.tok_embeddings.weight, llama.config.vocab_size
    seen = seen_tokens(prompts, like) if settings.repetition_penalty != 1 else None  # (B · N, V)
    decoder = Decoder(llama, prompts, max(ending.limits), hooks)
    searches = searching = [Search(row, ending, settings) for row in range(len(prompts))]
    scores = torch.zeros(len(prompts), 1, device=like.device)  # (B, N); one beam each at first
    wanted = max(2, 1 + len(ending.tokens)) * settings.num_beams  # so many that N can go on if others end
    logits = decoder.read_prompts()  # (B · N, V)
    while True:
        likelihoods = logits.log_softmax(-1)
        if seen is not None:
            likelihoods = penalize(likelihoods, seen, settings.repetition_penalty)
        totals = (likelihoods.unflatten(0, scores.shape) + scores[..., None]).flatten(1)  # (B, N · V)
        best, places = totals.topk(min(wanted, totals.shape[1]))
        table = zip(best.tolist(), (places // vocab_size).tolist(), (places % vocab_size).tolist(), strict=True)
        for search, columns in zip(searching, table, strict=True):
            search.advance(list(zip(*columns, strict=True)))

        width = scores.shape[1]
        going = [(place, search) for place, search in enumerate(searching) if not search.done]
        if not going:
            return [search.best for search in searches]
        parents = [place * width + beam for place, search in going for beam in search.parents]
        rows = torch.tensor(parents, device=like.device)
        if width == settings.num_beams and len(going) == len(searching):
            decoder.reorder(rows)
        else:
            decoder.select(rows)
        searching = [search for _, search in going]
        scores = torch.tensor([[score for score, _ in search.live] for search in searching], device=like.device)
        tokens = torch.tensor([ids[-1] for search in searching for _, ids in search.live], device=like.device)
        if seen is not None:
            seen = seen[rows].scatter(1, tokens[:, None], True)
        logits = decoder.read(tokens)
