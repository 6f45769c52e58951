"""What the claims needed and any run may use: a start from an adapter, other gates, layers with both kinds of prompts,
questions about images to train on, and scores of language and of right and wrong experts."""

import json

import pytest
import torch

from lav2.adapter import adapt, save_adapter
from lav2.adapter.folder import read_weights
from lav2.data.conversations import read_llava
from lav2.data.problems import Problems
from lav2.demo.data import WorldData, read_scenes, write_questions, write_world
from lav2.demo.language import parse
from lav2.demo.reading import Language
from lav2.demo.told import Told
from lav2.errors import UserError
from tests.conftest import small_adapter


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("settings") / "world", 40, 30, 60, seed=3)


def test_random_gates_let_untrained_prompts_in(llama, tokens, features):
    models = []
    for init in ("zero", "random"):
        torch.manual_seed(0)
        models.append(adapt(llama, small_adapter(gate_init=init), feature_width=16).eval())
    zero, random_gates = models
    frozen = llama(tokens)
    assert torch.equal(zero(tokens, features), frozen)
    assert not torch.allclose(random_gates(tokens, features), frozen)
    started = dict(zero.adapter.named_parameters())
    gates = [value for name, value in random_gates.adapter.named_parameters() if "gate" in name]
    assert len(gates) == 5 and all((gate != 0).all() for gate in gates)
    others = {name: value for name, value in random_gates.adapter.named_parameters() if "gate" not in name}
    assert others and all(torch.equal(value, started[name]) for name, value in others.items())  # the gates alone differ
    with pytest.raises(UserError, match="adapter.gate_init is 'one'; choose one of zero, random"):
        adapt(llama, small_adapter(gate_init="one"), feature_width=16)


def test_layers_may_read_both_kinds_of_prompts_when_asked_to(llama, tokens, features):
    with pytest.raises(UserError, match="or set adapter.overlap=true"):
        adapt(llama, small_adapter(visual_layers=4), feature_width=16)
    with pytest.raises(UserError, match="adapter.visual_layers is 7; this LLaMA has 6 layers"):
        adapt(llama, small_adapter(visual_layers=7, overlap=True), feature_width=16)
    model = adapt(llama, small_adapter(visual_layers=6, prompt_layers=6, overlap=True), feature_width=16).eval()
    kinds = [len(list(hooks.prompts())) for hooks in model.bind(features)[:6]]
    assert kinds == [2] * 6 and torch.equal(model(tokens, features), llama(tokens))


def test_training_starts_from_an_adapter(adapted, llama, tmp_path):
    save_adapter(tmp_path, adapted)
    other = adapt(llama, small_adapter(), feature_width=16)
    read_weights(other, tmp_path / "adapter_model.safetensors")
    assert all(
        torch.equal(*pair) for pair in zip(other.state_dict().values(), adapted.state_dict().values(), strict=True)
    )
    with pytest.raises(UserError, match="prompts.prompt"):
        read_weights(
            adapt(llama, small_adapter(prompt_length=6), feature_width=16), tmp_path / "adapter_model.safetensors"
        )


def test_questions_about_training_pictures_are_true_and_always_the_same(world, tmp_path):
    train = world / "train"
    before = {path.name: path.read_bytes() for path in train.iterdir() if path.is_file()}
    path = train / "questions_50.json"
    write_questions(path, 50, seed=3)
    first = path.read_bytes()
    path.unlink()
    write_questions(path, 50, seed=3)
    assert path.read_bytes() == first
    assert all((train / name).read_bytes() == content for name, content in before.items())  # the rest stays as it was

    scenes = read_scenes(train)
    problems = Problems("instructions", "raise")
    examples = list(read_llava(path, train / "images", problems))
    assert len(examples) == 50 and not any("sign say" in example.instruction for example in examples)
    stated = 0
    for example in examples:
        truth = {(item.color, item.shape) for item in scenes[example.image.name].items}
        pairs = parse(example.response)[0]
        assert pairs <= truth, example
        stated += len(pairs)
    assert stated > 10


def test_a_world_has_no_such_questions_unless_asked(tmp_path):
    arguments = {"training": 8, "held_out": 4, "instruction_count": 10, "world_seed": 0}
    plain = WorldData(str(tmp_path / "world"), **arguments)
    plain.prepare_data()
    assert plain.has_images and len(plain.instructions) == 1
    assert not list((tmp_path / "world" / "train").glob("questions*"))
    asked = WorldData(str(tmp_path / "world"), **arguments, image_questions=5)
    asked.prepare_data()
    assert len(json.loads((tmp_path / "world" / "train" / "questions_5.json").read_text())) == 5


class Oracle:
    """A predictor that answers as ``knows`` says: (instruction, image, input) → answer."""

    model, caption_prompts = "oracle", ["short", "detailed"]

    def __init__(self, knows):
        self.knows = knows

    def generate(self, instructions, images=None, inputs=None, *, label="", **_):
        images, inputs = images or [None] * len(instructions), inputs or [""] * len(instructions)
        return [self.knows(*row) for row in zip(instructions, images, inputs, strict=True)]

    def values(self, keys, *_, **__):
        return [{"nats": 1.0, "tokens": 2, "truncated": 0} for _ in keys]


def test_language_is_scored_word_for_word(world):
    task = Language(world / "heldout", question_count=20, fact_count=10)
    asked = {(one.instruction, one.input): one.response for one in task.ask()}
    assert task.ask() == task.ask()
    scores = task.run(Oracle(lambda question, _, text: asked[question, text].upper().rstrip("."))).scores
    assert scores["exact_match"] == scores["facts"] == 1 and scores["loss"] == 0.5
    scores = task.run(Oracle(lambda question, _, text: asked[question, text] if not text else "I do not know.")).scores
    assert scores["exact_match"] == 0 and scores["facts"] == 1


def test_experts_right_and_wrong(world):
    """A model that believes every text: right texts help it, another picture's mislead it."""
    task, scenes = Told(world / "heldout", question_count=12), read_scenes(world / "heldout")

    def reads_signs(question, image, text):
        if text.startswith("Text on the sign: "):
            return f"The sign says {text.removeprefix('Text on the sign: ')}."
        return "A sign."

    scores = task.run(Oracle(reads_signs)).scores
    signs = {scene.sign.text for scene in scenes.values() if scene.sign}
    assert scores["sign_text"] == scores["sign_both"] == 1 and scores["sign_image"] == 0
    assert scores["sign_other"] == scores["sign_both_other"] < 1 or len(signs) == 1
    assert scores["sign_questions"] == sum(scene.sign is not None for scene in scenes.values())
    conditions = {one.condition for one in task.run(Oracle(reads_signs)).predictions}
    assert conditions == {
        f"{expert} {way}" for expert in ("caption", "sign") for way in ("image", "text", "both", "other", "both_other")
    }
