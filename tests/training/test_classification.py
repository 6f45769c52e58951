"""A user's own pictures and texts: torchvision's folders, timm's ViT, transformers' tokenizer, Lightning's Trainer."""

import pytest
import timm
import torch
from lightning import Trainer
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from lav2.adapter.classifier import ZeroInitClassifier
from lav2.training.classification import ClassificationModule, tokenized

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
}


@pytest.fixture
def trained(tmp_path):
    """(a classifier of red and blue pictures in a folder, on timm's ViT; its data; the trainer; the module)."""
    for name, color in (("blue", (20, 20, 200)), ("red", (200, 20, 20))):
        (tmp_path / name).mkdir()
        for number in range(8):
            Image.new("RGB", (40, 40), tuple(c + number for c in color)).save(tmp_path / name / f"{number}.png")
    torch.manual_seed(0)
    backbone = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=3, num_classes=0)
    transform = timm.data.create_transform(input_size=(3, 32, 32))
    data = ImageFolder(tmp_path, transform)
    model = ZeroInitClassifier(backbone, len(data.classes), prompt_length=4)
    module = ClassificationModule(model, learning_rate=0.05)
    trainer = Trainer(max_epochs=6, **QUIET)
    trainer.fit(module, DataLoader(data, 8, shuffle=True), DataLoader(data, 8))
    return model, data, trainer, module


def test_pictures_in_folders_are_learnt(trained):
    _, data, trainer, module = trained
    assert trainer.logged_metrics["accuracy"] == 1
    (found,) = trainer.test(module, DataLoader(data, 3), verbose=False)
    assert found["accuracy"] == 1, "whatever the batches"


def test_a_checkpoint_leaves_the_backbone_out_and_goes_on(trained, tmp_path):
    model, data, trainer, module = trained
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert set(state) == {f"model.{name}" for name in model.trained()}
    fresh = ZeroInitClassifier(model.model.backbone, 2, prompt_length=4)
    images = torch.stack([picture for picture, _ in data])
    assert not torch.equal(fresh(images), model.eval()(images))
    again = Trainer(max_epochs=6, **QUIET)  # which the checkpoint has had already
    again.fit(
        ClassificationModule(fresh, 0.05), DataLoader(data, 8), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert torch.equal(fresh.eval()(images), model(images))


def test_texts_are_padded_together():
    class Tokenizer:
        def __call__(self, texts, padding, truncation, return_tensors):
            assert padding and truncation and return_tensors == "pt"
            return {"input_ids": torch.tensor([[len(text)] for text in texts])}

    inputs, labels = tokenized(Tokenizer())([("a", 1), ("bcd", 0)])
    assert inputs["input_ids"].tolist() == [[1], [3]] and labels.tolist() == [1, 0]
