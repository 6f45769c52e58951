"""What holds for every format: damaged files, lazy reading, memory, fingerprints."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lav2.errors import UserError
from lav2.llama import load_llama, open_checkpoint, save_llama
from lav2.llama.loading import fingerprint
from tests.llama.gguf_files import write_gguf
from tests.llama.stored import TOKENIZER, random_llama, save_meta, save_shards, save_theirs, small_llama

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to measure memory")
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 9976576152\n"
WEB_PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Not Found</title></head></html>"


def save_bin(llama, folder: Path) -> Path:
    """A folder of Hugging Face's with ``pytorch_model.bin``."""
    from safetensors.torch import load_file

    save_llama(llama, TOKENIZER, folder, torch.float32)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


# each format: how it is written, and the file that is damaged
FORMATS = {
    "safetensors": (lambda llama, folder: save_llama(llama, TOKENIZER, folder, torch.float32), "model.safetensors"),
    "shards": (save_shards, "model-00002-of-00003.safetensors"),
    "bin": (save_bin, "pytorch_model.bin"),
    "meta": (lambda llama, folder: save_meta(folder, llama, 2), "consolidated.01.pth"),
}


@pytest.fixture(params=FORMATS)
def stored(request, tmp_path):
    """A small LLaMA in each format: (folder, the file to be damaged)."""
    write, file = FORMATS[request.param]
    write(small_llama(), tmp_path)
    return tmp_path, tmp_path / file


class Intruder:
    """Unpickled with pickle's powers, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_every_format_gives_the_same_model(stored):
    llama, loaded = small_llama(), load_llama(stored[0])
    tokens = torch.arange(40)[None]
    assert torch.equal(loaded(tokens), llama(tokens))
    assert fingerprint(loaded) == fingerprint(llama)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (WEB_PAGE, "is a web page"),
        (LFS_POINTER, "is a git-lfs pointer, not the weights: run `git lfs pull`"),
        (b"no tensors at all", "is damaged, cut off or no file of weights"),
        (slice(-100), "is damaged, cut off or no file of weights"),
        (slice(3000), "is damaged, cut off or no file of weights"),
    ],
    ids=["empty", "web page", "git-lfs", "text", "cut at the end", "cut early"],
)
def test_a_file_that_is_no_weights_is_named(stored, content, message):
    folder, file = stored
    file.write_bytes(file.read_bytes()[content] if isinstance(content, slice) else content)
    with pytest.raises(UserError, match=f"{file.name} {message}") as caught:
        load_llama(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stored", ["bin", "meta"], indirect=True)
@pytest.mark.parametrize("write", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_code_in_a_pickle_is_not_run(stored, write, tmp_path):
    folder, file = stored
    trap = tmp_path / "trap"
    write({"tok_embeddings.weight": Intruder(trap)}, file)
    with pytest.raises(UserError, match=file.name) as caught:
        load_llama(folder)
    assert "\n" not in str(caught.value)
    assert not trap.exists()
    torch.load(file, weights_only=False) if write is torch.save else pickle.loads(file.read_bytes())
    assert trap.exists()  # the trap itself works


def test_torchs_old_format_is_refused(tmp_path):
    save_bin(small_llama(), tmp_path)
    file = tmp_path / "pytorch_model.bin"
    torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="pytorch_model.bin is in torch's old format"):
        load_llama(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named(stored, value):
    folder, file = stored
    llama = small_llama()
    with torch.no_grad():
        llama.layers[1].attention.wk.weight[-1, -1] = value  # in the second of several files
    next(write for write, name in FORMATS.values() if name == file.name)(llama, folder)
    with pytest.raises(UserError, match="layers.1.attention.wk.weight holds values that are not finite") as caught:
        load_llama(folder)
    holder = "model-00003-of-00003.safetensors" if "00003" in file.name else file.name
    assert str(caught.value).startswith(f"{folder / holder} is damaged")


def test_a_missing_shard_is_named(tmp_path):
    save_shards(small_llama(), tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00003.safetensors is missing: of the 3 files in .*, 1 are not"):
        load_llama(tmp_path)


def test_shards_of_different_models_are_refused(tmp_path):
    save_shards(small_llama(), tmp_path / "one")
    other, wider = tmp_path / "other", tmp_path / "wider"
    save_shards(small_llama(), other, count=4)
    save_shards(small_llama(intermediate_size=96), wider)
    shard = "model-00003-of-00003.safetensors"
    here = tmp_path / "one" / shard
    here.write_bytes((other / "model-00004-of-00004.safetensors").read_bytes())
    with pytest.raises(UserError, match=f"{shard} does not hold model.layers.* puts there"):
        load_llama(tmp_path / "one")
    here.write_bytes((wider / shard).read_bytes())
    with pytest.raises(UserError, match=rf"{shard}: layers.1.feed_forward.w3.weight has shape"):
        load_llama(tmp_path / "one")


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {"a": 1}}', '{"weight_map": []}'])
def test_an_index_without_places_is_refused(tmp_path, text):
    save_shards(small_llama(), tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match="index.json has no weight_map"):
        load_llama(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="no LLaMA at .*: .*config.json is missing; llama.path must name a folder"):
        load_llama(tmp_path)
    with pytest.raises(UserError, match="no LLaMA at /nowhere"):
        load_llama("/nowhere")


def test_a_gguf_file_of_the_same_weights_is_the_same_base(tmp_path):
    llama = small_llama()
    assert fingerprint(load_llama(write_gguf(tmp_path / "llama.gguf", llama))) == fingerprint(llama)


@needs_proc
@pytest.mark.parametrize("form", ["shards", "meta"])
def test_a_slice_of_a_checkpoint_reads_that_slice_alone(form, tmp_path):
    """What a rank needs of a sharded model: rows of a mapped tensor."""
    llama = small_llama(vocab_size=100_000, hidden_size=64)  # 26 MB of embeddings
    save_shards(llama, tmp_path) if form == "shards" else save_meta(tmp_path, llama)
    checkpoint = open_checkpoint(tmp_path)
    before = memory("VmRSS")
    rows = checkpoint["tok_embeddings.weight"][1000:2000]
    assert torch.equal(rows, llama.tok_embeddings.weight[1000:2000])
    assert memory("VmRSS") - before < 5e6


@needs_proc
@pytest.mark.parametrize("form", ["shards", "meta"])
def test_loading_takes_little_more_memory_than_the_model(form, tmp_path):
    llama = small_llama(vocab_size=4000, hidden_size=1024, intermediate_size=2816, num_layers=5, num_heads=16)
    llama = llama.to(torch.bfloat16)
    size = sum(parameter.nbytes for parameter in llama.parameters())
    assert size > 100e6
    if form == "shards":
        save_shards(llama, tmp_path, dtype=torch.bfloat16)
    else:
        save_meta(tmp_path, llama, 2)
    code = (  # for a fresh process
        "import torch; from lav2.llama import load_llama; from tests.llama.test_loading import memory\n"
        "before = memory('VmHWM')\n"
        f"llama = load_llama({str(tmp_path)!r}, torch.bfloat16); print(memory('VmHWM') - before)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    used = int(done.stdout)
    assert 0.9 * size < used < 1.5 * size, used / size  # on a busy machine 1.3 was seen; a second copy is 2


def memory(kind: str) -> int:
    """Bytes of memory that this process has (``VmRSS``) or had at most (``VmHWM``)."""
    return int(re.search(rf"{kind}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_embedded_base_keeps_its_fingerprint(dtype):
    """Adapters know their base by it."""
    assert fingerprint(load_llama(TOKENIZER.parent, dtype)) == "77b23966a831a61f"


def test_fingerprint_of_tied_embeddings(tmp_path):
    llama = load_llama(save_theirs(random_llama("llama3.1"), tmp_path, "shards"))
    before = fingerprint(llama)
    assert fingerprint(load_llama(tmp_path, torch.bfloat16)) == before
    llama.tok_embeddings.weight[0, 0] += 1
    assert fingerprint(llama) != before


def test_an_adapter_moves_between_formats(tmp_path, adapted, tokens, features):
    """Its base may come as another format, though that tells of another longest sequence."""
    from lav2.adapter import load_adapter, save_adapter

    save_adapter(tmp_path / "adapter", adapted)
    base = load_llama(save_meta(tmp_path / "base", adapted.llama))
    assert base.config.max_length != adapted.llama.config.max_length
    moved = load_adapter(tmp_path / "adapter", base)
    assert torch.equal(moved(tokens, features), adapted(tokens, features))
