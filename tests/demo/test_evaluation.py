"""Invariant 10, end to end: a short training on the embedded world sees, and with shuffled images does not."""

import json

import pytest
from hydra import compose, initialize_config_dir

from lav2.cli import CONF, register_resolvers
from lav2.demo.data import write_world
from lav2.demo.scoring import Question, ask, caption_scores, shuffled
from lav2.demo.world import Item, Scene, sample_scenes
from lav2.errors import UserError
from lav2.evaluation.run import evaluate
from lav2.training.run import train

SCENE = Scene((Item("circle", "red", "small", 0, 0), Item("star", "blue", "large", 2, 0)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(scores, run folder) after a fraction of the demo's training."""
    folder = tmp_path_factory.mktemp("demo")
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        training = compose(
            "train",
            [
                "experiment=demo",
                f"data.folder={folder / 'world'}",
                f"data.cache_dir={folder / 'features'}",
                "data.training=800",
                "data.held_out=60",
                "data.instruction_count=1000",
                "trainer.max_steps=300",
                "trainer.limit_val_batches=0",
            ],
        )
        evaluation = compose(
            "evaluate",
            [
                "eval=demo",
                f"run={folder / 'run'}",
                f"eval.folder={folder / 'world' / 'heldout'}",
                "eval.question_count=12",
            ],
        )
    train(training, folder / "run")
    return evaluate(evaluation), folder / "run"


def test_the_visual_prompts_are_read(trained):
    scores, _ = trained
    assert scores["color_shape_f1"] > scores["color_shape_f1_shuffled"] + 0.08, scores


def test_what_the_evaluation_leaves(trained):
    scores, run = trained
    folder = run / "evaluation" / "demo"
    assert json.loads((folder / "scores.json").read_text()) == scores
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert {line["condition"] for line in lines} == {"", "image", "caption", "blind"}
    assert all(line["context"] for line in lines if line["condition"] == "caption")
    assert all(len(line["references"]) == 5 for line in lines if not line["condition"])
    report = (folder / "report.html").read_text()
    assert "data:image" in report and "Who owns which parameters" in report and "training loss" in report


def test_caption_scores_count_what_is_there():
    scenes = {"a": SCENE, "b": SCENE}
    true = caption_scores({"a": "A red circle above a blue star.", "b": "A blue star and a red circle."}, scenes)
    assert true["color_shape_f1"] == 1 and true["relation_accuracy"] == 1 and true["relations_stated"] == 1
    wrong = caption_scores({"a": "A red circle below a blue star.", "b": "A red star."}, scenes)
    assert wrong["relation_accuracy"] == 0 and wrong["color_shape_f1"] == pytest.approx(2 * 2 / (3 + 4))


def test_shuffling_gives_every_scene_another_image():
    other = shuffled([str(i) for i in range(50)], seed=0)
    assert sorted(other) == sorted(other.values()) and all(name != image for name, image in other.items())


def test_questions_are_spread_over_kinds_and_judged_by_their_first_sentence():
    scenes = {str(i): scene for i, scene in enumerate(sample_scenes(60, seed=3))}
    asked = ask(scenes, 30, seed=0, kinds=("color", "shape"))
    assert [question.kind for question in asked].count("color") == 15 and len({q.name for q in asked}) == 30
    question = Question("a", "color", "What color is the circle?", "The circle is red.")
    assert question.is_right("The circle is red. The star is blue.") and not question.is_right("The circle is blue.")
    yes = Question("a", "there", "Is there a star?", "Yes, there is a star.")
    assert yes.is_right("Yes.") and not yes.is_right("No, there is no star.")


def test_an_interrupted_drawing_is_done_again(tmp_path, monkeypatch):
    """A world is there whole or not at all; a folder of something else is left alone."""
    from lav2.demo import data

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(data, "instructions", interrupted)
        write_world(tmp_path / "world", 8, 4, 10, seed=0)
    assert not (tmp_path / "world").exists()
    assert (write_world(tmp_path / "world", 8, 4, 10, seed=0) / "train" / "instructions.json").is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="something other"):
        write_world(tmp_path / "mine", 8, 4, 10, seed=0)
    assert (tmp_path / "mine" / "thesis.txt").is_file()


def test_of_two_that_draw_one_world_the_slower_reads_the_fasters(tmp_path, monkeypatch):
    from lav2.demo import data

    faster, instructions = write_world(tmp_path / "faster", 4, 4, 10, seed=0), data.instructions

    def overtaken(*arguments):
        faster.rename(tmp_path / "world")
        (tmp_path / "world" / "read.txt").touch()
        return instructions(*arguments)

    monkeypatch.setattr(data, "instructions", overtaken)
    write_world(tmp_path / "world", 4, 4, 10, seed=0)
    assert (tmp_path / "world" / "read.txt").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
