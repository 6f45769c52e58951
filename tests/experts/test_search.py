"""Search finds the captions most alike an image, exactly, in an index that is built once."""

import hashlib
import json

import numpy as np
import pytest
import torch

from lav2.errors import UserError
from lav2.experts.search import INDEX, VECTORS, CaptionSearch


class HashedVectors:
    """Unit vectors drawn from a hash of the text, and of an image's one text: known, distinct, and spread evenly."""

    fingerprint = "hashed"

    def __init__(self):
        self.encoded = 0

    def encode_texts(self, texts):
        self.encoded += len(texts)
        return torch.tensor(np.stack([vector(text) for text in texts]))

    def encode_image(self, image):
        return torch.tensor(vector(image))


def vector(text):
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    values = np.random.default_rng(seed).standard_normal(24).astype(np.float32)
    return values / np.linalg.norm(values)


@pytest.fixture
def collection(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("".join(f"caption {number}\n" for number in range(50)) + "caption 7\n\n")
    return path


def test_the_best_of_real_captions_by_brute_force(real_data, tmp_path):
    """20,013 captions of COCO, every image query compared with all of them in float64."""
    file = real_data / "coco" / "annotations" / "captions_val2017_first4000.json"
    search = CaptionSearch(HashedVectors(), file, tmp_path / "index", count=5)
    captions = {entry["caption"].strip() for entry in json.loads(file.read_text())["annotations"]}
    assert len(search.captions) == len(captions) and set(search.captions) == captions
    matrix = search.vectors.numpy().astype(np.float64)
    np.testing.assert_allclose(matrix, np.stack([vector(text) for text in search.captions]), atol=5e-4)
    for query in ("first image", "second image", "third image"):
        similarities = matrix @ vector(query).astype(np.float64)
        best = np.argsort(-similarities)[:5]
        found = search.search(query)
        assert [caption for caption, _ in found] == [search.captions[index] for index in best]
        assert [value for _, value in found] == pytest.approx(similarities[best], abs=1e-5)
    own = search.captions[1234]  # an image whose vector is a caption's own
    assert search.search(own)[0] == (own, pytest.approx(1, abs=1e-3))


def test_an_index_is_built_once(collection, tmp_path):
    first, again = HashedVectors(), HashedVectors()
    built = CaptionSearch(first, collection, tmp_path / "index")
    loaded = CaptionSearch(again, collection, tmp_path / "index")
    assert first.encoded == 50 and again.encoded == 0
    assert loaded("an image") == built("an image") and loaded("an image").count("caption") == 3
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == [INDEX, VECTORS]


def test_another_collection_or_encoder_builds_it_anew(collection, tmp_path):
    CaptionSearch(HashedVectors(), collection, tmp_path / "index")
    other = HashedVectors()
    other.fingerprint = "other weights"
    CaptionSearch(other, collection, tmp_path / "index")
    assert other.encoded == 50
    collection.write_text("one caption\n")
    search = CaptionSearch(other, collection, tmp_path / "index", count=3)
    assert other.encoded == 51 and search("an image") == "one caption"


def test_damage_is_named(collection, tmp_path):
    index = tmp_path / "index"
    CaptionSearch(HashedVectors(), collection, index)
    (index / VECTORS).write_bytes(b"cut")
    with pytest.raises(UserError, match="index is damaged.*delete it|index in .* is damaged"):
        CaptionSearch(HashedVectors(), collection, index)
    (index / INDEX).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        CaptionSearch(HashedVectors(), collection, index)


@pytest.mark.parametrize(("name", "content"), [("a.json", "{}"), ("b.json", "["), ("c.txt", "\n"), ("d.txt", None)])
def test_a_collection_without_captions_is_named(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=name):
        CaptionSearch(HashedVectors(), tmp_path / name, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_what_else_lies_in_the_folder_is_not_removed(collection):
    """The folder of the collection itself, for one."""
    with pytest.raises(UserError, match=r"something other than a search index \(captions.txt\)"):
        CaptionSearch(HashedVectors(), collection, collection.parent)
    assert collection.is_file()
