"""ScienceQA's prompts and responses, letter by letter, from files as it is published."""

import json

import pytest

from lav2.data import Problems, ScienceQASource, read_scienceqa
from lav2.data.scienceqa import read_questions
from lav2.errors import UserError

PROBLEM = {
    "question": "Which  property do these have in common?",
    "choices": ["hard", "bendy"],
    "answer": 1,
    "hint": "",
    "image": None,
    "task": "closed choice",
    "grade": "grade4",
    "subject": "natural science",
    "topic": "physics",
    "category": "Materials",
    "skill": "Compare properties",
    "lecture": "",
    "solution": "",
    "split": "test",
}
WITH_IMAGE = PROBLEM | {
    "question": "Which state is\nhighlighted?",
    "choices": ["Ohio", "Iowa", "Utah "],
    "answer": 0,
    "hint": "Select the state. ",
    "image": "image.png",
    "grade": "grade10",
    "subject": "social science",
    "lecture": "Maps show places.\nStates are places.",
    "solution": "Ohio is   highlighted.\n",
}


@pytest.fixture
def folder(tmp_path):
    """``folder(problems, **splits)``: the published files of those problems."""

    def write(problems, **splits):
        (tmp_path / "problems.json").write_text(json.dumps(problems))
        (tmp_path / "pid_splits.json").write_text(json.dumps(splits or {"test": list(problems)}))
        return tmp_path

    return write


def test_prompts_and_responses(folder):
    """QCM-A and QCM-ALE as the published prompts have them: no hint is N/A, one pass over double spaces, line breaks
    of lecture and solution (and no others) as two characters, no reasons without lecture and solution."""
    source = folder({"7": PROBLEM, "12": WITH_IMAGE})
    plain, pictured = read_scienceqa([ScienceQASource(source, "test")], Problems("questions"))
    assert plain.instruction == (
        "Question: Which property do these have in common?\nContext: N/A\nOptions: (A) hard (B) bendy"
    )
    assert plain.input == "" and plain.image is None and plain.key == "7" and "question 7" in plain.where
    assert pictured.instruction == (
        "Question: Which state is\nhighlighted?\nContext: Select the state.\nOptions: (A) Ohio (B) Iowa (C) Utah "
    )
    assert pictured.image == source / "images" / "test" / "12" / "image.png"
    assert (plain.response, pictured.response) == ("The answer is B.", "The answer is A.")

    with_reasons = read_scienceqa([ScienceQASource(source, "test", "QCM-ALE")], Problems("questions"))
    assert [example.instruction for example in with_reasons] == [plain.instruction, pictured.instruction]
    assert with_reasons[0].response == "The answer is B."
    assert with_reasons[1].response == (
        r"The answer is A. BECAUSE: Maps show places.\nStates are places. Ohio is  highlighted.\n"
    )


def test_splits_and_their_images(folder):
    """The mini splits are parts of the large ones, where their images lie."""
    source = folder({"1": WITH_IMAGE, "2": PROBLEM | {"split": "train"}}, train=["2"], test=["1"], minitest=["1"])
    for split, id in (("train", "2"), ("test", "1"), ("minitest", "1")):
        assert [question.id for question in read_questions(source, split, Problems("questions"))] == [id]
    assert read_questions(source, "minitest", Problems(""))[0].image == source / "images" / "test" / "1" / "image.png"
    with pytest.raises(UserError, match="no split 'dev'; it has train, test, minitest"):
        read_questions(source, "dev", Problems("questions"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answer": 2}, "answer that is no choice"),
        ({"answer": "1"}, "answer that is no choice"),
        ({"choices": ["one"]}, "question without choices"),
        ({"question": " "}, "empty question"),
        ({"subject": "arts"}, "unknown subject"),
        ({"grade": "13"}, "unknown grade"),
        ({"lecture": 3}, "lecture that is no text"),
        (None, "missing question"),
    ],
)
def test_bad_problems_are_named(folder, changes, reason):
    bad = {} if changes is None else {"2": PROBLEM | changes}
    source = folder({"1": PROBLEM, **bad}, test=["1", "2"])
    problems = Problems("questions", max_bad=0.5)
    assert len(read_scienceqa([ScienceQASource(source, "test")], problems)) == 1
    assert problems.places == {reason: ["problems.json question 2"]} and problems.total == 2


def test_other_files_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"no .*problems.json: a folder of ScienceQA holds"):
        read_questions(tmp_path / "nothing", "test", Problems("questions"))
    source = folder({"1": PROBLEM})
    with pytest.raises(UserError, match="format is 'QCM-E'; choose one of QCM-A, QCM-ALE"):
        read_scienceqa([ScienceQASource(source, "test", "QCM-E")], Problems("questions"))
    (source / "pid_splits.json").write_text("[]")
    with pytest.raises(UserError, match="holds no json object"):
        read_questions(source, "test", Problems("questions"))
