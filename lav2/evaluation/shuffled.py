"""Whether captions are about their images: their CIDEr beside that of the same captions under other images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lav2.evaluation.coco import Captions, ImageId, coco_image_scores, shuffled_cider
from lav2.evaluation.report import Score
from lav2.evaluation.results import ScoreTable

RESAMPLES = 10_000
INTERVAL = 95  # percent


def against_shuffled(
    references: Captions, predictions: Mapping[ImageId, str], seed: int = 0
) -> tuple[dict[str, float], ScoreTable]:
    """Scores and a table of CIDEr with the right images, with the images shuffled, and of what the right ones gain.

    ``CIDEr_shuffled`` is :func:`lav2.evaluation.coco.shuffled_cider`; ``CIDEr_gain`` is what is above it, and
    ``CIDEr_gain_low`` to ``CIDEr_gain_high`` its 95 % bootstrap interval over images. Of a model that looks at no image
    the gain is about 0. Document frequencies stay those of all references. The interval takes images as independent,
    which captions dealt out among them are not quite, and with fewer than ten images it is too narrow.
    """
    right = np.array([scores["CIDEr"] for scores in coco_image_scores(references, predictions).values()])
    shuffled = np.array(list(shuffled_cider(references, predictions, seed).values()))
    rows = {"right images": right, "images shuffled": shuffled, "gain": right - shuffled}
    intervals = {name: (float(values.mean()), *bootstrap(values, seed)) for name, values in rows.items()}
    gain, low, high = intervals["gain"]
    scores = {"CIDEr_shuffled": intervals["images shuffled"][0], "CIDEr_gain": gain}
    scores |= {"CIDEr_gain_low": low, "CIDEr_gain_high": high}
    title = f"CIDEr of {len(right)} images, {INTERVAL} % bootstrap intervals: {verdict(scores)}"
    return scores, ScoreTable(title, ["captions", "CIDEr", "low", "high"], [[name, *intervals[name]] for name in rows])


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The percentile interval of the mean of ``values``, drawn again with replacement (Efron 1979)."""
    values, generator = np.asarray(values), np.random.default_rng(seed)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [(100 - INTERVAL) / 2, (100 + INTERVAL) / 2])
    return float(low), float(high)


def verdict(scores: Mapping[str, Any]) -> str:
    """In words, whether the gain is more than chance among so many images; rounding alone is none."""
    return (
        "the captions are about their images" if scores["CIDEr_gain_low"] > 1e-6 else "NOT shown to be above shuffled"
    )


def gain_card(scores: Mapping[str, Any]) -> Score:
    note = f"{scores['CIDEr_gain_low']:.2f} to {scores['CIDEr_gain_high']:.2f}: {verdict(scores)}"
    return Score("CIDEr above shuffled images", scores["CIDEr_gain"], note)
