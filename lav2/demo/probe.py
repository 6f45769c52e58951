"""What the tiny vision encoder's tokens tell: linear probes on scenes it was not trained on."""

import torch
from rich.progress import track
from torch import Tensor
from torch.nn.functional import one_hot

from lav2.demo.world import COLORS, GRID, RELATIONS, SHAPES, SIZES, Item, Scene, relation, render
from lav2.vision import VisionEncoder

PATCHES = 6  # of the tiny encoder along each side of a picture: two for each cell of the grid
ALONE = -1  # the relation of an item without another


def probe(encoder: VisionEncoder, fit: list[Scene], test: list[Scene]) -> dict[str, float]:
    """Accuracies on ``test`` of linear classifiers fitted on ``fit``, with an encoder that gives the class token too.

    ``patch_…``: an item's color, shape, size, and where it lies from the other item, each from one patch of its cell.
    ``class_…``: the same from the class token, for an item named by its shape.
    """
    fit_features, fit_labels = _read(encoder, fit)
    test_features, test_labels = _read(encoder, test)
    accuracies = {}
    for source in ("patch", "class"):
        for attribute in ("color", "shape", "size", "relation"):
            if (source, attribute) == ("class", "shape"):
                continue
            known, asked = fit_labels[attribute] != ALONE, test_labels[attribute] != ALONE
            weights = ridge(fit_features[source][known], one_hot(fit_labels[attribute][known]).float())
            guesses = (_with_constant(test_features[source][asked]) @ weights).argmax(1)
            accuracy = (guesses == test_labels[attribute][asked]).float().mean()
            accuracies[f"{source}_{attribute}"] = round(accuracy.item(), 4)
    return accuracies


def encode_scenes(encoder: VisionEncoder, scenes: list[Scene], batch_size: int = 100) -> Tensor:
    """The tokens of rendered scenes: (scenes, tokens, width)."""
    batches = [scenes[start : start + batch_size] for start in range(0, len(scenes), batch_size)]
    return torch.cat(
        [
            encoder(torch.stack([encoder.preprocess(render(scene)) for scene in batch]))
            for batch in track(batches, "encoding scenes", transient=True)
        ]
    )


def ridge(features: Tensor, targets: Tensor, penalty: float = 1e-4) -> Tensor:
    """Ridge regression with a constant: (samples, width), (samples, outputs) → weights (width + 1, outputs)."""
    features = _with_constant(features)
    gram = features.T @ features
    gram += penalty * gram.diagonal().mean() * torch.eye(len(gram))
    return torch.linalg.solve(gram, features.T @ targets)


def center_patch(item: Item) -> int:
    """The index, in reading order, of the patch right below the middle of an item's cell."""
    row, column = (int((cell + 0.5) * PATCHES / GRID) for cell in (item.row, item.column))
    return row * PATCHES + column


def _with_constant(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones(len(features), 1)], dim=1)


def _read(encoder: VisionEncoder, scenes: list[Scene]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """For every item of the scenes the features by source, and the labels by attribute."""
    tokens = encode_scenes(encoder, scenes)
    pairs = [(index, item) for index, scene in enumerate(scenes) for item in scene.items]
    rows, items = [index for index, _ in pairs], [item for _, item in pairs]
    labels = {
        "color": [COLORS.index(item.color) for item in items],
        "shape": [SHAPES.index(item.shape) for item in items],
        "size": [tuple(SIZES).index(item.size) for item in items],
        "relation": [
            next((RELATIONS.index(relation(item, other)) for other in scenes[row].items if other != item), ALONE)
            for row, item in pairs
        ],
    }
    labels = {attribute: torch.tensor(values) for attribute, values in labels.items()}
    # A class token is written into the slot of the shape in question: one linear classifier for each shape
    by_shape = one_hot(labels["shape"], len(SHAPES)).float()
    features = {
        "patch": tokens[rows, [1 + center_patch(item) for item in items]],
        "class": (by_shape[:, :, None] * tokens[rows, :1]).flatten(1),
    }
    return features, labels
