"""A store that several processes fill, that die while they do, on disks that fail."""

import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time

import pytest
from PIL import Image
from safetensors.torch import load_file, save

from lav2.errors import UserError
from lav2.vision import filling, shards
from lav2.vision.features import compute_features
from lav2.vision.shards import Claim
from tests.vision.conftest import Encoder, no_fault

ROW = 2 * 3 * 2  # bytes of an image's features
process = multiprocessing.get_context("fork").Process


class Slow(Encoder):
    """Takes its time and counts across processes; with ``mixed`` features depend on what else is in the batch."""

    def __init__(self, seconds=0.0, mixed=True):
        super().__init__("slow")
        self.seconds, self.mixed = seconds, mixed
        self.log = tempfile.TemporaryFile("wb", buffering=0)  # noqa: SIM115  (no lock that could die with its holder)

    @property
    def count(self) -> int:
        return os.fstat(self.log.fileno()).st_size

    def forget(self) -> None:
        self.log.seek(0)
        self.log.truncate()

    def forward(self, images):
        time.sleep(self.seconds)
        self.log.write(b"." * len(images))
        return super().forward(images) + self.mixed * images.mean() / 7


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of two batches of two images, and no long waits for other processes."""
    monkeypatch.setattr(filling, "SHARD_BYTES", 4 * ROW)
    monkeypatch.setattr(filling, "POLL", 0.01)


@pytest.fixture
def many(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(40)]
    for number, path in enumerate(paths):
        Image.new("RGB", (6, 6), (number, 255 - number, 3 * number)).save(path)
    return paths


def fill(encoder, paths, folder, num_workers=0):
    return compute_features(encoder, paths, folder, no_fault, batch_size=2, num_workers=num_workers)


def content(store) -> dict[str, bytes]:
    assert {path.suffix for path in store.folder.iterdir()} == {".safetensors"}
    return {path.name: path.read_bytes() for path in store.folder.iterdir()}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_at_any_moment_and_resumed_is_an_uninterrupted_fill_bit_for_bit(
    many, tmp_path, small_shards, num_workers
):
    whole = content(fill(Slow(), many, tmp_path / "whole"))
    assert len(whole) == 10
    rng = random.Random(0)
    reached = []
    for trial in range(8 if num_workers == 0 else 2):
        encoder, folder = Slow(0.005), tmp_path / f"killed {trial}"
        child = process(target=fill, args=(encoder, many, folder, num_workers))
        child.start()
        reach = rng.randrange(1, 40)
        while encoder.count < reach:
            time.sleep(0.001)
        time.sleep(rng.random() / 100)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        written = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.safetensors")}
        reached.append(len(written))
        encoder.forget()
        assert content(fill(encoder, many, folder)) == whole
        assert encoder.count == 40 - 4 * len(written)  # finished shards were not computed again …
        assert all(path.stat().st_mtime_ns == then for path, then in written.items())  # … nor written again
    assert any(0 < written < 10 for written in reached)


def test_killed_while_writing(many, tmp_path, small_shards, monkeypatch):
    def killed(file):
        os.ftruncate(file, os.fstat(file).st_size // 2)  # half of it has reached the disk
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(shards.os, "fsync", killed)
        child = process(target=fill, args=(Slow(), many, tmp_path / "killed"))
        child.start()
        child.join()
    assert child.exitcode == -signal.SIGKILL
    assert [path.suffix for path in (tmp_path / "killed").glob("*/*")] == [".part"]
    store = fill(Slow(), many[:4], tmp_path / "killed")
    assert len(content(store)) == 1  # what the dead process left is swept away, whatever is filled in
    assert fill(Slow(), many, tmp_path / "killed").rows.keys() == {str(path) for path in many}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes_that_fill_at_once_share_the_work(many, tmp_path, small_shards, num_workers):
    whole = content(fill(Slow(), many, tmp_path / "whole"))
    encoder = Slow(0.01)
    children = [process(target=fill, args=(encoder, many, tmp_path / "shared", num_workers)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert encoder.count == 40  # each image once, whoever computed it
    assert content(fill(encoder, many, tmp_path / "shared")) == whole and encoder.count == 40


def test_processes_with_data_that_overlap(many, tmp_path, small_shards):
    shares = [many[:17], many[:30], many, many[5:], many[11:]]
    encoder = Slow(0.01, mixed=False)
    children = [process(target=fill, args=(encoder, share, tmp_path / "shared")) for share in shares]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    encoder.forget()
    store = fill(encoder, many, tmp_path / "shared")
    assert encoder.count == 0 and len(store) == 40
    for number, path in enumerate(many):
        assert store[path].tolist() == [[number, 255 - number, 3 * number]] * 2


def test_what_a_dead_process_had_begun_is_taken_over(many, tmp_path, small_shards):
    def begin(started):
        def write(claim, content):
            started.set()
            time.sleep(60)

        Claim.write = write
        fill(Slow(), many, tmp_path / "cache")

    started = multiprocessing.get_context("fork").Event()
    child = process(target=begin, args=(started,))
    child.start()
    assert started.wait(20)
    killer = threading.Timer(0.3, child.kill)
    killer.start()
    encoder, began = Slow(), time.monotonic()
    store = fill(encoder, many, tmp_path / "cache")  # all but one shard at once, and that one after the child's end
    assert 0.2 < time.monotonic() - began < 20 and encoder.count == 40 and len(store) == 40
    child.join()


def test_no_claim_on_what_another_process_has_just_written(tmp_path, monkeypatch):
    shard = tmp_path / "a.safetensors"
    shard.write_bytes(b"written")
    assert Claim.take(shard) is None and list(tmp_path.iterdir()) == [shard]
    shard.unlink()

    def finishes(file, flags):  # between the opening of the file and the lock on it
        file.write(b"by another")
        shard.with_suffix(".part").rename(shard)

    with monkeypatch.context() as patch:
        patch.setattr(shards.fcntl, "lockf", finishes)
        assert Claim.take(shard) is None and shard.read_bytes() == b"by another"
    shard.unlink()
    claim = Claim.take(shard)
    claim.write(b"by this one")
    assert list(tmp_path.iterdir()) == [shard] and shard.read_bytes() == b"by this one"


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "features", "contents", "swapped"])
def test_a_damaged_shard_is_computed_anew_and_never_used(many, tmp_path, small_shards, damage):
    encoder = Slow(mixed=False)
    store = fill(encoder, many, tmp_path / "cache")
    whole = content(store)
    path = store.folder / store.rows[str(many[3])][1]
    data, tensors = path.read_bytes(), load_file(path)
    tensors["features"][2, 1, 0] += damage == "features"
    tensors["contents"][2, 9] ^= damage == "contents"
    if damage == "swapped":
        tensors["contents"] = tensors["contents"].flip(0)
    path.write_bytes({"cut": data[:-3], "empty": b"", "header": b"{" * len(data)}.get(damage, save(tensors)))

    encoder.forget()
    store = fill(encoder, many, tmp_path / "cache")
    if damage in ("features", "swapped"):  # nothing but the checksum tells
        with pytest.raises(UserError, match="damaged and are removed: start again"):
            [store[path] for path in many]
        store = fill(encoder, many, tmp_path / "cache")
    assert 0 < encoder.count <= 4
    for number, path in enumerate(many):
        assert store[path].tolist() == [[number, 255 - number, 3 * number]] * 2
    assert damage == "contents" or content(store) == whole


def test_a_disk_without_room_is_told_before_the_work(paths, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(filling.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    encoder = Encoder()
    with pytest.raises(UserError, match="need 0.0 GB and .* has 0.0 GB free: set data.cache_dir") as error:
        compute_features(encoder, paths, tmp_path / "cache", no_fault)
    assert encoder.seen == 0 and "\n" not in str(error.value)
    assert "the others take 0.0 MB" in capsys.readouterr().out
    compute_features(encoder, paths[:8], tmp_path / "cache", no_fault)  # 96 bytes do fit


def test_a_disk_that_fills_up_leaves_the_store_whole(many, tmp_path, small_shards):
    whole = content(fill(Slow(), many, tmp_path / "whole"))
    largest = max(map(len, whole.values()))

    def limited(queue):
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (pytest's are files, and limited too)
        written = []

        def fsync(file):
            written.append(file)
            if len(written) == 3:  # the fourth shard meets a full disk
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, largest // 2))

        shards.os.fsync = fsync
        try:
            fill(Slow(), many, tmp_path / "cache")
        except UserError as error:
            queue.put(str(error))

    queue = multiprocessing.get_context("fork").Queue()
    child = process(target=limited, args=(queue,))
    child.start()
    message = queue.get(timeout=20)
    child.join()
    assert "cannot write image features" in message and "File too large" in message and "\n" not in message
    left = [path.name for path in (tmp_path / "cache").glob("*/*")]
    assert len(left) == 3 and set(left) < set(whole)
    encoder = Slow()
    assert content(fill(encoder, many, tmp_path / "cache")) == whole and encoder.count == 40 - 12


def test_an_interrupt_leaves_finished_shards_and_nothing_else(many, tmp_path, small_shards):
    class Stops(Slow):
        def forward(self, images):
            if self.count == 10:
                raise KeyboardInterrupt
            return super().forward(images)

    with pytest.raises(KeyboardInterrupt):
        fill(Stops(), many, tmp_path / "cache", num_workers=2)
    assert [path.suffix for path in (tmp_path / "cache").glob("*/*")] == [".safetensors"] * 2
    encoder = Slow()
    fill(encoder, many, tmp_path / "cache")
    assert encoder.count == 40 - 8


def test_a_bad_image_too_many_stops_the_fill_early(many, tmp_path, small_shards):
    for path in many[::2]:
        path.write_bytes(path.name.encode())
    encoder, bad = Slow(), []

    def on_bad(path, reason):
        bad.append(path)
        if len(bad) == 3:
            raise UserError("too many")

    with pytest.raises(UserError, match="too many"):
        compute_features(encoder, many, tmp_path / "cache", on_bad, batch_size=2)
    assert encoder.count < 15


def test_a_folder_that_cannot_be_written(paths, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="cannot write image features to .*set data.cache_dir"):
        compute_features(Encoder(), paths, tmp_path / "cache", no_fault)
