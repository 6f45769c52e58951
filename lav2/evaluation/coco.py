"""COCO caption scores: BLEU, ROUGE-L and CIDEr, equal to those of COCO's own evaluation.

Captions are split by :mod:`lav2.evaluation.ptb`. Where the papers leave a choice open, COCO's evaluation decides.
"""

import math
import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from lav2.errors import UserError
from lav2.evaluation.ptb import tokenize

MAX_ORDER = 4  # n-grams of one to four words, in BLEU and in CIDEr
SHOWN = 20  # image ids named in a message

ImageId = Hashable
Captions = Mapping[ImageId, Sequence[str]]
NGrams = Counter[tuple[str, ...]]


def coco_scores(references: Captions, predictions: Mapping[ImageId, str]) -> dict[str, float]:
    """Score one predicted caption an image against its references.

    The order of ``references`` is that of the images; it matters in rare cases only (see the tokenizer).

    Returns:
        ``Bleu_1`` ... ``Bleu_4`` (of the corpus, 0 to 1), ``ROUGE_L`` (mean over images, 0 to 1) and ``CIDEr`` (mean
        over images, 0 to 10). Multiply by 100 for the numbers papers print.

    Raises:
        UserError: an image has no prediction or no reference, or a prediction belongs to no image.
    """
    reference_words, predicted_words = tokenized(references, predictions)
    scores = {f"Bleu_{order}": value for order, value in enumerate(_bleu(reference_words, predicted_words), start=1)}
    scores["ROUGE_L"] = _mean(_rouge_l(reference_words, predicted_words))
    scores["CIDEr"] = _mean(_cider(reference_words, predicted_words))
    return scores


def coco_image_scores(references: Captions, predictions: Mapping[ImageId, str]) -> dict[ImageId, dict[str, float]]:
    """``ROUGE_L`` and ``CIDEr`` of each image; their means are those of :func:`coco_scores`, which takes the same."""
    words = tokenized(references, predictions)
    pairs = zip(_rouge_l(*words), _cider(*words), strict=True)
    return {image: {"ROUGE_L": rouge, "CIDEr": cider} for image, (rouge, cider) in zip(references, pairs, strict=True)}


def shuffled_cider(
    references: Captions, predictions: Mapping[ImageId, str], seed: int = 0, shuffles: int = 10
) -> dict[ImageId, float]:
    """``CIDEr`` of each image under captions of ``shuffles`` other images, or all if there are less: the mean.

    What a model gets that says what fits any image, and looks at none. Takes what :func:`coco_scores` takes, two images
    or more.
    """
    reference_words, predicted_words = tokenized(references, predictions)
    count = len(predicted_words)
    order = random.Random(seed).sample(range(count), count)
    totals = [0.0] * count
    shifts = range(1, min(shuffles, count - 1) + 1)
    for shift in shifts:
        dealt = dict(zip(order, order[shift:] + order[:shift], strict=True))  # no image keeps its own
        scores = _cider(reference_words, [predicted_words[dealt[place]] for place in range(count)])
        totals = [total + score for total, score in zip(totals, scores, strict=True)]
    return {image: total / len(shifts) for image, total in zip(references, totals, strict=True)}


def rouge_l(references: Captions, predictions: Mapping[ImageId, str]) -> float:
    """The ``ROUGE_L`` of :func:`coco_scores` alone, which suits longer answers too."""
    return _mean(_rouge_l(*tokenized(references, predictions)))


def tokenized(
    references: Captions, predictions: Mapping[ImageId, str]
) -> tuple[list[list[list[str]]], list[list[str]]]:
    """Words of the references (image, caption, word) and of the predictions (image, word), in the references' order."""
    _refuse("without a prediction", [image for image in references if image not in predictions])
    _refuse("predicted but not among the references", [image for image in predictions if image not in references])
    _refuse("without a reference caption", [image for image, captions in references.items() if not captions])
    if not references:
        raise UserError("coco_scores got no images: there is nothing to score")
    words = iter(tokenize(caption for captions in references.values() for caption in captions))
    reference_words = [[next(words) for _ in captions] for captions in references.values()]
    return reference_words, tokenize(predictions[image] for image in references)


def _refuse(problem: str, images: list[ImageId]) -> None:
    if images:
        raise UserError(
            f"coco_scores: {len(images)} image(s) {problem}: {some(images)}; give both for the same image ids"
        )


def some(ids: Sequence[ImageId]) -> str:
    """The first of many ids, for a message of one line."""
    return ", ".join(map(str, ids[:SHOWN])) + (", ..." if len(ids) > SHOWN else "")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _ngrams(words: list[str]) -> list[NGrams]:
    """How often each n-gram occurs, for n = 1 ... 4."""
    words = " ".join(words).split()  # a token such as "22 3/4" holds a no-break space and counts as two words
    return [
        Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))
        for order in range(1, MAX_ORDER + 1)
    ]


def _bleu(references: list[list[list[str]]], predictions: list[list[str]]) -> list[float]:
    """BLEU of orders 1 ... 4 over the corpus (Papineni et al. 2002, sections 2.2 and 2.3).

    The effective reference length is the closest one; of two equally close, the shorter.
    """
    matched, proposed = [0] * MAX_ORDER, [0] * MAX_ORDER
    predicted_length = reference_length = 0
    for captions, prediction in zip(references, predictions, strict=True):
        predicted = _ngrams(prediction)
        counted = [_ngrams(caption) for caption in captions]
        length = predicted[0].total()
        predicted_length += length
        reference_length += min((counts[0].total() for counts in counted), key=lambda one: (abs(one - length), one))
        for order, ngrams in enumerate(predicted):
            most = Counter[tuple[str, ...]]()
            for counts in counted:
                most |= counts[order]
            matched[order] += (ngrams & most).total()
            proposed[order] += ngrams.total()

    # The two small numbers are COCO's guard against 0 / 0; scores without any match come out as about 0.
    ratio = (predicted_length + 1e-15) / (reference_length + 1e-9)
    brevity_penalty = min(1.0, math.exp(1 - 1 / ratio))
    scores, product = [], 1.0
    for order in range(MAX_ORDER):
        product *= (matched[order] + 1e-15) / (proposed[order] + 1e-9)
        scores.append(brevity_penalty * product ** (1 / (order + 1)))
    return scores


def _rouge_l(references: list[list[list[str]]], predictions: list[list[str]], beta: float = 1.2) -> list[float]:
    """ROUGE-L of each image: the F-measure of the longest common subsequence (Lin 2004, section 3.1).

    Precision and recall are each the best over the image's references. An empty caption counts as one empty word.
    """
    scores = []
    for captions, prediction in zip(references, predictions, strict=True):
        predicted = prediction or [""]
        common = [
            (_longest_common_subsequence(predicted, caption or [""]), len(caption or [""])) for caption in captions
        ]
        precision = max(length for length, _ in common) / len(predicted)
        recall = max(length / total for length, total in common)
        score = (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if precision and recall else 0.0
        scores.append(score)
    return scores


def _longest_common_subsequence(first: list[str], second: list[str]) -> int:
    lengths = [0] * (len(second) + 1)  # of the words of `first` read so far and each beginning of `second`
    for word in first:
        diagonal = 0
        for position, other in enumerate(second, start=1):
            above = lengths[position]
            lengths[position] = diagonal + 1 if word == other else max(above, lengths[position - 1])
            diagonal = above
    return lengths[-1]


def _cider(references: list[list[list[str]]], predictions: list[list[str]], sigma: float = 6.0) -> list[float]:
    """CIDEr of each image, in the CIDEr-D form that COCO reports as "CIDEr" (Vedantam et al. 2015, sections 3 and 6).

    Clipped cosine similarity of tf-idf vectors, a Gaussian penalty on the difference in length, the mean over n-gram
    orders and over references, times 10. Document frequencies come from the references: an image is a document.
    """
    counted = [[_ngrams(caption) for caption in captions] for captions in references]
    frequency = Counter(
        ngram for captions in counted for ngram in {one for counts in captions for order in counts for one in order}
    )
    log_images = math.log(len(references))

    def weigh(counts: list[NGrams]) -> list[dict[tuple[str, ...], float]]:
        return [
            {ngram: count * (log_images - math.log(max(1, frequency[ngram]))) for ngram, count in order.items()}
            for order in counts
        ]

    scores = []
    for captions, prediction in zip(counted, predictions, strict=True):
        counts = _ngrams(prediction)
        hypothesis, length = weigh(counts), counts[1].total()  # COCO takes the number of bigrams as the length
        similarity = 0.0
        for caption in captions:
            cosines = sum(map(_clipped_cosine, hypothesis, weigh(caption)))
            similarity += cosines * math.exp(-((length - caption[1].total()) ** 2) / (2 * sigma**2))
        scores.append(10 * similarity / MAX_ORDER / len(captions))
    return scores


def _clipped_cosine(hypothesis: dict[tuple[str, ...], float], reference: dict[tuple[str, ...], float]) -> float:
    norms = math.hypot(*hypothesis.values()) * math.hypot(*reference.values())
    shared = hypothesis.keys() & reference.keys()
    product = sum(min(hypothesis[ngram], reference[ngram]) * reference[ngram] for ngram in sorted(shared))
    return product / norms if norms else product
