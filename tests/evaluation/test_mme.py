"""MME's scores against a plain count, on its real questions; its own folder read like the flattened file."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image

from lav2.data.problems import Problems
from lav2.errors import UserError
from lav2.evaluation.mme import COGNITION, PERCEPTION, category_scores, read_mme, read_yes_no
from lav2.evaluation.run import evaluate
from lav2.inference import Assistant
from tests.evaluation.conftest import composed


def entries_of(real_data: Path) -> list[dict]:
    return json.loads((real_data / "eval" / "mme_quarter.json").read_text())


def draw(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (number % 256, 80, 80)).save(path)


@pytest.fixture(scope="module")
def pictures(real_data, tmp_path_factory) -> Path:
    """A stand-in picture at every place that the real file names."""
    folder = tmp_path_factory.mktemp("mme")
    for number, entry in enumerate(entries_of(real_data)):
        draw(folder / entry["image_path"], number)
    return folder


def plain_scores(entries: list[dict], answers: list[str]) -> dict[str, float]:
    """Accuracy plus accuracy+ by category, by counting."""
    right = defaultdict(lambda: defaultdict(list))
    for entry, answer in zip(entries, answers, strict=True):
        good = answer.lower().startswith(entry["gt_answers"].lower())
        right[entry["dataset_name"][4:]][entry["image_path"]].append(good)
    scores = {}
    for category, images in right.items():
        questions = [good for both in images.values() for good in both]
        whole = [both == [True, True] for both in images.values()]
        scores[category] = 100 * sum(questions) / len(questions) + 100 * sum(whole) / len(whole)
    return scores


@pytest.fixture
def says(monkeypatch):
    """``says(answer)``: the model answers ``answer(question, image)``; gives the list of what it was asked."""

    def replace(answer):
        asked = []

        def generate(self, instructions, images, inputs, **settings):
            pairs = list(zip(instructions, images, strict=True))
            asked.extend(pairs)
            return [answer(*pair) for pair in pairs]

        monkeypatch.setattr(Assistant, "generate", generate)
        return asked

    return replace


def score(run_folder, data, images=None):
    images = f"paths.images={images}" if images else "paths.images=null"
    return evaluate(composed(f"run={run_folder}", "eval=mme", f"paths.mme={data}", images))


def fickle(question: str, image: Path | None = None) -> str:
    return ["Yes.", "no, it is not", "I cannot see.", "Yes, it is."][len(question) % 4]


def test_scores_on_the_real_questions(run_folder, pictures, real_data, says, capsys):
    """All 14 categories, 594 questions; prompts as they stand; a model that answers by the question's length."""
    asked, entries = says(fickle), entries_of(real_data)
    scores = score(run_folder, real_data / "eval" / "mme_quarter.json", pictures)
    assert set(asked) == {(entry["question"], pictures / entry["image_path"]) for entry in entries}
    answers = [fickle(entry["question"]) for entry in entries]
    expected = plain_scores(entries, answers)
    assert {name: scores[name] for name in expected} == pytest.approx(expected) and len(expected) == 14
    assert scores["perception"] == pytest.approx(sum(expected[name] for name in PERCEPTION))
    assert scores["cognition"] == pytest.approx(sum(expected[name] for name in COGNITION))
    assert scores["other"] == answers.count("I cannot see.") > 100
    assert scores["questions"] == 594 and scores["skipped"] == 0 and scores["split"] == "mme_quarter"
    printed = capsys.readouterr().out
    assert "accuracy+" in printed and "1326.09" in printed
    report = (run_folder / "evaluation" / "mme" / "report.html").read_text()
    assert "read as: other" in report and report.count("data:image/jpeg") == 120


def test_all_right_and_always_yes(run_folder, pictures, real_data, says):
    file = real_data / "eval" / "mme_quarter.json"
    says(lambda question, image: "Yes")
    scores = score(run_folder, file, pictures)
    # each image has one yes and one no: half of the questions, and no image
    assert scores["perception"] == pytest.approx(500) and scores["cognition"] == pytest.approx(200)
    (run_folder / "evaluation" / "mme" / "journal.jsonl").unlink()
    truth = {
        (entry["question"], pictures / entry["image_path"]): entry["gt_answers"] for entry in entries_of(real_data)
    }
    says(lambda *asked: truth[asked])
    scores = score(run_folder, file, pictures)
    assert scores["perception"] == 2000 and scores["cognition"] == 800 and scores["other"] == 0


def test_the_tiny_model_goes_all_the_way(run_folder, pictures, real_data, tmp_path):
    (tmp_path / "few.json").write_text(json.dumps(entries_of(real_data)[:6]))
    scores = score(run_folder, tmp_path / "few.json", pictures)
    assert scores["questions"] == 6 and scores["artwork"] >= 0
    assert scores["cognition"] is None and "code_reasoning" in scores["missing"]  # not there, which is not wrong


def test_the_published_folder(tmp_path):
    """Both of its layouts: text beside image, and in folders of their own."""
    flat, nested = tmp_path / "existence", tmp_path / "posters"
    draw(flat / "000000006040.jpg", 0)
    (flat / "000000006040.txt").write_text("Is there a dog? Please answer yes or no.\tYes\nIs there a cat?\tNo\n")
    draw(nested / "images" / "tt1.png", 1)
    (nested / "questions_answers_YN").mkdir()
    (nested / "questions_answers_YN" / "tt1.txt").write_text("Is this movie A?\tYes\nIs this movie B?\tNo")
    (tmp_path / "eval_tool").mkdir()
    questions = read_mme(tmp_path, None, Problems("questions", "raise"))
    assert [(q.category, q.question, q.answer) for q in questions] == [
        ("existence", "Is there a dog? Please answer yes or no.", "yes"),
        ("existence", "Is there a cat?", "no"),
        ("posters", "Is this movie A?", "yes"),
        ("posters", "Is this movie B?", "no"),
    ]
    assert [q.image for q in questions[::2]] == [flat / "000000006040.jpg", nested / "images" / "tt1.png"]
    scores = category_scores(questions, ["yes", "no", "yes", "other"])
    assert scores["existence"] == {"accuracy": 100, "accuracy_plus": 100, "score": 200}
    assert scores["posters"] == {"accuracy": 50, "accuracy_plus": 0, "score": 50}


def test_bad_questions_are_named(tmp_path):
    text = tmp_path / "count" / "1.txt"
    for number in (1, 2, 3):
        draw(tmp_path / "count" / f"{number}.jpg", number)
        (tmp_path / "count" / f"{number}.txt").write_text("Two?\tYes\nThree?\tNo\n")
    text.write_text("Two?\tYes\nThree?\tperhaps\n")
    problems = Problems("questions", max_bad=0.5)
    assert [q.name for q in read_mme(tmp_path, None, problems)] == ["count/2.jpg"] * 2 + ["count/3.jpg"] * 2
    assert {reason: len(places) for reason, places in problems.places.items()} == {
        "line that is no question with yes or no": 1,
        "image without two questions": 1,
    }
    with pytest.raises(UserError, match="holds no question of MME"):
        read_mme(tmp_path / "count", None, Problems("questions"))
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="is no MME file"):
        read_mme(tmp_path / "other.json", None, Problems("questions"))


def test_missing_images_are_named(run_folder, real_data, tmp_path):
    with pytest.raises(UserError, match="missing image"):
        score(run_folder, real_data / "eval" / "mme_quarter.json", tmp_path)


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        (" YES, it is", "yes"),
        ("No, it is not", "no"),
        ("Not sure", "no"),  # MME's rule
        ("It is a yes", "other"),
        ("", "other"),
        ("1 yes", "other"),
    ],
)
def test_what_is_read(answer, read):
    assert read_yes_no(answer) == read


def test_experts_that_nobody_would_ask_are_refused(run_folder, tmp_path):
    """Else the scores would say that they add nothing."""
    (tmp_path / "few.json").write_text("[]")
    asked = composed(f"run={run_folder}", "eval=mme", f"paths.mme={tmp_path / 'few.json'}", "experts=[signs]")
    with pytest.raises(UserError, match="experts=… is for eval=experts alone"):
        evaluate(asked)
