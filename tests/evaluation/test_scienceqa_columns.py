"""ScienceQA's nine columns, against a plain count; real questions as prompts; what can and cannot be read."""

import json
import random
import re

import pytest
from PIL import Image

from lav2.data.problems import Problems
from lav2.data.scienceqa import read_questions
from lav2.errors import UserError
from lav2.evaluation.run import evaluate
from lav2.evaluation.scienceqa import COLUMNS, PUBLISHED, accuracies, read_letter
from tests.evaluation.conftest import composed

SUBJECTS = ["natural science", "social science", "language science"]
FLAT = re.compile(r"Context:\n(.*?)\n?Question:\n(.*?)\nChoices:\n(.*)\nAnswer with the option", re.DOTALL)


def write(folder, problems):
    folder.mkdir(exist_ok=True)
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": list(problems)}))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Sixty short questions in the published format, with and without image and hint."""
    rng = random.Random(0)
    folder, problems = tmp_path_factory.mktemp("scienceqa"), {}
    for number in range(60):
        id, count = str(number * 3), rng.randint(2, 4)
        problems[id] = {
            "question": rng.choice(["Which is red?", "Which is larger?"]),
            "choices": rng.sample(["star", "circle", "square", "cross"], count),
            "answer": rng.randrange(count),
            "hint": rng.choice(["", "", "Look."]),
            "image": rng.choice([None, "image.png"]),
            "task": "closed choice",
            "grade": f"grade{rng.randint(1, 12)}",
            "subject": rng.choice(SUBJECTS),
            "topic": "",
            "category": "",
            "skill": "",
            "lecture": "",
            "solution": "So it is.",
            "split": "test",
        }
        if problems[id]["image"]:
            path = folder / "images" / "test" / id / "image.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (30, 30), (number * 4, 0, 0)).save(path)
    return write(folder, problems), problems


def plain_columns(problems, letters):
    """The nine columns by counting, from the published files alone."""
    rows = [(problem, letters[id] == "ABCDE"[problem["answer"]]) for id, problem in problems.items()]

    def percent(chosen):
        return 100 * sum(right for _, right in chosen) / len(chosen)

    low = {f"grade{n}" for n in (1, 2, 3, 4, 5, 6)}
    return {
        "NAT": percent([row for row in rows if row[0]["subject"] == "natural science"]),
        "SOC": percent([row for row in rows if row[0]["subject"] == "social science"]),
        "LAN": percent([row for row in rows if row[0]["subject"] == "language science"]),
        "TXT": percent([row for row in rows if row[0]["hint"] != ""]),
        "IMG": percent([row for row in rows if row[0]["image"] is not None]),
        "NO": percent([row for row in rows if row[0]["hint"] == "" and row[0]["image"] is None]),
        "G1-6": percent([row for row in rows if row[0]["grade"] in low]),
        "G7-12": percent([row for row in rows if row[0]["grade"] not in low]),
        "Avg": percent(rows),
    }


def test_the_nine_columns(made):
    folder, problems = made
    rng = random.Random(1)
    letters = {id: rng.choice(["A", "B", "C", None]) for id in problems}
    questions = read_questions(folder, "test", Problems("questions"))
    assert [question.id for question in questions] == list(problems)
    columns = accuracies(questions, [letters[question.id] for question in questions])
    assert columns == pytest.approx(plain_columns(problems, letters)) and list(columns) == list(COLUMNS)
    assert accuracies(questions[:0], []) == dict.fromkeys(COLUMNS)


def test_published_rows_agree_with_themselves():
    """An average lies between its parts; by the sizes of the parts of the test split (2,252 natural, 889 social and
    1,100 language science questions) it is the papers' own."""
    for values in PUBLISHED.values():
        if None in values:  # an average alone
            continue
        row = dict(zip(COLUMNS, values, strict=True))
        assert min(row["G1-6"], row["G7-12"]) <= row["Avg"] <= max(row["G1-6"], row["G7-12"])
        weighted = (2252 * row["NAT"] + 889 * row["SOC"] + 1100 * row["LAN"]) / 4241
        assert row["Avg"] == pytest.approx(weighted, abs=0.06)


def test_the_evaluation(run_folder, made, capsys):
    folder, problems = made
    cfg = composed(
        f"run={run_folder}", "eval=scienceqa", f"paths.scienceqa={folder}", "eval.generation.max_new_tokens=4"
    )
    scores = evaluate(cfg)
    out = run_folder / "evaluation" / "scienceqa"
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    letters = {line["id"]: line["condition"] for line in lines}
    assert {name: scores[name] for name in COLUMNS} == pytest.approx(plain_columns(problems, letters))
    # so small a model states no answer: all are unreadable, none is guessed
    assert scores["unreadable"] == sum(letter == "unreadable" for letter in letters.values()) > 0
    assert scores["split"] == "test" and scores["questions"] == 60
    assert [line["image"] is not None for line in lines] == [p["image"] is not None for p in problems.values()]
    printed = capsys.readouterr().out
    assert "LaVIN-13B" in printed and "90.83" in printed and "this run on test" in printed
    report = (out / "report.html").read_text()
    assert "LLaMA-Adapter_T" in report and "read as unreadable" in report and 'data-show="bad"' in report


def test_a_model_of_language_alone_is_asked_without_images(run_folder, made, tmp_path):
    """All questions count: images are not looked for."""
    folder = write(tmp_path / "texts", made[1])
    words = f"run={run_folder}", "eval=scienceqa", f"paths.scienceqa={folder}", "eval.generation.max_new_tokens=1"
    scores = evaluate(composed(*words, "eval.images=false"))
    assert (scores["questions"], scores["skipped"]) == (60, 0)
    lines = (run_folder / "evaluation" / "scienceqa" / "predictions.jsonl").read_text().splitlines()
    assert not any(json.loads(line)["image"] for line in lines)
    with pytest.raises(UserError, match="eval.images is 'no'; it must be true or false"):
        evaluate(composed(*words, "eval.images='no'"))


def test_right_answers_score_a_hundred(run_folder, made, monkeypatch):
    """A model that says the response of either format."""
    from lav2.inference import Assistant

    folder, _ = made
    questions = {q.prompt + str(q.image): q for q in read_questions(folder, "test", Problems("questions"))}
    said = iter(["QCM-A", "QCM-ALE"] * 60)

    def oracle(self, instructions, images, inputs, **settings):
        return [
            questions[text + str(image)].response(next(said)) for text, image in zip(instructions, images, strict=True)
        ]

    monkeypatch.setattr(Assistant, "generate", oracle)
    scores = evaluate(composed(f"run={run_folder}", "eval=scienceqa", f"paths.scienceqa={folder}"))
    # two questions with the same words and no image are one to the oracle, and may differ in their answer
    assert scores["Avg"] > 90 and scores["IMG"] == 100.0 and scores["unreadable"] == 0


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The answer is B.", "B"),
        ("The answer is (C). BECAUSE: The answer is A.", "C"),
        ("I think the answer is D", "D"),
        ("B", "B"),
        (" (b) ", None),
        ("(A) hard", "A"),
        ("C. bendy", "C"),
        ("A plant is green.", None),
        ("Because", None),
        ("The answer is E.", None),
        ("The answer is Ohio.", None),
        ("", None),
    ],
)
def test_what_can_be_read(answer, letter):
    assert read_letter(answer, choices=4) == letter


def test_real_questions(real_data, tmp_path):
    """400 questions of the test split, back in the published format: each prompt holds all of its question, and each
    response is read as its answer."""
    entries = json.loads((real_data / "eval" / "scienceqa_test_img_400.json").read_text())
    problems = {}
    for entry in entries:
        hint, question, choices = FLAT.match(entry["question"]).groups()
        texts = [choice[3:] for choice in re.split(r"\n(?=[A-E]\. )", choices)]
        problems[entry["image_path"].split("/")[-2]] = {
            "question": question,
            "choices": texts,
            "answer": "ABCDE".index(entry["gt_answers"]),
            "hint": hint,
            "image": "image.png",
            "grade": "grade1",
            "subject": re.search("_subject(.*?)_category", entry["question_id"])[1],
            "lecture": "A lecture.",
            "solution": "",
            "split": "test",
        }
    questions = read_questions(write(tmp_path, problems), "test", Problems("questions", "raise"))
    assert len(questions) == 400 and {question.subject for question in questions} == set(SUBJECTS)
    for question, entry in zip(questions, entries, strict=True):
        assert str(question.image).endswith(entry["image_path"].removeprefix("data/scienceqa"))
        words = " ".join(question.prompt.split())
        for part in (question.question, question.hint, *question.choices):
            assert " ".join(part.split()) in words
        assert "Context: N/A" in words if not question.hint else "Context: N/A" not in words
        for format in ("QCM-A", "QCM-ALE"):
            assert read_letter(question.response(format), len(question.choices)) == entry["gt_answers"]
        assert read_letter(entry["gt_answers"], len(question.choices)) == entry["gt_answers"]
