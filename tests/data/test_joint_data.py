import json
import shutil

import lightning
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from lav2.data import IGNORE, CaptionSource
from lav2.data.tokens import Sample
from lav2.errors import UserError
from lav2.llama.tokenizer import Tokenizer
from lav2.training.data import JointData, shuffled_batches

SCIENCE = {"format": "scienceqa", "folder": "f", "split": "train"}


class Encoder(torch.nn.Module):
    """One token of width 3: the mean colour."""

    fingerprint, num_tokens, width = "mean colour", 1, 3

    def preprocess(self, image):
        return torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1).float()

    def forward(self, images):
        return images.mean((2, 3)).unsqueeze(1)


class Recorder(lightning.LightningModule):
    """Trains one number and writes down what every step saw."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated, self.stop_after = [], [], stop_after

    def training_step(self, batch, batch_index):
        if self.stop_after is not None and len(self.seen) == self.stop_after:
            raise KeyboardInterrupt  # Lightning ends the process: the run is killed
        self.seen.append({task: content["tokens"].tolist() for task, content in batch.items()})
        return self.weight * sum(content["lengths"].sum() for content in batch.values())

    def validation_step(self, batch, batch_index, dataloader_idx=0):
        self.validated.append((dataloader_idx, batch["tokens"].tolist()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder, **options):
    defaults = {"max_epochs": 3, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults |= {"accelerator": "cpu", "enable_checkpointing": False, "default_root_dir": folder}
    return lightning.Trainer(**defaults | options)


@pytest.fixture
def data(world, tokenizer):
    """Builds JointData on the small world; options override its arguments."""

    def build(**options) -> JointData:
        data = JointData(**world | options)
        data.prepare(tokenizer, Encoder())
        return data

    return build


def fit(data, folder, **options):
    recorder = Recorder()
    trainer(folder, **options).fit(recorder, data)
    return recorder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_at_any_step_and_resumed_sees_what_an_uninterrupted_run_sees(data, tmp_path, num_workers):
    whole = fit(data(num_workers=num_workers), tmp_path, limit_val_batches=0).seen
    steps = len(whole) // 3
    assert steps == 15  # of captions, in an epoch; the instructions wrap round after 10 steps
    positions = (1, 9, 10, 11, 15, 16, 29, 31) if num_workers == 0 else (11, 31)
    for position in positions:
        folder = tmp_path / f"{num_workers} {position}"
        saving = lightning.pytorch.callbacks.ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1)
        first = Recorder(stop_after=position)
        with pytest.raises(SystemExit):
            trainer(tmp_path, limit_val_batches=0, enable_checkpointing=True, callbacks=[saving]).fit(
                first, data(num_workers=num_workers)
            )
        (checkpoint,) = folder.glob(f"*step={position}.ckpt")
        second = Recorder()
        trainer(tmp_path, limit_val_batches=0).fit(
            second, data(num_workers=num_workers), ckpt_path=checkpoint, weights_only=True
        )
        assert first.seen + second.seen == whole, position


@pytest.mark.parametrize(
    ("mode", "ratio", "steps"), [("alternate", None, 30), ("ratio", {"caption": 2, "instruction": 1}, 30)]
)
def test_one_task_a_step_killed_and_resumed(data, tmp_path, mode, ratio, steps):
    options = {"mode": mode} | ({"ratio": ratio} if ratio else {})
    whole = fit(data(**options), tmp_path, limit_val_batches=0, max_epochs=2).seen
    assert len(whole) == 2 * steps and all(len(step) == 1 for step in whole)  # of 15 and 10 batches
    assert [*whole[0], *whole[1], *whole[2]] == (["caption", "instruction", "caption"])
    saving = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path / "saved", every_n_train_steps=1, save_top_k=-1)
    first, second = Recorder(stop_after=steps + 5), Recorder()
    with pytest.raises(SystemExit):
        trainer(tmp_path, limit_val_batches=0, max_epochs=2, enable_checkpointing=True, callbacks=[saving]).fit(
            first, data(**options)
        )
    (checkpoint,) = (tmp_path / "saved").glob(f"*step={steps + 5}.ckpt")
    trainer(tmp_path, limit_val_batches=0, max_epochs=2).fit(
        second, data(**options), ckpt_path=checkpoint, weights_only=True
    )
    assert first.seen + second.seen == whole


def test_instructions_come_in_the_same_order_with_and_without_captions(data, tmp_path):
    joint = fit(data(), tmp_path).seen
    alone = fit(data(tasks=["instruction"]), tmp_path, max_epochs=5).seen
    assert [step["instruction"] for step in joint] == [step["instruction"] for step in alone][: len(joint)]
    assert set(joint[0]) == {"caption", "instruction"} and set(alone[0]) == {"instruction"}


def test_limited_epochs_lose_and_repeat_nothing(data, tmp_path):
    whole = fit(data(), tmp_path, limit_val_batches=0).seen
    parts = fit(data(), tmp_path, limit_val_batches=0, limit_train_batches=7, max_epochs=6).seen
    assert len(parts) == 42 and parts == whole[:42]
    shortest = fit(data(mode="min_size"), tmp_path, limit_val_batches=0, max_epochs=4).seen
    assert len(shortest) == 40 and shortest == whole[:40]


def test_two_processes_share_the_batches_of_one(data, tmp_path):
    class Writer(Recorder):
        def on_train_end(self):
            (tmp_path / f"{self.global_rank}.json").write_text(json.dumps(self.seen))

    halves = data(batch_size={"caption": 2, "instruction": 2}, validation=0)
    trainer(tmp_path, devices=2, strategy="ddp_fork", max_epochs=1).fit(Writer(), halves)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    one = fit(data(validation=0), tmp_path, max_epochs=1).seen[: len(first)]
    assert len(first) == len(second) == 60 // 4

    def rows(*batches):
        return sorted([token for token in row if token] for batch in batches for row in batch)  # without padding

    for step, parts in enumerate(zip(first, second, strict=True)):
        for task in ("caption", "instruction"):
            # the short last batch of one process is left over for two: the epochs of the instructions part there
            if task == "caption" or step < 41 // 4:
                assert rows(*(part[task] for part in parts)) == rows(one[step][task])


def test_no_leakage_between_training_and_validation_and_none_lost(data, tmp_path):
    built = data(validation=0.3)
    built.setup()
    counts = {"caption": 60, "instruction": 41}
    for task, count in counts.items():
        training, held_out = built.training[task], built.held_out[task]
        assert len(training) + len(held_out) == count and len(held_out) > 0
    images = [set(part["caption"].images) for part in (built.training, built.held_out)]
    assert not images[0] & images[1] and len(images[0] | images[1]) == 20
    seen = fit(data(validation=0.3), tmp_path, max_epochs=1)
    trained = {str(row) for step in seen.seen for row in step["instruction"]}
    assert not trained & {str(row) for task, batch in seen.validated if task == 1 for row in batch}
    assert {task for task, _ in seen.validated} == {0, 1}


def test_without_validation_nothing_is_held_out(data, tmp_path):
    built = data(validation=0)
    recorder = fit(built, tmp_path, max_epochs=1)
    assert not recorder.validated and len(built.training["caption"]) == 60


def test_batches_carry_the_features_of_their_images(data):
    built = data()
    built.setup()
    samples = built.training["caption"]
    for index in range(len(samples)):
        assert samples[index].features[0, 0] == int(samples.images[index].stem) * 10
    assert "features" not in next(iter(built.val_dataloader()["instruction"]))


def test_without_an_encoder_images_are_checked_and_captions_carry_no_features(world, tokenizer, tmp_path):
    (tmp_path / "images" / "03.png").write_text("not found")
    data = JointData(**world | {"tasks": ["caption"], "max_bad": 0.1})
    data.prepare(tokenizer)
    data.setup()
    assert data.problems["caption"].places == {"broken image": [str(tmp_path / "images" / "03.png")]}
    assert data.problems["caption"].skipped == 3
    (batch, _, _) = next(iter(data.train_dataloader()))
    assert "features" not in batch["caption"]


def test_a_prompt_that_fills_the_sequence_is_a_bad_sample(data, tmp_path):
    instructions = json.loads((tmp_path / "instructions.json").read_text())
    instructions[5]["instruction"] *= 50
    (tmp_path / "instructions.json").write_text(json.dumps(instructions))
    built = data()
    built.setup()
    (place,) = built.problems["instruction"].places["prompt without room for a response"]
    assert place.startswith("instructions.json entry 5: the prompt has ")
    with pytest.raises(UserError, match="entry 5"):
        data(on_error="raise").setup()
    with pytest.raises(UserError, match="more than 5% of 41 instructions are bad"):
        data(max_length={"caption": 128, "instruction": 20}).setup()


def test_a_task_without_samples(data, tmp_path):
    (tmp_path / "instructions.json").write_text("[]")
    with pytest.raises(UserError, match="no instructions to train on"):
        data().setup()


def test_hydra_builds_it(world):
    config = OmegaConf.create({"_target_": "lav2.training.data.JointData", **world})
    built = instantiate(config, tokenizer=None)
    assert built.batch_size == {"caption": 4, "instruction": 4}
    assert CaptionSource(**built.captions[0]).prompt == "Generate caption of this image"


def test_summary_is_printed_before_training(data, capsys):
    built = data(max_length={"caption": 66, "instruction": 256})
    built.setup()
    built.setup("validate")  # Lightning sets up again: the work is not done twice
    summary = built.summary()["caption"]
    assert summary["training"] + summary["validation"] == 60 and summary["tokens"]["100%"] == 66
    assert summary["truncated"] > 0 and summary["truncated_tokens"] >= summary["truncated"]
    printed = capsys.readouterr().out
    assert printed.count("truncated") == 1 and str(summary["truncated"]) in printed


def test_all_faults_of_the_arguments_are_told_at_once():
    with pytest.raises(UserError) as error:
        JointData(
            captions=[{"annotation": "x"}], batch_size={"caption": 0}, mode="max", on_error="ignore", validation=1
        )
    message = str(error.value)
    sizes = ["batch_size.caption", "batch_size.instruction"]
    for fault in ["instructions is empty", *sizes, "annotation", "mode", "on_error", "validation"]:
        assert fault in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"num_workers": -1}, "num_workers is -1"),
        ({"num_workers": True}, "num_workers is True"),
        ({"feature_dtype": "bfloat16"}, "feature_dtype is 'bfloat16'; choose one of float16, float32"),
        ({"batch_size": {"caption": 4, "instruction": 2.5}}, "batch_size.instruction is 2.5"),
        ({"max_length": 128}, "max_length.caption is None"),
        ({"validation": "half"}, "validation is 'half'"),
        ({"instructions": "file.json"}, "instructions is 'file.json'; give a list"),
        ({"instructions": [5]}, "an instructions entry is 5"),
        ({"instructions": [{"path": "a", "format": "vicuna"}]}, "the format 'vicuna'; choose one of alpaca, sharegpt"),
        (
            {"instructions": [{"path": "a", "format": "llava"}]},
            r"of format llava has \['path'\]; it takes path, images",
        ),
        ({"captions": [{"annotations": "a", "images": "b", "splits": ["val"]}]}, "of format coco has .*'splits'"),
        ({"captions": [{"annotations": "a", "images": "b", "format": "karpathy", "splits": "val"}]}, "splits 'val'"),
        ({"instructions": [SCIENCE | {"prompt_format": "QCM-LE"}]}, "prompt_format 'QCM-LE'; choose QCM-A or QCM-ALE"),
        ({"instructions": [SCIENCE | {"images": "photos"}]}, "images 'photos'; for ScienceQA that is true or false"),
        ({"template": "long"}, "template is 'long'; choose one of alpaca, .* family"),
        ({"mode": "ratio", "ratio": {"caption": 1}}, "ratio.instruction is None"),
        ({"mode": "ratio", "ratio": {"caption": 0.5, "instruction": 1}}, "ratio.caption is 0.5"),
        ({"captions": ["file.json"]}, "a captions entry is 'file.json'"),
        ({"captions": [{"annotations": "a", "images": "b", "prompt": None}]}, "the prompt None"),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_kind(world, change, fault):
    with pytest.raises(UserError, match=fault):
        JointData(**world | change)


def test_missing_files_are_named_once_and_unset_ones_by_what_sets_them(world, tmp_path):
    assert JointData(**world).missing_files() == []
    entry = {"annotations": None, "images": str(tmp_path / "lost")}
    data = JointData(**world | {"captions": [entry, entry], "instructions": ["None", str(tmp_path / "a.json")]})
    assert data.missing_files() == [
        "captions: annotations is not set (paths.annotations)",
        f"no image folder {tmp_path / 'lost'}",
        "instructions: a path is not set (paths.instructions)",
        f"no file {tmp_path / 'a.json'}",
    ]


def test_missing_files_of_other_formats(world, tmp_path):
    given = [
        {"format": "sharegpt", "path": None},
        {"format": "llava", "path": str(tmp_path / "lost.json"), "images": str(tmp_path / "lost")},
        {"format": "scienceqa", "folder": str(tmp_path / "sqa"), "split": "train", "images": False},
    ]
    assert JointData(**world | {"instructions": given}).missing_files() == [
        "instructions: a path is not set (paths.instructions)",
        f"no file {tmp_path / 'lost.json'}",
        f"no image folder {tmp_path / 'lost'}",
        f"no folder {tmp_path / 'sqa'}",
    ]


def test_instructions_with_and_without_images(data, tmp_path):
    """One of the images is broken; without captions the images of instructions are encoded as well."""
    said = [{"from": "human", "value": "What is it?\n<image>"}, {"from": "gpt", "value": "A red star."}]
    entries = [{"id": n, "image": f"{n:02}.png", "conversations": said} for n in range(20)]
    (tmp_path / "llava.json").write_text(json.dumps(entries))
    (tmp_path / "images" / "04.png").write_text("not found")
    llava = {"format": "llava", "path": str(tmp_path / "llava.json"), "images": str(tmp_path / "images")}
    alpaca = str(tmp_path / "instructions.json")
    built = data(tasks=["instruction"], instructions=[alpaca, llava])
    assert JointData(instructions=[SCIENCE], tasks=["instruction"]).has_images
    assert not JointData(instructions=[SCIENCE | {"images": False}], tasks=["instruction"]).has_images
    assert built.has_images and not JointData(instructions=[alpaca], tasks=["instruction"]).has_images
    built.setup()
    assert built.problems["instruction"].places == {"broken image": [str(tmp_path / "images" / "04.png")]}
    assert built.problems["instruction"].total == 61
    seen = {True: 0, False: 0}
    for batch in built.train_dataloader().flattened[0]:
        has_image = batch.get("has_image", torch.full((len(batch["tokens"]),), "features" in batch))
        for row in range(len(has_image)):
            seen[bool(has_image[row])] += 1
            # the encoder's feature is the colour: the number of the image tells it
            assert not has_image[row] or batch["features"][row, 0, 0] % 10 == 0
            assert has_image[row] or "features" not in batch or batch["features"][row].sum() == 0
    lengths = len(built.training["instruction"]), len(built.held_out["instruction"])
    assert sum(lengths) == 60 and 40 - lengths[1] <= seen[False] <= 41 and sum(seen.values()) == lengths[0]


def test_a_held_out_image_is_held_out_of_captions_and_instructions(data, tmp_path):
    said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A red star."}]
    entries = [{"image": f"{n:02}.png", "conversations": said} for n in range(20)]
    (tmp_path / "llava.json").write_text(json.dumps(entries))
    llava = {"format": "llava", "path": str(tmp_path / "llava.json"), "images": str(tmp_path / "images")}
    built = data(instructions=[llava], validation=0.3)
    built.setup()
    caption, instruction = (set(built.held_out[task].images) for task in ("caption", "instruction"))
    assert caption == instruction and 0 < len(caption) < 20


def test_family_is_chosen_by_the_tokenizer(data):
    built = data(template="family", max_length={"caption": 512, "instruction": 512})
    built.setup()
    assert built.template.kind == "vicuna"
    sample = built.training["instruction"][0]
    assert built.tokenizer.decode(sample.tokens.tolist()).endswith("###")


def test_what_ends_an_answer_too_early_is_told(data, tmp_path, capsys):
    entries = json.loads((tmp_path / "instructions.json").read_text())
    entries[7]["output"] = "### A heading"
    (tmp_path / "instructions.json").write_text(json.dumps(entries))
    data(template="vicuna", max_length={"caption": 512, "instruction": 512}).setup()
    assert "responses with '###' inside, where generation would end: 1" in capsys.readouterr().out


def test_validation_moves_no_global_random_state(data):
    built = data()
    built.setup()
    before = torch.get_rng_state()
    loader = built.val_dataloader()["caption"]
    assert isinstance(loader, DataLoader) and len(list(loader)) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_real_photographs_and_instructions(real_data, tmp_path, capsys):
    """26 photographs with 130 captions and 700 instructions, one photograph broken and one caption empty."""
    shutil.copytree(real_data / "coco" / "train2017", tmp_path / "photos")
    annotations = json.loads((real_data / "coco" / "annotations" / "captions_train2017.json").read_text())
    assert len(annotations["annotations"]) == 130
    broken = tmp_path / "photos" / annotations["images"][0]["file_name"]
    broken.write_bytes(broken.read_bytes()[:5000])
    other = next(a for a in annotations["annotations"] if a["image_id"] != annotations["images"][0]["id"])
    other["caption"] = " "
    (tmp_path / "captions.json").write_text(json.dumps(annotations))
    data = JointData(
        captions=[{"annotations": tmp_path / "captions.json", "images": tmp_path / "photos"}],
        instructions=[real_data / "instructions" / "alpaca_gpt4_700.json"],
        cache_dir=tmp_path / "cache",
        tokenizer=Tokenizer(real_data / "tokenizer" / "llama_tokenizer.model"),
        encoder=Encoder(),
    )
    data.setup()
    empty = f"1 empty caption (captions.json annotation {other['id']})"
    assert f"skipped 6 of 130 captions: {empty}, 1 broken image ({broken})" in capsys.readouterr().out
    assert len(data.training["caption"]) + len(data.held_out["caption"]) == 124
    assert len(data.training["instruction"]) + len(data.held_out["instruction"]) == 700
    for batch in data.val_dataloader().values():
        for content in batch:
            assert ((content["labels"] != IGNORE).sum(1) > 0).all()
    prompt = data.training["caption"][0]
    assert data.tokenizer.decode(list(map(int, prompt.tokens[: prompt.prompt_length]))).endswith(
        "### Instruction:\nGenerate caption of this image\n\n### Response:"
    )


def test_the_first_validation_batches_are_as_long_as_all():
    """limit_val_batches takes the first ones; a batch holds samples of like length."""
    pairs = [(None, Sample(np.zeros(length, np.int32), np.ones(length, bool))) for length in range(1, 102)]
    found = [len(sample.tokens) for _, sample in shuffled_batches(pairs, 4, seed=0)]
    assert sorted(found) == list(range(1, 102)) and found[-1] == 101  # the smaller batch stays the last
    batches = [found[start : start + 4] for start in range(0, 100, 4)]
    assert all(batch == list(range(batch[0], batch[0] + 4)) for batch in batches)
    assert batches != sorted(batches) and 30 < np.mean(found[:40]) < 70
    assert shuffled_batches([], 4, seed=0) == []
