"""Every method of the family trains, resumes and answers; and a step of one task leaves the other group alone."""

import pytest
import torch
from PIL import Image

from lav2 import load
from lav2.adapter import owner
from lav2.errors import UserError
from lav2.training.module import JointModule
from lav2.training.run import train
from tests.training.test_joint import PLAIN, adapter, snapshots

FAMILY = ("family/v1", "family/v2_lora", "family/lavin")


@pytest.mark.parametrize("experiment", FAMILY)
def test_everything_that_trains_moves_and_nothing_else(run, monkeypatch, world, experiment):
    """Invariant 2, what stands behind a zero gate from the second step on; and what was trained can be asked."""
    taken = snapshots(monkeypatch)
    folder = run("run", *PLAIN, "trainer.max_steps=3", experiment=experiment)
    for name in taken[0]:
        moved = not torch.equal(taken[0][name], taken[-1][name])
        assert moved == (owner(name) != "frozen"), name
    model = load(folder)
    picture = next((world / "heldout" / "images").glob("*.png"))
    question = "What color is the circle?"
    together = model.generate([question, question, "What is red?"], [picture, None, picture], max_new_tokens=6)
    alone = [model.generate([question], [image], max_new_tokens=6)[0] for image in (picture, None)]
    assert together[:2] == alone


def test_v1s_language_model_trains_and_answers(run, monkeypatch):
    """Invariant 2 and 5 for V1 without eyes: gates move in step 1, prompts from step 2 on, and nothing else."""
    taken = snapshots(monkeypatch)
    v1 = ("adapter=v1", "adapter.visual_layers=0", "adapter.prompt_layers=6", "tasks=[instruction]")
    folder = run("run", *PLAIN, *v1)
    start, first, second = taken
    for name in start:
        moved = [not torch.equal(*pair) for pair in ((start[name], first[name]), (first[name], second[name]))]
        gate, prompt = name.endswith(".gate.weight"), name.endswith(".prompts.prompt")
        assert moved == [gate, gate or prompt], name
    model, questions = load(folder), ["What is red?", "What color is the circle of this picture?"]
    together = model.generate(questions, max_new_tokens=6)
    assert together == [model.generate([question], max_new_tokens=6)[0] for question in questions]
    with pytest.raises(UserError, match="cannot see"):
        model.generate(questions[:1], [Image.new("RGB", (9, 9))])


def test_a_resumed_run_of_lavin_draws_the_same_dropout(run, config, tmp_path, monkeypatch):
    """Invariant 8, for the one method that draws numbers as it trains."""
    whole = run("whole", experiment="family/lavin")
    step = JointModule.training_step

    def killed(self, batch, index):
        if self.global_step == 3:
            raise MemoryError("killed")
        return step(self, batch, index)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(JointModule, "training_step", killed)
        run("broken", experiment="family/lavin")
    broken = tmp_path / "broken"
    train(config(f"resume={broken}", experiment="family/lavin"), broken)
    assert all(torch.equal(value, adapter(broken)[name]) for name, value in adapter(whole).items())


def test_one_task_a_step_leaves_the_other_group_alone(run, monkeypatch):
    """Mode alternate: neither gradient, momentum nor decay moves the group whose turn it is not."""
    taken = snapshots(monkeypatch)
    run("run", "data.mode=alternate", "optim.caption.weight_decay=0.1", "optim.instruction.weight_decay=0.1")
    turns = []
    for before, after in zip(taken, taken[1:], strict=False):
        moved = {owner(name) for name in before if not torch.equal(before[name], after[name])}
        assert len(moved) == 1
        turns += moved
    assert set(turns) == {"caption", "instruction"} and turns[::2] == [turns[0]] * 3


def test_a_step_without_images_leaves_alone_what_sees(run, monkeypatch):
    """Mode alternate with shared parameters: a caption step moves all, one of text alone nothing by its momentum."""
    taken = snapshots(monkeypatch)
    run("run", "data.mode=alternate", "adapter.ownership=shared", "optim.caption.weight_decay=0.1")
    steps = []
    for before, after in zip(taken, taken[1:], strict=False):
        steps.append({owner(name) for name in before if not torch.equal(before[name], after[name])})
    text, both = {"instruction"}, {"caption", "instruction"}
    assert steps in ([text, both] * (len(steps) // 2), [both, text] * (len(steps) // 2)) and len(steps) >= 4
