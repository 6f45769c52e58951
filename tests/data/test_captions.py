import json

import pytest

from lav2.data.captions import CaptionSource, read_captions
from lav2.data.problems import Problems
from lav2.errors import UserError


def caption_source(tmp_path, images, annotations, name="captions.json"):
    (tmp_path / name).write_text(json.dumps({"images": images, "annotations": annotations}))
    return CaptionSource(tmp_path / name, tmp_path)


IMAGES = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]


def test_captions(tmp_path):
    source = caption_source(tmp_path, IMAGES, [{"id": 5, "image_id": 2, "caption": " A star.\n"}])
    problems = Problems("captions")
    (example,) = read_captions([source], problems)
    assert (example.instruction, example.input, example.response) == ("Generate caption of this image", "", "A star.")
    assert example.image == tmp_path / "b.png"
    assert problems.total == 1 and problems.summary() == ""


def test_bad_captions_are_named_and_counted(tmp_path):
    good = [{"id": n, "image_id": 1, "caption": "A star."} for n in range(10)]
    bad = [
        {"id": 17, "image_id": 1, "caption": "  "},
        {"id": 18, "image_id": 1, "caption": None},
        {"id": 19, "image_id": 9, "caption": "A star."},
        {"id": 20, "image_id": [1], "caption": "A star."},
        {"id": 21, "caption": "A star."},
        "A star.",
    ]
    source = caption_source(tmp_path, [*IMAGES, {"id": 9}, 7], good + bad)
    problems = Problems("captions", max_bad=1)
    assert len(read_captions([source], problems)) == 10
    assert problems.places == {
        "empty caption": ["captions.json annotation 17"],
        "missing caption": ["captions.json annotation 18", "captions.json entry 15"],
        "caption of an unknown image": [f"captions.json annotation {n}" for n in (19, 20, 21)],
    }
    assert problems.summary().startswith(
        "skipped 6 of 16 captions: 1 empty caption (captions.json annotation 17), 2 missing caption (captions.json"
    )
    with pytest.raises(UserError, match="empty caption: captions.json annotation 17"):
        read_captions([source], Problems("captions", on_error="raise"))


def test_files_that_cannot_be_read_at_all(tmp_path):
    problems = Problems("captions")
    with pytest.raises(UserError, match="no data file .*none.json"):
        read_captions([CaptionSource(tmp_path / "none.json", tmp_path)], problems)
    with pytest.raises(UserError, match="no image folder .*photos"):
        read_captions([CaptionSource(tmp_path / "none.json", tmp_path / "photos")], problems)
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(UserError, match="half.json is no readable json: .*line 1 column"):
        read_captions([CaptionSource(tmp_path / "half.json", tmp_path)], problems)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="list.json is no COCO annotation file"):
        read_captions([CaptionSource(tmp_path / "list.json", tmp_path)], problems)
    with pytest.raises(UserError, match="list.json is no Karpathy split"):
        read_captions([CaptionSource(tmp_path / "list.json", tmp_path, format="karpathy")], problems)
    (tmp_path / "table.tsv").write_text("A star.\tstar.png\n")
    with pytest.raises(UserError, match=r"has the header 'A star.\\tstar.png': expected url or path, a tab, caption"):
        read_captions([CaptionSource(tmp_path / "table.tsv", tmp_path, format="tsv")], problems)


def test_annotations_of_2014(tmp_path):
    """With exactly the fields of captions_val2014.json."""
    content = {
        "info": {"description": "This is stable 1.0 version of the 2014 MS COCO dataset.", "year": 2014},
        "images": [
            {
                "license": 3,
                "url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
                "file_name": "COCO_val2014_000000391895.jpg",
                "id": 391895,
                "width": 640,
                "date_captured": "2013-11-14 11:18:45",
                "height": 360,
            }
        ],
        "licenses": [{"url": "http://creativecommons.org/licenses/by-nc/2.0/", "id": 2, "name": "A License"}],
        "annotations": [{"image_id": 391895, "id": 770337, "caption": "A man with a red helmet on a small moped. "}],
    }
    (tmp_path / "captions_val2014.json").write_text(json.dumps(content))
    problems = Problems("captions")
    (example,) = read_captions([CaptionSource(tmp_path / "captions_val2014.json", tmp_path)], problems)
    assert example.response == "A man with a red helmet on a small moped."
    assert example.image == tmp_path / "COCO_val2014_000000391895.jpg" and not problems.warnings


def karpathy_image(cocoid, split, *captions, folder="val2014"):
    """With exactly the fields of dataset_coco.json."""
    sentences = [
        {"tokens": caption.lower().split(), "raw": caption, "imgid": cocoid, "sentid": number}
        for number, caption in enumerate(captions)
    ]
    return {
        "filepath": folder,
        "sentids": list(range(len(captions))),
        "filename": f"COCO_{folder}_{cocoid:012}.jpg",
        "imgid": cocoid,
        "split": split,
        "sentences": sentences,
        "cocoid": cocoid,
    }


def test_karpathy_split(tmp_path):
    images = [
        karpathy_image(1, "test", "Not to be seen."),
        karpathy_image(2, "restval", "A dog. ", "Two dogs."),
        karpathy_image(3, "train", "A cat.", folder="train2014"),
        karpathy_image(4, "val", "Neither."),
    ]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    problems = Problems("captions")
    examples = read_captions([CaptionSource(path, tmp_path, format="karpathy")], problems)
    assert [(e.response, str(e.image.relative_to(tmp_path)), e.where) for e in examples] == [
        ("A dog.", "val2014/COCO_val2014_000000000002.jpg", "dataset_coco.json image 2 sentence 0"),
        ("Two dogs.", "val2014/COCO_val2014_000000000002.jpg", "dataset_coco.json image 2 sentence 1"),
        ("A cat.", "train2014/COCO_train2014_000000000003.jpg", "dataset_coco.json image 3 sentence 0"),
    ]
    assert problems.total == 3 and not problems.warnings
    assert examples[0].key == examples[1].key != examples[2].key
    (test,) = read_captions([CaptionSource(path, tmp_path, format="karpathy", splits=["test"])], Problems("captions"))
    assert test.response == "Not to be seen."
    with pytest.raises(UserError, match="has no split 'trian'; it has test, restval, train, val"):
        read_captions([CaptionSource(path, tmp_path, format="karpathy", splits=["trian"])], Problems("captions"))


def test_bad_entries_of_a_karpathy_split(tmp_path):
    flickr = karpathy_image(5, "train", "A boat.")
    del flickr["filepath"], flickr["cocoid"]  # as in dataset_flickr30k.json
    bad = karpathy_image(6, "train", " ", "A car.")
    bad["sentences"] += [{"tokens": []}, "A car."]
    images = [flickr, bad, karpathy_image(7, "train"), {"split": "train", "sentences": [{"raw": "A car."}]}, 8]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": images}))
    problems = Problems("captions", max_bad=1)
    examples = read_captions([CaptionSource(path, tmp_path, format="karpathy")], problems)
    assert [example.image.name for example in examples] == [flickr["filename"], bad["filename"]]
    assert examples[0].image.parent == tmp_path
    assert problems.places == {
        "empty caption": ["dataset.json image 6 sentence 0"],
        "missing caption": ["dataset.json image 6 sentence 2", "dataset.json image 6 sentence 3"],
        "image without captions": ["dataset.json image 7"],
        "caption of an unknown image": ["dataset.json image 3 sentence 0"],
        "entry that is no object": ["dataset.json entry 4"],
    }


def test_tables(tmp_path):
    lines = [
        "url\tcaption",
        "coco/a.jpg\tA star.",
        'coco/a.jpg\t"A ""stop"" sign"',  # as pandas and csv write it
        '/photos/b.jpg\tA "stop" sign',
        "https://example.org/c.jpg\tA car.",
        "coco/d.jpg",
        'coco/d.jpg\t"A sign',
        "",
        "\tA car.",
        "coco/e.jpg\t ",
        "coco/f.jpg\tA caf\udce9.",
    ]
    path = tmp_path / "captions.csv"
    path.write_bytes("\r\n".join(lines).encode("utf-8", "surrogateescape"))
    problems = Problems("captions", max_bad=1)
    examples = read_captions([CaptionSource(path, tmp_path, format="tsv")], problems)
    assert [(e.response, str(e.image)) for e in examples] == [
        ("A star.", str(tmp_path / "coco" / "a.jpg")),
        ('A "stop" sign', str(tmp_path / "coco" / "a.jpg")),
        ('A "stop" sign', "/photos/b.jpg"),
    ]
    assert problems.total == 9 and problems.places == {
        "image at a web address, which is not downloaded": ["captions.csv line 5"],
        "malformed line": ["captions.csv line 6", "captions.csv line 7", "captions.csv line 11"],
        "caption of an unknown image": ["captions.csv line 9"],
        "empty caption": ["captions.csv line 10"],
    }
    path.write_text("caption\tpath\tscore\nA star.\ta.jpg\t0.3\n")
    problems = Problems("captions")
    (example,) = read_captions([CaptionSource(path, tmp_path, format="tsv")], problems)
    assert (example.response, example.image) == ("A star.", tmp_path / "a.jpg")
    assert problems.warnings == ["captions.csv has columns that are not read: 'score'"]


def test_captions_in_llavas_format(tmp_path):
    asked = "Provide a brief description of the given image.\n<image>"
    entries = [
        {"id": "1", "image": "0/1.jpg", "conversations": [human(asked), gpt("A bowl of soup")]},
        {"id": "2", "image": "0/2.jpg", "conversations": [human("<image>"), gpt("A tree")]},
        {"id": "3", "conversations": [human("What is this?"), gpt("A tree")]},
    ]
    (tmp_path / "chat.json").write_text(json.dumps(entries))
    problems = Problems("captions", max_bad=1)
    source = CaptionSource(tmp_path / "chat.json", tmp_path, "Describe.", "llava")
    first, second = read_captions([source], problems)
    assert (first.instruction, first.response) == ("Provide a brief description of the given image.", "A bowl of soup")
    assert first.image == tmp_path / "0" / "1.jpg" and second.instruction == "Describe."
    assert problems.places == {"missing image field": ["chat.json entry 2"]}


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


def test_the_same_captions_in_every_format(real_data, tmp_path):
    """COCO's annotations of real photographs, rewritten in the other formats, give the same samples."""
    path, folder = real_data / "coco" / "annotations" / "captions_train2017.json", real_data / "coco" / "train2017"
    content = json.loads(path.read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    pairs = [(names[entry["image_id"]], entry["caption"]) for entry in content["annotations"]]
    (tmp_path / "c.tsv").write_text("url\tcaption\n" + "".join(f"{n}\t{c.strip()}\n" for n, c in pairs))
    asked = human("Generate caption of this image\n<image>")
    llava = [{"id": name, "image": name, "conversations": [asked, gpt(caption)]} for name, caption in pairs]
    (tmp_path / "c.llava").write_text(json.dumps(llava))
    images = [
        {"filepath": "train2017", "filename": name, "split": "train", "sentences": [{"raw": caption}]}
        for name, caption in pairs
    ]
    (tmp_path / "c.karpathy").write_text(json.dumps({"images": images, "dataset": "coco"}))

    def samples(annotations, images, format):
        problems = Problems("captions")
        examples = read_captions([CaptionSource(annotations, images, format=format)], problems)
        assert problems.total == 130 and not problems.skipped and not problems.warnings
        return [(example.instruction, example.response, example.image) for example in examples]

    coco = samples(path, folder, "coco")
    assert len(coco) == 130 and all(image.is_file() for _, _, image in coco)
    assert samples(tmp_path / "c.tsv", folder, "tsv") == samples(tmp_path / "c.llava", folder, "llava") == coco
    assert samples(tmp_path / "c.karpathy", folder.parent, "karpathy") == coco


def test_one_image_has_one_key_however_it_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    write = {"id": 1, "image_id": 1, "caption": "A star."}
    first = caption_source(tmp_path, [{"id": 1, "file_name": "images/a.png"}], [write])
    second = caption_source(tmp_path, [{"id": 1, "file_name": "a.png"}], [write], "details.json")
    second = CaptionSource(second.annotations, tmp_path / "images", "Describe the image in detail.")
    one, other = read_captions([first, second], Problems("captions"))
    assert one.image == other.image and one.key == other.key
    assert other.instruction == "Describe the image in detail."
