"""The evaluation of conversations, with a model that knows what it is told, and nothing else."""

import re

import pytest

from lav2.data.templates import Template
from lav2.demo.conversing import Dialogues
from lav2.demo.data import write_split
from lav2.demo.language import parse
from lav2.demo.world import sample_scenes
from lav2.errors import UserError
from lav2.evaluation.predict import Predictor


class Reader:
    """Answers what color "it" is, if the text tells what it is; of pictures it knows nothing."""

    template = Template("short")

    def __init__(self):
        self.read, self.seen = [], []

    def generate(self, instructions, images, inputs, **settings):
        return ["A caption."] * len(instructions)

    def encode_images(self, images):
        return iter(images)

    def answer(self, prompts, visual, batch_size, rows, **settings):
        texts = ["".join(segment.text for segment in prompt) for prompt in prompts]
        self.read += texts
        self.seen += visual
        return [self.say(text) for text in texts]

    def say(self, text):
        named = re.findall(r"Yes, there is an? (\w+)\.", text)
        colors = {shape: color for color, shape in parse(text)[0]}
        if not named or "What color is it?" not in text.rpartition("### Instruction:")[2]:
            return ""
        return f"The {named[-1]} is {colors[named[-1]]}."


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "heldout"
    write_split(folder, sample_scenes(30, seed=1), seed=1)
    return folder


def test_follow_ups_need_their_own_turns(world, tmp_path, monkeypatch):
    reader = Reader()
    predictor = Predictor(lambda: reader, {}, tmp_path, ["Describe the scene."])
    monkeypatch.setattr(Predictor, "_fits", lambda *_: True)
    results = Dialogues(world, follow_up_count=30, question_count=10).run(predictor)
    scores = results.scores
    about_color = [one for one in results.predictions if one.prompt == "What color is it?"]
    share = sum(one.condition == "own turns" for one in about_color) / 30
    assert scores["follow_up_accuracy"] == pytest.approx(share) and share > 0.5
    assert scores["follow_up_accuracy_alone"] == 0 and scores["follow_up_accuracy_other"] < 0.1
    assert scores["question_accuracy"] == scores["question_accuracy_after_caption"] == 0
    after = [text for text in reader.read if text.startswith("### Instruction:\nDescribe the scene.")]
    assert len(after) == 10 and all("A caption." in text for text in after)
    assert len([image for image in reader.seen if image is not None]) == 20

    reader.answer = None  # what was answered is kept
    assert Dialogues(world, 30, 10).run(predictor).scores == scores
    report = Dialogues(world, 30, 10).report(results, tmp_path)
    report.write(tmp_path / "report.html")
    assert "after its own caption" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_world_must_be_there(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        Dialogues(tmp_path / "nowhere")
