"""Any captioner and detector of transformers: small ones with random weights, beside what transformers itself does."""

import sys

import pytest
import torch
from PIL import Image

from lav2.errors import UserError
from lav2.experts.boxes import describe_boxes
from lav2.experts.huggingface import TransformersCaption, TransformersDetection

transformers = pytest.importorskip("transformers", reason="needs transformers (tests/requirements.txt)")
WORDS = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", *(f"word{number}" for number in range(60))]
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
VIT |= {"image_size": 32, "patch_size": 16}
TEXT = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"intermediate_size": 32, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "initializer_range": 1.0}


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names)


def vit_gpt():
    decoder = transformers.BertConfig(**TEXT, is_decoder=True, add_cross_attention=True)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**VIT, initializer_range=1.0), decoder
    )
    config.decoder_start_token_id, config.pad_token_id = 2, 0
    model = transformers.VisionEncoderDecoderModel(config)
    model.generation_config.decoder_start_token_id, model.generation_config.pad_token_id = 2, 0
    return model, transformers.ViTImageProcessor(size={"height": 32, "width": 32})


def git():
    config = transformers.GitConfig(vision_config=VIT | {"initializer_range": 1.0}, **TEXT)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return transformers.GitForCausalLM(config), processor


def blip():
    text = TEXT | {"encoder_hidden_size": 16, "sep_token_id": 3}
    config = transformers.BlipConfig(text_config=text, vision_config=VIT | {"initializer_range": 1.0})
    return transformers.BlipForConditionalGeneration(config), transformers.BlipImageProcessor(
        size={"height": 32, "width": 32}
    )


def yolos():
    config = transformers.YolosConfig(
        **VIT | {"image_size": [32, 32]}, num_detection_tokens=12, num_labels=3, initializer_range=0.5,
        id2label={0: "person", 1: "car", 2: "dog"},
    )  # fmt: skip
    processor = transformers.YolosImageProcessor(size={"height": 32, "width": 32}, do_pad=False)
    return transformers.YolosForObjectDetection(config), processor


def detr():
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=backbone, backbone=None, d_model=16,
        num_queries=12, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, num_labels=3, init_std=0.5,
        id2label={0: "person", 1: "car", 2: "dog"},
    )  # fmt: skip
    processor = transformers.DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 64})
    return transformers.DetrForObjectDetection(config), processor


def written(folder, make, *others):
    """The folder of the model that ``make`` makes, as transformers saves it, and the model."""
    torch.manual_seed(0)
    model, processor = make()
    for part in (model, processor, *others):
        part.save_pretrained(folder)
    return model.eval(), processor


@pytest.mark.parametrize("make", [vit_gpt, git, blip])
def test_a_caption_is_what_the_model_finds_likeliest(make, tmp_path, picture):
    model, processor = written(tmp_path, make, tokenizer())
    expert = TransformersCaption(tmp_path, max_new_tokens=6, device="cpu")
    caption = expert(picture)
    assert caption.split() and set(caption.split()) <= set(WORDS)
    pixels = processor(picture, return_tensors="pt").pixel_values
    tokens = model.generate(pixel_values=pixels, max_new_tokens=6, do_sample=False)[0].tolist()
    words = [WORDS[token] for token in tokens if token > 3]
    assert caption.split() == words
    assert expert(picture.convert("RGBA")) == caption
    assert expert(Image.effect_noise((40, 40), 120)) != caption


SIDES = ("xmin", "ymin", "xmax", "ymax")


@pytest.mark.parametrize("make", [yolos, detr])
def test_objects_are_those_of_the_pipeline(make, tmp_path, picture):
    """transformers' own pipeline gives boxes in pixels of the picture."""
    written(tmp_path, make)
    pipeline = transformers.pipeline("object-detection", str(tmp_path), device="cpu")
    found = pipeline(picture, threshold=0.3)
    assert found
    boxes = [
        (one["label"], tuple(one["box"][side] / size for side, size in zip(SIDES, picture.size * 2, strict=True)))
        for one in found
    ]
    expert = TransformersDetection(tmp_path, min_score=0.3, device="cpu")
    assert expert(picture) == describe_boxes(boxes)
    none = TransformersDetection(tmp_path, min_score=1.0, device="cpu")
    assert none(picture) == "" and none.fingerprint != expert.fingerprint


def test_what_transformers_cannot_load_is_one_line(tmp_path):
    with pytest.raises(UserError, match="transformers cannot load") as caught:
        TransformersCaption(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[transformers\]"'):
        TransformersDetection(tmp_path)
