"""`adapter=…` is one word for a method: it composes to that method, or is refused before any weight is read."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lav2.adapter import parameter_summary
from lav2.cli import CONF, register_resolvers
from lav2.config import problems
from lav2.training.run import bare_model

CHOICES = sorted(
    path.relative_to(CONF / "adapter").with_suffix("").as_posix() for path in CONF.glob("adapter/**/*.yaml")
)
CLASS_TOKENS = ["vision.tokens=class_tokens", "vision.layers=[4,8,12,16,20,24]"]


def config(*overrides):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def adapter(choice):
    """What conf/adapter/ says of one choice, with no experiment around it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(None, [f"+adapter={choice}"]).adapter


@pytest.mark.parametrize("word", ["v1", "v2", "v2_lora", "lavin"])
def test_a_word_means_the_same_in_an_experiment(word):
    """The experiment's own sizes would make it another method."""
    assert config("experiment=demo", f"adapter={word}").adapter == adapter(word)


def test_no_experiment_changes_the_adapter_that_it_chooses():
    files = list(CONF.glob("experiment/**/*.yaml"))
    assert len(files) > 20 and not [path for path in files if "adapter" in OmegaConf.load(path)]


def test_the_size_of_the_embedded_world_is_all_that_differs_there():
    """`world/…` is the method of that name; what it changes are layers, lengths and widths."""
    sizes = {"visual_layers", "prompt_layers", "visual_length", "prompt_length", "projector", "mixture"}
    for choice in CHOICES:
        folder, _, method = choice.rpartition("/")
        if folder:
            small, whole = adapter(choice), adapter(method)
            changed = {name for name in whole if small[name] != whole[name]}
            assert changed <= sizes and small.projector.kind == whole.projector.kind, choice


@pytest.mark.parametrize("word", ["v1", "v1_caption"])
def test_a_size_that_does_not_fit_is_refused_and_another_named(word):
    found = problems(config("experiment=demo", f"adapter={word}"))
    (line,) = [line for line in found if "prompt_layers" in line]
    assert line.startswith("adapter.prompt_layers is 30; this LLaMA has 6 layers: set it to 6 or fewer")
    assert "adapter=world/v2" in line


@pytest.mark.parametrize("method", ["v1", "v2", "v2_lora", "lavin"])
def test_the_embedded_worlds_methods_have_no_problems(method):
    assert problems(config(f"experiment=family/{method}")) == []


def test_lavin_without_its_image_tokens_is_refused_with_the_way_out():
    word = "experiment=v2_7b", "adapter=lavin"
    (line,) = problems(config(*word))
    assert "makes 256 image tokens" in line
    ways = line.partition(": set ")[2].partition(", or ")[0].split()
    assert ways == [*CLASS_TOKENS, "vision.projected=false"]
    cfg = config(*word, *ways)
    assert problems(cfg) == [] and parameter_summary(bare_model(cfg))["trainable"] == 3_781_296

    (line,) = problems(config(*word, *CLASS_TOKENS))
    assert line.startswith("vision.projected is true, but LaVIN reads class tokens as CLIP's blocks leave them")
    (line,) = problems(config(*word, *CLASS_TOKENS[:1], "vision.layers=[12,24]", "vision.projected=false"))
    assert line.startswith("adapter.visual_length is 6") and "makes 2 image tokens" in line


@pytest.mark.parametrize(("kind", "length"), [("queries", 6), ("linear_pooled", 1), ("linear_patches", 256)])
def test_image_tokens_are_as_many_as_the_projector_makes(kind, length):
    tokens = "experiment=v2_7b", "adapter.fusion=tokens", "adapter.visual_layers=0", f"adapter.projector.kind={kind}"
    assert problems(config(*tokens, f"adapter.visual_length={length}")) == []
    wrong = problems(config(*tokens, "adapter.visual_length=7"))
    assert [line for line in wrong if "set adapter.visual_length=" in line] == ([] if kind == "queries" else wrong)
