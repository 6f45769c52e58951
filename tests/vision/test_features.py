import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from lav2.errors import UserError
from lav2.vision import features
from lav2.vision.features import compute_features


class Encoder(torch.nn.Module):
    """Two tokens of width 3: the mean colour of the upper and of the lower half; counts what it has seen."""

    num_tokens, width = 2, 3

    def __init__(self, fingerprint="mean colour", scale=1.0):
        super().__init__()
        self.fingerprint, self.seen = fingerprint, 0
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def preprocess(self, image):
        return torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1).float()

    def forward(self, images):
        self.seen += len(images)
        return images.unflatten(2, (2, 2)).mean((3, 4)).transpose(1, 2) * self.scale


@pytest.fixture
def paths(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(10)]
    for number, path in enumerate(paths):
        Image.new("RGB", (6, 6), (number, 2 * number, 3 * number)).save(path)
    return paths


def no_fault(path, reason):
    raise AssertionError(f"{reason}: {path}")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_features_are_the_encoders_and_computed_once(paths, tmp_path, num_workers, capsys):
    encoder = Encoder()
    shuffled = [paths[index] for index in (3, 1, 0, 2, 9, 8, 5, 4, 7, 6, 3)]
    store = compute_features(encoder, shuffled, tmp_path / "cache", no_fault, batch_size=4, num_workers=num_workers)
    assert "10 images: 2 x 3 each" in capsys.readouterr().out
    assert store.array.shape == (10, 2, 3) and store.array.dtype == np.float16 and len(store) == 10
    for number, path in enumerate(paths):
        assert path in store
        assert store[path].tolist() == [[number, 2 * number, 3 * number]] * 2
    assert tmp_path / "other.png" not in store

    again = compute_features(encoder, paths, tmp_path / "cache", no_fault)
    assert encoder.seen == 10
    assert torch.equal(again[paths[3]], store[paths[3]])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [store.folder.name]  # nothing temporary is left


def test_another_encoder_or_a_changed_image_is_computed_anew(paths, tmp_path):
    first = compute_features(Encoder(), paths, tmp_path / "cache", no_fault)
    other = compute_features(Encoder("double", 2.0), paths, tmp_path / "cache", no_fault)
    assert torch.equal(2 * first[paths[3]], other[paths[3]])
    Image.new("RGB", (6, 6), (100, 100, 100)).save(paths[3])
    os.utime(paths[3], ns=(1, 1))
    assert compute_features(Encoder(), paths, tmp_path / "cache", no_fault)[paths[3]][0, 0] == 100


def test_bad_images_are_named_every_time(paths, tmp_path):
    paths[2].write_bytes(paths[2].read_bytes()[:30])
    paths[5].unlink()
    for _ in range(2):
        bad = []
        store = compute_features(Encoder(), paths, tmp_path / "cache", lambda *fault, bad=bad: bad.append(fault))
        assert sorted(bad) == [(paths[2], "broken image"), (paths[5], "missing image")]
        assert paths[2] not in store and paths[5] not in store and len(store) == 8
        assert store[paths[9]][0].tolist() == [9, 18, 27]


def test_nothing_incomplete_is_left_behind(paths, tmp_path):
    class Stops(Encoder):
        def forward(self, images):
            if self.seen:
                raise KeyboardInterrupt
            return super().forward(images)

    with pytest.raises(KeyboardInterrupt):
        compute_features(Stops(), paths, tmp_path / "cache", no_fault, batch_size=4)
    assert not list((tmp_path / "cache").iterdir())
    with pytest.raises(UserError, match="float16"):
        compute_features(Encoder(scale=1e5), paths, tmp_path / "cache", no_fault)
    assert not list((tmp_path / "cache").iterdir())


def test_a_full_disk_is_told_before_the_work(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    encoder = Encoder()
    with pytest.raises(UserError, match="cache_dir"):
        compute_features(encoder, paths, tmp_path / "cache", no_fault)
    assert encoder.seen == 0


def test_a_store_sent_to_another_process_carries_no_array(paths, tmp_path):
    store = compute_features(Encoder(), paths, tmp_path / "cache", no_fault)
    assert torch.equal(store[paths[1]], store[paths[1]]) and store._array is not None
    sent = pickle.loads(pickle.dumps(store))
    assert sent._array is None and torch.equal(sent[paths[1]], store[paths[1]])


def test_global_random_state_is_left_alone(paths, tmp_path):
    before = torch.get_rng_state()
    compute_features(Encoder(), paths, tmp_path / "cache", no_fault)
    assert torch.equal(torch.get_rng_state(), before)
