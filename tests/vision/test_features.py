"""What a store of features gives back, and when it computes anew."""

import os
import pickle
import shutil
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

import lav2.demo
from lav2.data import Sample, Samples, collate
from lav2.data.images import load_image
from lav2.errors import UserError
from lav2.vision import VisionEncoder, contents
from lav2.vision.features import Pixels, compute_features
from tests.vision.conftest import Encoder, no_fault

WEIGHTS = Path(lav2.demo.__path__[0]) / "weights" / "vision.safetensors"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_features_are_the_encoders_and_computed_once(paths, tmp_path, num_workers, capsys):
    encoder = Encoder()
    shuffled = [paths[index] for index in (3, 1, 0, 2, 9, 8, 5, 4, 7, 6, 3)]
    store = compute_features(encoder, shuffled, tmp_path / "cache", no_fault, batch_size=4, num_workers=num_workers)
    assert "2 x 3 float16 an image: 0 of 10 images are done, the others take 0.0 MB" in capsys.readouterr().out
    assert len(store) == 10 and tmp_path / "other.png" not in store
    for number, path in enumerate(paths):
        assert path in store and store[path].dtype == torch.float16
        assert store[path].tolist() == [[number, 2 * number, 3 * number]] * 2

    again = compute_features(encoder, paths, tmp_path / "cache", no_fault)
    assert encoder.seen == 10 and "image features" not in capsys.readouterr().out
    assert torch.equal(again[paths[3]], store[paths[3]])


def test_the_embedded_encoder_is_stored_to_the_last_bit_in_float32_and_rounded_in_float16(paths, tmp_path):
    encoder = VisionEncoder("lav2-tiny", WEIGHTS)
    exact = compute_features(encoder, paths, tmp_path / "cache", no_fault, "float32", batch_size=1)
    rounded = compute_features(encoder, paths, tmp_path / "cache", no_fault, batch_size=1)
    for path in paths:
        features = encoder(encoder.preprocess(load_image(path))[None])[0]
        assert torch.equal(exact[path], features)
        assert torch.equal(rounded[path], features.half())
        assert ((rounded[path] - features).abs() <= (features.abs() * 2**-11).clamp(min=2**-25)).all()


def test_another_encoder_is_noticed_by_each_of_its_settings(paths, tmp_path):
    def folder(dtype="float16", cast=torch.float32, weights=WEIGHTS, **settings) -> Path:
        encoder = VisionEncoder("lav2-tiny", weights, **settings).to(cast)
        return compute_features(encoder, paths[:2], tmp_path / "cache", no_fault, dtype).folder

    changed = load_file(WEIGHTS)
    next(iter(changed.values())).view(-1)[0] += 1e-3
    save_file(changed, tmp_path / "changed.safetensors")
    folders = [
        folder(),
        folder(tokens="patches_and_class"),
        folder(channel_order="BGR"),
        folder("float32"),
        folder(cast=torch.bfloat16),
        folder(weights=tmp_path / "changed.safetensors"),
    ]
    assert len(set(folders)) == 6 and folder() == folders[0]


def test_a_changed_image_is_noticed_even_with_its_old_size_and_time(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "SETTLED", 0)  # trust the times of files at once
    compute_features(Encoder(), paths, tmp_path / "cache", no_fault)
    time.sleep(0.05)
    old, before = paths[3].read_bytes(), os.stat(paths[3])
    Image.new("RGB", (6, 6), (100, 100, 100)).save(paths[3])
    assert len(paths[3].read_bytes()) == len(old) == before.st_size
    os.utime(paths[3], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(paths[3]).st_mtime_ns == before.st_mtime_ns
    encoder = Encoder()
    assert compute_features(encoder, paths, tmp_path / "cache", no_fault)[paths[3]][0, 0] == 100
    assert encoder.seen == 1

    paths[3].write_bytes(old)  # what it was: its features are still there
    assert compute_features(encoder, paths, tmp_path / "cache", no_fault)[paths[3]][0, 0] == 3
    assert encoder.seen == 1


def test_only_images_at_rest_are_not_read_again(paths, tmp_path, monkeypatch):
    stamps = tmp_path / "cache" / "images.json"
    hashes = contents.content_hashes(paths, stamps, no_fault)
    assert len(set(hashes.values())) == 10 and not stamps.exists()  # all of them are younger than two seconds
    monkeypatch.setattr(contents, "SETTLED", 0)
    assert contents.content_hashes(paths, stamps, no_fault) == hashes
    monkeypatch.setattr(contents, "_read", no_fault)
    assert contents.content_hashes(paths, stamps, no_fault) == hashes
    stamps.write_text("{")
    with pytest.raises(TypeError):  # no_fault takes two arguments: an image was to be read
        contents.content_hashes(paths, stamps, no_fault)


def test_data_sets_share_the_features_of_the_images_they_share(paths, tmp_path):
    encoder = Encoder()
    first = compute_features(encoder, paths[:6], tmp_path / "cache", no_fault)
    assert encoder.seen == 6
    (tmp_path / "elsewhere").mkdir()
    copies = [Path(shutil.copy(path, tmp_path / "elsewhere" / f"copy of {path.name}")) for path in paths[3:]]
    second = compute_features(encoder, [*copies, *paths[4:8]], tmp_path / "cache", no_fault)
    assert encoder.seen == 10 and second.folder == first.folder
    for number, copy in enumerate(copies, start=3):
        assert second[copy][1].tolist() == [number, 2 * number, 3 * number]
    assert torch.equal(second[copies[0]], first[paths[3]]) and paths[3] not in second
    assert [path for path in first.folder.iterdir() if path.suffix != ".safetensors"] == []


def test_bad_images_are_named_every_time_and_nothing_is_decoded_twice(paths, tmp_path, monkeypatch):
    paths[2].write_bytes(paths[2].read_bytes()[:30])
    shutil.copy(paths[2], paths[7])
    paths[5].unlink()
    for round in range(2):
        bad = []
        store = compute_features(Encoder(), paths, tmp_path / "cache", lambda *fault, bad=bad: bad.append(fault))
        assert sorted(bad) == [(paths[2], "broken image"), (paths[5], "missing image"), (paths[7], "broken image")]
        assert not {2, 5, 7} & {number for number, path in enumerate(paths) if path in store} and len(store) == 7
        assert store[paths[9]][0].tolist() == [9, 18, 27]
        if round == 0:
            monkeypatch.setattr("lav2.vision.filling.load_image", no_fault)
            monkeypatch.setattr(Encoder, "preprocess", no_fault)


def test_an_image_that_changes_meanwhile_is_refused(paths, tmp_path):
    class Slow(Encoder):
        def preprocess(self, image):
            for path in paths:
                path.write_bytes(b"something else")
            return super().preprocess(image)

    with pytest.raises(UserError, match="changed since the run began"):
        compute_features(Slow(), paths, tmp_path / "cache", no_fault, batch_size=1)


def test_features_too_large_for_float16_are_refused_and_float32_holds_them(paths, tmp_path):
    with pytest.raises(UserError, match="float16: set data.feature_dtype=float32"):
        compute_features(Encoder(scale=1e5), paths, tmp_path / "cache", no_fault)
    store = compute_features(Encoder(scale=1e5), paths, tmp_path / "cache", no_fault, "float32")
    assert store[paths[3]][0].tolist() == [3e5, 6e5, 9e5]


def test_a_worker_process_maps_the_files_by_itself(paths, tmp_path):
    store = compute_features(Encoder(), paths, tmp_path / "cache", no_fault)
    assert torch.equal(store[paths[1]], store[paths[1]])
    assert len(pickle.dumps(store)) < 5000  # paths and places, no features
    samples = Samples([Sample([1, 2, number], 1) for number in range(10)], paths, store)
    loader = DataLoader(samples, 5, collate_fn=collate, num_workers=1, multiprocessing_context="spawn")
    features = torch.cat([batch["features"] for batch in loader])
    assert features.dtype == torch.float32 and features[:, 1, 2].tolist() == [3 * number for number in range(10)]


def test_a_row_is_the_readers_own(paths, tmp_path):
    store = compute_features(Encoder(), paths, tmp_path / "cache", no_fault)
    row = store[paths[4]]
    assert row.untyped_storage().nbytes() == row.nbytes  # nothing else of the file comes along
    row.zero_()
    assert store[paths[4]][0].tolist() == [4, 8, 12]


def test_pixels_take_the_place_of_features(paths):
    pixels = Pixels(Encoder().preprocess, paths[:9])
    assert len(pixels) == 9 and paths[0] in pixels and paths[9] not in pixels
    assert torch.equal(pixels[paths[5]], Encoder().preprocess(load_image(paths[5])))
    with pytest.raises(KeyError):
        pixels[paths[9]]
    samples = Samples([Sample([1, 2], 1), Sample([1, 2, 3], 1)], paths[:2], pixels)
    assert collate([samples[0], samples[1]])["features"].shape == (2, 3, 4, 4)


def test_global_random_state_is_left_alone(paths, tmp_path):
    before = torch.get_rng_state()
    compute_features(Encoder(), paths, tmp_path / "cache", no_fault)
    assert torch.equal(torch.get_rng_state(), before)


def test_real_photographs(real_data, tmp_path):
    """43 photographs of COCO, one of them broken, through the embedded encoder."""
    photos = sorted(Path(shutil.copytree(real_data / "coco" / "val2017", tmp_path / "photos")).glob("*.jpg"))
    assert len(photos) == 43
    photos[7].write_bytes(photos[7].read_bytes()[:5000])
    encoder, bad = VisionEncoder("lav2-tiny", WEIGHTS), []
    store = compute_features(encoder, photos, tmp_path, lambda *fault: bad.append(fault), num_workers=2)
    assert bad == [(photos[7], "broken image")] and len(store) == 42
    for path in photos[:7]:
        features = encoder(encoder.preprocess(load_image(path))[None])[0]
        assert (store[path] - features).abs().max() < 1e-3 * features.abs().max()
