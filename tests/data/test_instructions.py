import json

import pytest

from lav2.data.instructions import read_instructions
from lav2.data.problems import Problems
from lav2.errors import UserError

ENTRIES = [
    {"instruction": " Say hello. ", "input": "", "output": "Hello.\n"},
    {"instruction": "Say it in German.", "input": "Hello.", "output": "Hallo."},
    {"instruction": "Count.", "input": None, "output": "One."},
    {"instruction": "Count on.", "output": "Two."},
]
BAD_ENTRIES = [
    {"instruction": "Count."},
    {"instruction": 3, "output": "Three."},
    {"instruction": "Count.", "output": " "},
    {"instruction": "Count.", "input": 3, "output": "Three."},
    ["Count.", "Three."],
    None,
]


def test_instructions(tmp_path):
    (tmp_path / "good.json").write_text(json.dumps(ENTRIES))
    # a byte order mark, Windows line ends and a blank line are none of the user's faults
    lines = "\r\n".join(json.dumps(entry) for entry in ENTRIES) + "\r\n\r\n"
    (tmp_path / "good.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    for name in ("good.json", "good.jsonl"):
        problems = Problems("instructions")
        examples = read_instructions([tmp_path / name], problems)
        assert [(e.instruction, e.input, e.response) for e in examples] == [
            ("Say hello.", "", "Hello."),
            ("Say it in German.", "Hello.", "Hallo."),
            ("Count.", "", "One."),
            ("Count on.", "", "Two."),
        ]
        assert problems.total == 4 and not problems.skipped


def test_bad_instructions_are_named_and_counted(tmp_path):
    lines = [json.dumps(entry) for entry in ENTRIES + BAD_ENTRIES] + ['{"instruction": "Cou']
    (tmp_path / "bad.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\n")
    problems = Problems("instructions", max_bad=1)
    assert len(read_instructions([tmp_path / "bad.jsonl"], problems)) == 4
    assert problems.total == 12
    assert problems.places == {
        "missing output": ["bad.jsonl line 5"],
        "instruction that is no text": ["bad.jsonl line 6"],
        "empty output": ["bad.jsonl line 7"],
        "input that is no text": ["bad.jsonl line 8"],
        "entry that is no object": ["bad.jsonl line 9", "bad.jsonl line 10"],
        "malformed json line": ["bad.jsonl line 11", "bad.jsonl line 12"],
    }


def test_real_instructions(real_data):
    problems = Problems("instructions")
    assert len(read_instructions([real_data / "instructions" / "alpaca_gpt4_700.json"], problems)) == 700
    assert problems.summary() == ""
    with pytest.raises(UserError, match="more than 5% of 175 instructions are bad: 9 missing output"):
        read_instructions([real_data / "instructions" / "seed_tasks.jsonl"], Problems("instructions"))


def test_files_that_cannot_be_read_at_all(tmp_path):
    problems = Problems("instructions")
    for name, content, message in [
        ("binary.json", b"\xff\xfe\x00", "binary.json is no readable json: it is not in UTF-8"),
        ("half.json", b'[{"instruction": ', "half.json is no readable json: .*line 1 column"),
        ("object.json", b"{}", "object.json holds no json list; one object a line needs the suffix .jsonl"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_instructions([tmp_path / name], problems)


def test_a_misspelt_field_is_named(tmp_path):
    entries = [{"instruction": "Count.", "output": "One.", "source": "me"} for _ in range(40)]
    entries[3] = {"instruction": "Count.", "ouput": "One."}
    (tmp_path / "a.json").write_text(json.dumps(entries))
    problems = Problems("instructions")
    assert len(read_instructions([tmp_path / "a.json"], problems)) == 39
    assert problems.warnings == ["a.json has fields that are not read: 'source' (in 39), 'ouput' (in 1)"]
    with pytest.raises(UserError, match=r"missing output: a.json entry 3; a.json has .* 'ouput' \(in 1\); mend it"):
        read_instructions([tmp_path / "a.json"], Problems("instructions", on_error="raise"))
    (tmp_path / "a.json").write_text(json.dumps(entries[3:4] * 20))
    with pytest.raises(UserError, match=r"more than 5% of 20 .* bad: .*missing output .* 'ouput' \(in 20\); mend"):
        read_instructions([tmp_path / "a.json"], Problems("instructions"))


def test_broken_characters_do_not_reach_the_tokenizer(tmp_path):
    """A json escape of half a character: valid json, and no text that could be encoded."""
    entries = [{"instruction": "Smile.", "input": i, "output": o} for i, o in [("", "\ud83d"), ("\ud83d", "x")]]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    problems = Problems("instructions", max_bad=1)
    assert read_instructions([tmp_path / "a.json"], problems) == []
    assert list(problems.places) == ["output with broken characters", "input with broken characters"]


def test_science_questions_among_instructions(tmp_path):
    fields = {"question": "Which is soft?", "choices": ["stone", "wool"], "answer": 1, "grade": "grade2"}
    problem = fields | {"subject": "natural science", "hint": "", "lecture": "Wool bends.", "image": "image.png"}
    (tmp_path / "problems.json").write_text(json.dumps({"7": problem | {"split": "train"}, "8": {}}))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"train": ["7", "8"]}))
    (tmp_path / "a.json").write_text(json.dumps(ENTRIES))
    science = {"format": "scienceqa", "folder": str(tmp_path), "split": "train"}
    problems = Problems("instructions", max_bad=1)
    *others, last = read_instructions([science | {"prompt_format": "QCM-ALE"}, tmp_path / "a.json"], problems)
    assert [other.instruction for other in others] == [entry["instruction"].strip() for entry in ENTRIES]
    assert last.instruction.startswith("Question: Which is soft?") and "BECAUSE: Wool bends." in last.response
    assert last.image == tmp_path / "images" / "train" / "7" / "image.png"
    assert problems.total == 6 and problems.skipped == 1
    (blind,) = read_instructions([science | {"images": False}], problems)
    assert blind.image is None and blind.response == "The answer is B."


def test_the_same_question_has_one_key_in_all_files(tmp_path):
    for name, answer in (("one.json", "Two."), ("other.json", "2")):
        (tmp_path / name).write_text(json.dumps([{"instruction": "Add.", "input": i, "output": answer} for i in "ab"]))
    examples = read_instructions([tmp_path / "one.json", tmp_path / "other.json"], Problems("instructions"))
    keys = [example.key for example in examples]
    assert keys[:2] == keys[2:] and keys[0] != keys[1]
