"""The evaluation of experts: its scores, on a model that reads its context perfectly, and its way into a report."""

import json
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lav2 import load
from lav2.cli import CONF, register_resolvers
from lav2.demo.data import read_scenes, write_world
from lav2.demo.signs import Signs
from lav2.demo.world import Item, Scene, Sign, render
from lav2.evaluation.predict import Predictor
from lav2.evaluation.run import evaluate
from lav2.experts import CaptionExpert, Experts
from tests.experts.conftest import Says, write_adapter


@pytest.fixture(scope="module")
def heldout(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), 2, 50, 2, seed=0) / "heldout"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_adapter(folder / "adapter", seed=0)
    return folder


@pytest.fixture
def reader(run, tmp_path):
    """A model that says what its context tells of the sign, and nothing that it sees."""

    def answer(prompts, visual, *_, **__):
        texts = ("".join(segment.text for segment in prompt) for prompt in prompts)
        found = (re.search(r"Text on the sign: (\w+)", text) for text in texts)
        return [f"The sign says {match[1]}." if match else "There is a sign." for match in found]

    assistant = load(run, device="cpu")
    assistant.answer = answer
    return Predictor(lambda: assistant, "reader", tmp_path)


class Knows:
    """An expert that knows the signs."""

    name = "Text on the sign"

    def __init__(self, folder):
        self.scenes = read_scenes(folder)

    def __call__(self, image):
        return self.scenes[Path(image.filename).name].sign.text


def test_a_model_that_reads_its_context(heldout, reader):
    results = Signs(heldout, Experts([Knows(heldout)])).run(reader)
    scores = results.scores
    assert scores["questions"] == sum(scene.sign is not None for scene in read_scenes(heldout).values()) >= 5
    assert scores["told"] == scores["accuracy_text"] == scores["accuracy_both"] == scores["accuracy_text_number"] == 1
    assert scores["accuracy_image"] == scores["accuracy_other"] == 0 and scores["other_read"] == 1
    by_way = {way: [p for p in results.predictions if p.condition == way] for way in ("text", "both", "image", "other")}
    assert all(p.context in p.references[0].replace("The sign says", "Text on the sign:") for p in by_way["text"])
    assert not any(p.context for p in by_way["image"])
    assert all(a.context != b.context for a, b in zip(by_way["text"], by_way["other"], strict=True))


def test_an_expert_that_reads_wrong(heldout, reader):
    scores = Signs(heldout, Experts([Says("NOTHING", "Text on the sign")]), question_count=4).run(reader).scores
    assert scores["told"] == scores["accuracy_text"] == 0 and scores["questions"] == 4


def test_from_the_command_line_to_the_report(heldout, run):
    """With the true signs in a file of ready answers, and the model's own captions."""
    answers = run / "answers.jsonl"
    signs = {name: scene.sign.text for name, scene in read_scenes(heldout).items() if scene.sign}
    answers.write_text("".join(json.dumps({"image": name, "text": text}) + "\n" for name, text in signs.items()))
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "evaluate",
            [
                "eval=experts",
                "experts=[answers,caption]",
                f"run={run}",
                f"eval.folder={heldout}",
                "eval.question_count=3",
                f"experts.answers.file={answers}",
                "experts.caption.max_new_tokens=5",
                f"experts.caption.runs={run}",
            ],
        )
    scores = evaluate(cfg)
    folder = run / "evaluation" / "experts"
    assert scores["told"] == 1 and json.loads((folder / "scores.json").read_text()) == scores
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert all(line["context"].startswith(f"notes: {signs[line['id']]}\ncaption: ") for line in lines[:6])
    assert "data:image" in (folder / "report.html").read_text()
    own = CaptionExpert(load(run, device="cpu"), max_new_tokens=5)  # there is no run of V1's captioner
    assert json.loads((folder / "settings.json").read_text())["fingerprints"] == {"caption": own.fingerprint}


def test_rapidocr_reads_the_worlds_signs_and_no_shapes():
    """With the settings of conf/experts/signs.yaml; its 61 signs of the demo's held-out scenes were all read."""
    for package in ("rapidocr", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs {package} (tests/requirements.txt)")
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        ocr = instantiate(compose("evaluate", ["run=x", "experts=[signs]"]).experts.signs)
    cross, star = Item("cross", "red", "large", 0, 0), Item("star", "blue", "large", 1, 2)
    for text in ("47", "HOTEL"):  # of those that shapes stood in the way of, read without the settings
        assert ocr(render(Scene((cross, star), Sign(text, 2, 1)))) == text
    assert ocr(render(Scene((cross, star)))) == ""
