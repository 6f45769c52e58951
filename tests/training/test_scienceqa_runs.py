"""The papers' ScienceQA experiments from a folder of questions to the table, with the embedded models in place of 7B's.

What the experiments say of prompts, responses, vision and adapter stays; sizes and the number of steps are small.
"""

import json

import pytest
import torch
from PIL import Image, ImageDraw

from lav2.adapter import owner
from lav2.evaluation.run import evaluate
from lav2.evaluation.scienceqa import COLUMNS, PUBLISHED
from lav2.training.module import JointModule
from tests.evaluation.conftest import composed
from tests.training.test_joint import PLAIN, snapshots

COLORS = ["red", "green", "blue"]
TINY = (
    "llama=tiny",
    "vision.name=lav2-tiny",
    "vision.weights=${embedded:vision.safetensors}",
    "vision.layers=[1,2,3,4,5,6]",
    "data.batch_size.instruction=8",  # with pictures and without, in one batch
    "data.max_length.instruction=200",
    "data.num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    *PLAIN,
    "trainer.max_steps=3",
)
EXPERIMENTS = {
    "v1_scienceqa": ("LLaMA-Adapter", 85.19, ["adapter.prompt_layers=6"]),
    "lavin_scienceqa_7b": (
        "LaVIN-7B Vicuna",
        89.41,
        ["adapter.mixture.vision_blocks=6", "adapter.mixture.vision_width=96"],
    ),
}

ENDINGS = {
    "v1_scienceqa": ("Answer:", "The answer is {letter}."),
    "lavin_scienceqa_7b": (
        "Response:",
        "The answer is {letter}. BECAUSE: A circle is round. It is {color}.",
    ),
}


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Eight to train on and six to be tested with, in the published format; every other one about a picture."""
    folder, problems = tmp_path_factory.mktemp("scienceqa"), {}
    for number in range(14):
        id, split, color = str(number + 1), "train" if number < 8 else "test", COLORS[number % 3]
        problems[id] = {
            "question": "Which color is the circle?" if number % 2 else f"Which one is {color}?",
            "choices": COLORS,
            "answer": number % 3,
            "hint": "Look." if number % 4 == 0 else "",
            "image": "image.png" if number % 2 else None,
            "grade": f"grade{number % 12 + 1}",
            "subject": ["natural science", "social science", "language science"][number % 3],
            "lecture": "A circle is round.",
            "solution": f"It is {color}.",
            "split": split,
        }
        if number % 2:
            picture = Image.new("RGB", (60, 40), "white")
            ImageDraw.Draw(picture).ellipse((20, 10, 40, 30), fill=color)
            path = folder / "images" / split / id / "image.png"
            path.parent.mkdir(parents=True)
            picture.save(path)
    (folder / "problems.json").write_text(json.dumps(problems))
    splits = {split: [id for id in problems if problems[id]["split"] == split] for split in ("train", "test")}
    (folder / "pid_splits.json").write_text(json.dumps(splits))
    return folder


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_from_questions_to_the_table(run, questions, tmp_path, monkeypatch, capsys, experiment):
    published, average, sizes = EXPERIMENTS[experiment]
    taken, used = snapshots(monkeypatch), []
    monkeypatch.setattr(JointModule, "on_fit_end", lambda self: used.append(self.trainer.datamodule), raising=False)
    places = (f"paths.scienceqa={questions}", f"data.cache_dir={tmp_path / 'features'}")
    folder = run("run", *TINY, *sizes, *places, experiment=experiment)

    # the paper's prompts and responses were read, half of them with a picture
    data, samples = used[0], used[0].training["instruction"]
    texts = [data.tokenizer.decode(samples[row].tokens[samples[row].tokens >= 0].tolist()) for row in range(8)]
    prompt, response = ENDINGS[experiment]
    for number, text in enumerate(texts):
        color = COLORS[number % 3]
        assert f"Options: (A) red (B) green (C) blue\n{prompt}" in text
        assert text.endswith(response.format(letter="ABC"[number % 3], color=color)), text
    assert [samples[row].features is not None for row in range(8)] == [False, True] * 4

    # every parameter was trained on them, and no frozen one
    for name in taken[0]:
        assert torch.equal(taken[0][name], taken[-1][name]) == (owner(name) == "frozen"), name

    # and the evaluation sets what became of it beside what the paper says
    scores = evaluate(composed(f"run={folder}", "eval=scienceqa", f"paths.scienceqa={questions}"))
    assert (scores["split"], scores["questions"], scores["skipped"]) == ("test", 6, 0)
    table = capsys.readouterr().out.splitlines()
    for row, values in (("this run ", [scores[name] for name in COLUMNS]), (f"{published} ", PUBLISHED[published])):
        [line] = [line for line in table if line.strip().startswith(row)]
        assert line.split()[-len(COLUMNS) :] == [f"{value:.2f}" for value in values]
    assert f"{average:.2f}" == line.split()[-1]
