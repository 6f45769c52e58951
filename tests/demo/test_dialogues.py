"""Conversations about texts on the embedded world, and a model that needs the turns before to answer."""

import random
import re

import pytest
from hydra import compose, initialize_config_dir

from lav2.chat import Conversation, Exchange
from lav2.cli import CONF, register_resolvers
from lav2.config import build_data, problems
from lav2.data.conversations import read_sharegpt
from lav2.data.problems import Problems
from lav2.demo.dialogues import dialogues, follow_up, interview, write_dialogues
from lav2.demo.language import parse
from lav2.demo.scoring import normalised
from lav2.demo.world import COLORS, SHAPES, sample_scenes
from lav2.inference import load
from lav2.training.run import train

SCENES = sample_scenes(60, seed=3)


def config(*overrides):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["experiment=demo_chat", *overrides])


def test_a_follow_up_needs_the_turns_before():
    """Its question names neither shape nor color; its answer is what is so in the scene."""
    rng = random.Random(0)
    for scene in SCENES:
        first, *later = follow_up(scene, rng)
        [shape] = [name for name in SHAPES if re.search(rf"Yes, there is an? {name}\.", first.response)]
        [item] = [item for item in scene.items if item.shape == shape]
        assert parse(first.instruction)[0] == {(item.color, item.shape) for item in scene.items} and later
        for turn in later:
            assert not set(re.findall(r"\w+", turn.instruction)) & {*SHAPES, *COLORS}
            assert turn.response in (f"The {shape} is {item.color}.", f"The {shape} is {item.size}.")


def test_conversations_are_read_as_any_others(tmp_path):
    told = dialogues(SCENES, 40, seed=1)
    assert told == dialogues(SCENES, 40, seed=1) != dialogues(SCENES, 40, seed=2)
    write_dialogues(tmp_path / "dialogues.json", told)
    found = Problems("instructions", "raise", 0.0)
    read = list(read_sharegpt(tmp_path / "dialogues.json", found))
    assert [list(example.turns) for example in read] == told and not found.warnings
    assert {2, 3} <= {len(turns) for turns in told}
    assert [path.name for path in tmp_path.iterdir()] == ["dialogues.json"]
    assert all(turn.response for turn in interview(SCENES[0], random.Random(0)))


def test_the_experiment_mixes_conversations_with_instructions(tmp_path):
    cfg = config(f"data.folder={tmp_path / 'world'}", "data.training=12", "data.held_out=2", "data.dialogue_count=9")
    assert problems(cfg) == []
    data = build_data(cfg)
    data.prepare_data()
    cfg.data.dialogue_count = 5
    build_data(cfg).prepare_data()  # another run's on the same world leaves the first run's as they are
    for count in (9, 5):
        path = tmp_path / "world" / "train" / f"dialogues_{count}.json"
        assert len(list(read_sharegpt(path, Problems("instructions", "raise", 0.0)))) == count
    assert [type(entry) for entry in data.instructions] == [str, dict]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """V2 on follow-ups alone, without images: a minute."""
    folder = tmp_path_factory.mktemp("dialogues")
    rng = random.Random(0)
    held_out = sample_scenes(100, seed=1)
    scenes = sample_scenes(3000, seed=0, exclude=frozenset(held_out))
    write_dialogues(folder / "told.json", [follow_up(rng.choice(scenes), rng) for _ in range(5000)])
    files = f"data.instructions=[{{format: sharegpt, path: {folder / 'told.json'}}}]"
    small = ["data.template=short", "data.num_workers=0", "data.batch_size.instruction=16", "trainer.max_steps=300"]
    cfg = config("data=files", "tasks=[instruction]", files, "data.max_length.instruction=160", *small)
    train(cfg, folder / "run")
    return load(folder / "run"), [follow_up(scene, rng) for scene in held_out]


@pytest.mark.slow
def test_turns_before_reach_the_model(trained):
    """Follow-ups about held-out scenes are answered right with their own conversation, hardly ever without it or after
    another's."""
    assistant, told = trained
    others = told[1:] + told[:1]

    def share_right(before):
        right = 0
        for turns, earlier in zip(told, before, strict=True):
            conversation = Conversation(assistant)
            conversation.exchanges = [Exchange(turn.instruction, turn.response) for turn in earlier]
            answer = "".join(conversation.ask(turns[-1].instruction, max_new_tokens=20))
            right += normalised(answer) == normalised(turns[-1].response)
        return right / len(told)

    own, none = share_right([turns[:-1] for turns in told]), share_right([[]] * len(told))
    other = share_right([turns[:-1] for turns in others])
    print(f"own {own:.2f}, none {none:.2f}, another's {other:.2f}")
    assert own > 0.5 and none < 0.15 and other < 0.15
