"""The authors' released adapters become ours and compute what theirs compute."""

import functools
import json
import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

from lav2 import load
from lav2.adapter import AdapterConfig, adapt, load_adapter, released
from lav2.adapter.folder import CONFIG
from lav2.adapter.released import convert, translate
from lav2.adapter.releases import ReleasedFile, describe
from lav2.errors import UserError
from lav2.llama import Llama, LlamaConfig, Tokenizer, load_llama, save_llama
from tests.adapter import authors
from tests.adapter.authors import SMALL, SMALL_VISION, TRUE, TRUE_VISION, Authors, fill

WEIGHTS = Path(released.__file__).parents[1] / "demo" / "weights"
TOKENIZER = WEIGHTS / "llama" / "tokenizer.model"
CLIP = released.VISION
V1 = SMALL | {"length": 5, "last": 2}
FULL = SMALL | SMALL_VISION

# name: (the file's names and shapes, what it declares, whether its gates pass tanh, how it is converted)
FILES = {
    "v1_scalar": (authors.language(**V1, per_head=False), None, False, {"prompt_length": 5}),
    "v1": (authors.language(**V1), None, True, {"prompt_length": 5}),
    "v1_inference": (authors.language(**V1), None, False, {"prompt_length": 5, "gate_activation": "none"}),
    "captioner": (authors.captioner(**FULL), None, True, {}),
    "BIAS": (authors.multimodal(**FULL), {"w_bias": True, "w_lora": False, "lora_rank": 16}, True, {}),
    "LORA-BIAS": (authors.multimodal(**FULL, rank=2), {"w_bias": True, "w_lora": True, "lora_rank": 2}, True, {}),
    "CAPTION": (authors.multimodal(**FULL, bias=False), {"w_bias": False, "w_lora": False}, True, {}),
    "chat": (authors.chat(**SMALL), {}, True, {}),
}


@pytest.fixture(autouse=True)
def embedded_encoder(monkeypatch) -> None:
    """Small adapters see through the embedded world's encoder in the place of CLIP ViT-L/14."""
    monkeypatch.setattr(released, "VISION", "lav2-tiny")


@pytest.fixture(scope="module")
def llama() -> Llama:
    torch.manual_seed(0)
    shape = LlamaConfig(Tokenizer(TOKENIZER).vocab_size, 32, 4, 4, 4, 48, max_length=128)
    return Llama(shape).reset_parameters(std=0.2).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def base(llama, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_llama(llama, TOKENIZER, folder, torch.float32)
    return folder


def write(path: Path, stored: dict, declared: dict | None) -> Path:
    """As the authors save: V1's tensors alone, later ones beside what they declare."""
    torch.save(stored if declared is None else {"model": stored, "config": declared}, path)
    return path


@pytest.mark.parametrize("kind", FILES)
def test_computes_what_the_authors_formulas_compute(kind, llama, base, tmp_path):
    shapes, declared, tanh, settings = FILES[kind]
    stored = fill(shapes)
    convert(write(tmp_path / "released.pth", stored, declared), tmp_path / "adapter", base, **settings)
    model = load_adapter(tmp_path / "adapter", llama)
    reference = Authors(stored, llama, settings.get("prompt_length", 3), tanh)
    tokens = [1, 5, 30, 7, 7, 12]
    with torch.no_grad():
        plain = llama(torch.tensor([tokens]))[0]
        text = reference.logits(tokens)
        assert (text - plain).abs().max() > 0.1
        assert torch.allclose(model(torch.tensor([tokens]))[0], text, atol=1e-4, rtol=1e-4)
        if model.config.sees:
            features = torch.randn(9, 96, generator=torch.Generator().manual_seed(8))
            seen = reference.logits(tokens, features)
            assert (seen - text).abs().max() > 0.1
            assert torch.allclose(model(torch.tensor([tokens]), features[None])[0], seen, atol=1e-4, rtol=1e-4)


def test_older_files_say_llma(llama, base, tmp_path):
    stored = fill(authors.multimodal(**FULL))
    older = {name.replace("llama.", "llma."): tensor for name, tensor in stored.items()}
    for name, tensors in (("new", stored), ("old", older)):
        convert(write(tmp_path / f"{name}.pth", tensors, {}), tmp_path / name, base)
    new, old = (load_adapter(tmp_path / name, llama).adapter.state_dict() for name in ("new", "old"))
    assert all(torch.equal(old[name], tensor) for name, tensor in new.items())


@pytest.mark.parametrize("kind", FILES)
def test_every_key_is_needed_and_no_other_is_taken(kind, llama):
    """Each kind of tensor in turn: gone, and of another shape; but gates of layers without prompts never counted."""
    shapes, declared, _, settings = FILES[kind]
    stored = fill(shapes)
    last = {".".join(part for part in name.split(".") if not part.isdigit()): name for name in shapes}

    @functools.cache
    def model(config, feature_width):
        with torch.device("meta"):  # its names and shapes alone matter
            return adapt(llama, config, feature_width)

    def translated(tensors):
        file = ReleasedFile("file.pth", tensors)
        release = describe(file, **settings)
        return translate(file, model(release.config, release.feature_width), release)

    for name in last.values():
        with pytest.raises(UserError, match=name.split(".")[-2]):
            translated({key: tensor for key, tensor in stored.items() if key != name})
        if name != "clip_proj.weight":  # whose columns alone say how wide the features are
            with pytest.raises(UserError, match=f"{name.removesuffix('gate')}.* has shape"):
                translated(stored | {name: torch.cat((stored[name], stored[name][..., :1]), -1)})
    with pytest.raises(UserError, match=r"1 unexpected \(first: layers.9.attention.wx.bias\)"):
        translated(stored | {"layers.9.attention.wx.bias": torch.zeros(3)})
    unused = {name: t for name, t in stored.items() if not name.endswith("layers.0.attention.gate")}
    assert translated(unused).keys() == translated(stored).keys()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda stored: stored["clip_proj.bias"].fill_(float("nan")), "not finite, in clip_proj.bias"),
        (lambda stored: stored.clear(), "holds nothing"),
        (lambda stored: [stored.pop(name) for name in list(stored) if "lora" in name], "w_lora=True but holds no such"),
        (lambda stored: stored.update(notes="trained"), "no dictionary of tensors"),
    ],
)
def test_damage_is_named(damage, message, base, tmp_path):
    stored = fill(authors.multimodal(**FULL, rank=2))
    damage(stored)
    with pytest.raises(UserError, match=message):
        convert(write(tmp_path / "r.pth", stored, {"w_bias": True, "w_lora": True}), tmp_path / "adapter", base)
    assert not (tmp_path / "adapter").exists()


class Planted:
    def __reduce__(self):
        return (print, ("executed",))


def test_what_is_no_released_file_is_refused(base, tmp_path, capsys):
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    (tmp_path / "planted.pth").write_bytes(pickle.dumps({"model": Planted()}, protocol=2))
    for name, message in (("page", "cannot read"), ("planted", "cannot read"), ("nowhere", "no released adapter at")):
        with pytest.raises(UserError, match=message):
            convert(tmp_path / f"{name}.pth", tmp_path / "adapter", base)
    assert "executed" not in capsys.readouterr().out


def test_another_base_is_refused(llama, base, tmp_path):
    file = write(tmp_path / "r.pth", fill(authors.multimodal(**FULL | {"size": 64})), {})
    with pytest.raises(UserError, match=r"has shape .*64.*, expected .*32"):
        convert(file, tmp_path / "adapter", base)
    file = write(tmp_path / "r.pth", fill(authors.language(**V1)), None)
    with pytest.raises(UserError, match="prompt_layers is 5; this LLaMA has 4 layers"):
        convert(file, tmp_path / "adapter", base, prompt_length=2)
    convert(file, tmp_path / "adapter", base, prompt_length=5)
    with pytest.raises(UserError, match="other base weights"):
        load_adapter(tmp_path / "adapter", Llama(llama.config).reset_parameters())


@pytest.mark.parametrize(
    ("shapes", "tensors", "released_count", "ours"),
    [
        # The gates of layers without prompts are in the files and were never used: ours leave them out.
        (authors.language(**TRUE | {"last": 30}, per_head=False), 33, 1_228_800 + 32, 1_228_800 + 30),
        (authors.language(**TRUE | {"last": 30}), 33, 1_228_800 + 32 * 32, 1_228_800 + 30 * 32),
        (
            authors.captioner(**TRUE | {"last": 30}, features=768, width=512, blocks=2),
            1 + 30 + 1 + 8 + 2 * 12,
            10_043_840,
            10_043_840,
        ),
        (authors.multimodal(**TRUE, **TRUE_VISION), 363, 63_095_552, 63_095_552 - 32),
        (authors.multimodal(**TRUE, **TRUE_VISION, rank=16), 843, 103_072_544, 103_072_544 - 32 - 1),
    ],
    ids=["v1_scalar", "v1", "captioner", "BIAS-7B", "LORA-BIAS-7B"],
)
def test_published_sizes(shapes, tensors, released_count, ours):
    with torch.device("meta"):
        file = ReleasedFile("file.pth", {name: torch.empty(shape) for name, shape in shapes.items()})
        assert len(file.tensors) == tensors and count(file.tensors) == released_count
        release = describe(file)
        llama = Llama(LlamaConfig(32000, 4096, 32, 32, 32, 11008))
        state = translate(file, adapt(llama, release.config, release.feature_width), release)
    assert count(state) == ours


def test_published_size_of_the_chat_model():
    with torch.device("meta"):
        shapes = authors.chat(8192, 80, 22016)
        file = ReleasedFile("file.pth", {name: torch.empty(shape) for name, shape in shapes.items()})
        release = describe(file)
        model = adapt(Llama(LlamaConfig(32000, 8192, 80, 64, 64, 22016)), release.config, None)
        assert count(translate(file, model, release)) == count(file.tensors) == 13_803_520


def count(tensors: dict) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def test_the_captioner_is_our_v1_caption_config():
    """What conf/adapter/v1_caption.yaml trains is what the authors released."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from lav2.cli import CONF, register_resolvers

    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values = compose("train", ["adapter=v1_caption"]).adapter
    shapes = authors.captioner(**TRUE | {"last": 30}, features=768, width=512, blocks=2)
    with torch.device("meta"):
        file = ReleasedFile("file.pth", {name: torch.empty(shape) for name, shape in shapes.items()})
    ours = AdapterConfig.from_dict(OmegaConf.to_container(values))
    assert describe(file).config.to_dict() == ours.to_dict()


def test_what_surrounds_the_adapters_is_stored(base, tmp_path):
    """Vision settings, template and caption prompts of each kind."""
    found = {}
    for kind in ("v1", "captioner", "BIAS", "chat"):
        shapes, declared, _, settings = FILES[kind]
        convert(write(tmp_path / "r.pth", fill(shapes), declared), tmp_path / kind, base, **settings)
        config = json.loads((tmp_path / kind / CONFIG).read_text())
        vision = config["vision"] or {}
        found[kind] = [config["template"], config["caption_prompts"], *map(vision.get, ("tokens", "channel_order"))]
    assert found == {
        "v1": ["alpaca", [], None, None],
        "captioner": ["plain", ["Generate caption of this image :"], "patches_and_class", "RGB"],
        "BIAS": ["alpaca", ["Generate caption of this image"], "patches_and_class", "BGR"],
        "chat": ["plain", [], None, None],
    }


def test_the_released_adapters_see_through_openais_clip():
    config = open_clip.get_model_config(CLIP)
    assert config["quick_gelu"] and config["embed_dim"] == TRUE_VISION["features"]
    vision = config["vision_cfg"]
    assert (vision["layers"], vision["width"], vision["patch_size"], vision["image_size"]) == (24, 1024, 14, 224)


def test_a_converted_adapter_sees_and_answers(base, tmp_path):
    """From the released file to words about a picture."""
    file = write(tmp_path / "r.pth", fill(authors.multimodal(**FULL)), {})
    convert(file, tmp_path / "checked", base, vision_weights=WEIGHTS / "vision.safetensors")
    convert(file, tmp_path / "later", base)
    picture = Image.new("RGB", (64, 64), (250, 30, 0))
    model = load(tmp_path / "checked", device="cpu")
    swapped = model.encoder.preprocess(picture)
    assert swapped[2].mean() > swapped[0].mean() and model.encoder.channel_order == "BGR"
    assert model.encoder.tokens == "patches_and_class"
    answers = model.generate(["What is this?"], images=[picture], max_new_tokens=6)
    with pytest.raises(UserError, match="vision_weights="):
        load(tmp_path / "later", device="cpu")
    again = load(tmp_path / "later", vision_weights=WEIGHTS / "vision.safetensors", device="cpu")
    assert again.generate(["What is this?"], images=[picture], max_new_tokens=6) == answers
    narrow = write(tmp_path / "r.pth", fill(authors.multimodal(**FULL | {"features": 32})), {})
    with pytest.raises(UserError, match="clip_proj.weight in .* reads features of width 32"):
        convert(narrow, tmp_path / "narrow", base)


def test_the_base_is_known_in_every_dtype(base, tmp_path):
    """Conversion reads it in bf16; people load it as they like."""
    convert(write(tmp_path / "r.pth", fill(authors.chat(**SMALL)), {}), tmp_path / "adapter", base)
    for dtype in (torch.float32, torch.bfloat16):
        load_adapter(tmp_path / "adapter", load_llama(base, dtype))
