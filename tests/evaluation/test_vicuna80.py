"""The judge against a stand-in endpoint on this machine: both orders, bias of position, errors, nothing paid twice."""

import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lav2.errors import UserError
from lav2.evaluation import judge as judge_module
from lav2.evaluation import run
from lav2.evaluation.judge import Judge, Judgement, Pair
from lav2.evaluation.predict import Journal
from lav2.evaluation.run import evaluate
from lav2.evaluation.vicuna80 import comparison, position_bias, read_answers, read_questions
from tests.evaluation.conftest import composed

KEY = "not-a-real-key-5309"
ANSWERS = re.compile(
    r"Question:\n(.*)\n\n--- First answer ---\n(.*)\n--- End of the first answer ---\n\n"
    r"--- Second answer ---\n(.*)\n--- End of the second answer ---",
    re.DOTALL,
)


class Endpoint(ThreadingHTTPServer):
    """Speaks OpenAI's chat protocol. ``reply(question, first, second)`` is what the judge says; ``faults`` are taken
    one a request before it says anything: an HTTP status, or bytes to send as the body."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.faults = longer, []
        self.requests: list[dict] = []  # those that were answered, and so paid
        self.received = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.received += 1
        assert self.path == "/v1/chat/completions" and body["temperature"] == 0 and body["model"] == "stand-in"
        if self.headers["Authorization"] != f"Bearer {KEY}":
            return self.send(401, b'{"error": {"message": "Incorrect API key provided"}}')
        fault = self.server.faults.pop(0) if self.server.faults else None
        if isinstance(fault, int):
            return self.send(fault, b'{"error": {"message": "busy"}}')
        if isinstance(fault, bytes):
            return self.send(200, fault)
        self.server.requests.append(body)
        text = self.server.reply(*ANSWERS.fullmatch(body["messages"][1]["content"]).groups())
        self.send(200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode())

    def send(self, status: int, body: bytes):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", "0.3")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def longer(question, first, second):
    """A judge without bias: the longer answer is better."""
    return f"So be it. [[{'A' if len(first) > len(second) else 'B' if len(first) < len(second) else 'tie'}]]"


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("LAV2_TEST_KEY", KEY)
    server = Endpoint()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The seconds the judge would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(judge_module.time, "sleep", slept.append)
    return slept


@pytest.fixture
def judge(endpoint) -> Judge:
    return Judge(endpoint.address, "stand-in", "LAV2_TEST_KEY", attempts=3, backoff=0.1, timeout=5)


PAIRS = [
    Pair(str(n), f"Question {n}?", "x" * length, "y" * other)
    for n, (length, other) in enumerate([(9, 3), (2, 8), (5, 5), (7, 1)])
]


def outcomes(judgements) -> list[str]:
    return [judgement.outcome for judgement in judgements.values()]


def test_a_fair_judge(judge, endpoint, tmp_path):
    judgements = judge.judge(PAIRS, Journal(tmp_path / "j.jsonl"))
    assert outcomes(judgements) == ["win", "loss", "tie", "win"] and len(endpoint.requests) == 8
    scores = comparison(list(judgements.values()))
    assert (scores["win"], scores["tie"], scores["loss"]) == (2, 1, 1)
    assert scores["win_rate"] == 2.5 / 4 and scores["agreement"] == 1 and scores["first_preferred"] == 0.5
    assert "no bias" in position_bias(scores)


@pytest.mark.parametrize(("letter", "side", "preferred"), [("A", "first", 1.0), ("B", "second", 0.0)])
def test_a_biased_judge_decides_nothing(judge, endpoint, tmp_path, letter, side, preferred):
    endpoint.reply = lambda *_: f"[[{letter}]]"
    judgements = judge.judge(PAIRS, Journal(tmp_path / "j.jsonl"))
    assert outcomes(judgements) == ["tie"] * 4
    scores = comparison(list(judgements.values()))
    assert scores["first_preferred"] == preferred and scores["agreement"] == 0
    assert position_bias(scores) == f"biased towards the answer shown {side}"


def test_errors_that_pass_are_waited_for(judge, endpoint, waits, tmp_path):
    """A busy and a failing endpoint, a reply that is no JSON, one without choices: asked again after longer waits."""
    endpoint.faults = [429, 500]
    good = endpoint.reply

    def faulty(*shown):
        if len(endpoint.requests) == 1:
            endpoint.faults = [b"<html>", b'{"choices": []}']
        return good(*shown)

    endpoint.reply = faulty
    judgements = judge.judge(PAIRS[:2], Journal(tmp_path / "j.jsonl"))
    assert outcomes(judgements) == ["win", "loss"] and endpoint.received == 8
    # 0.3 is what the endpoint's Retry-After said
    assert waits == pytest.approx([0.3, 0.2, 0.1, 0.2])


def test_a_judge_that_fails_for_good_is_asked_no_further(judge, endpoint, waits, tmp_path):
    """What is judged by then is kept: the next run asks for the rest alone, and a third one for nothing."""
    journal = tmp_path / "j.jsonl"
    good = endpoint.reply

    def failing(*shown):
        if len(endpoint.requests) == 4:
            endpoint.faults = [500] * 3
        return good(*shown)

    endpoint.reply = failing
    with pytest.raises(
        UserError, match=r"failed 3 times, at last with HTTP 500: .*busy.*what is judged so far is kept"
    ):
        judge.judge(PAIRS, Journal(journal))
    assert len(Journal(journal).values) == 4 and len(waits) == 2
    endpoint.reply = good
    assert outcomes(judge.judge(PAIRS, Journal(journal))) == ["win", "loss", "tie", "win"]
    assert len(endpoint.requests) == 8
    received = endpoint.received
    judge.judge(PAIRS, Journal(journal))
    assert endpoint.received == received
    judge.judge([Pair("0", "Question 0?", "another answer", "yyy")], Journal(journal))
    assert endpoint.received == received + 2  # keyed by the content, not by the number


def test_an_endpoint_that_is_gone(waits, monkeypatch, tmp_path):
    monkeypatch.setenv("LAV2_TEST_KEY", KEY)
    gone = Judge("http://127.0.0.1:9/v1", "stand-in", "LAV2_TEST_KEY", attempts=2)
    with pytest.raises(UserError, match=r"failed 2 times, at last with .*refused"):
        gone.judge(PAIRS, Journal(tmp_path / "j.jsonl"))
    assert waits == [2.0]


def test_a_refusal_is_not_repeated(judge, endpoint, waits, monkeypatch, tmp_path):
    monkeypatch.setenv("LAV2_TEST_KEY", "wrong")
    with pytest.raises(UserError, match="refuses: HTTP 401: .*Incorrect API key") as error:
        judge.judge(PAIRS, Journal(tmp_path / "j.jsonl"))
    assert endpoint.received == 1 and not waits and "wrong" not in str(error.value)


def test_a_reply_without_a_verdict_is_counted(judge, endpoint, tmp_path):
    """Asked for once more, then kept as unreadable: neither won nor lost, and not paid for again."""

    def hesitant(question, first, second):
        return "Hard to say." if question == "Question 1?" else longer(question, first, second)

    endpoint.reply = hesitant
    judgements = judge.judge(PAIRS, Journal(tmp_path / "j.jsonl"))
    assert outcomes(judgements) == ["win", "unreadable", "tie", "win"] and len(endpoint.requests) == 6 + 4
    scores = comparison(list(judgements.values()))
    assert scores["unreadable"] == 1 and scores["win_rate"] == 2.5 / 3
    judge.judge(PAIRS, Journal(tmp_path / "j.jsonl"))
    assert len(endpoint.requests) == 10


def test_the_last_verdict_counts(judge, endpoint, tmp_path):
    endpoint.reply = lambda *_: "One might say [[A]], but no.\n\n[[Tie]]"
    assert judge.judge(PAIRS[:1], Journal(tmp_path / "j.jsonl")) == {"0": Judgement("tie", "tie")}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"endpoint": "api.host/v1"}, "endpoint is 'api.host/v1'"),
        ({"endpoint": "http://far.host/v1"}, "would send the key unencrypted"),
        ({"model": None}, "judge.model is not set"),
        ({"api_key_env": "LAV2_NO_SUCH_KEY"}, "LAV2_NO_SUCH_KEY with the key is not set"),
    ],
)
def test_wrong_settings(monkeypatch, settings, message):
    monkeypatch.setenv("LAV2_TEST_KEY", KEY)
    good = {"endpoint": "https://far.host/v1", "model": "judge", "api_key_env": "LAV2_TEST_KEY"}
    Judge(**good)
    with pytest.raises(UserError, match=message):
        Judge(**good | settings)


def vicuna(run_folder, questions, reference, endpoint=None, *more):
    judged = [
        f"eval.judge.endpoint={endpoint.address if endpoint else 'null'}",
        "eval.judge.model=stand-in",
        "eval.judge.api_key_env=LAV2_TEST_KEY",
    ]
    paths = [f"paths.questions={questions}", f"paths.reference={reference}"]
    return composed(f"run={run_folder}", "eval=vicuna80", *paths, *judged, "eval.generation.max_new_tokens=12", *more)


def test_the_80_questions(run_folder, real_data, endpoint, capsys):
    """From the tiny model's answers to win, tie and loss by category, against real reference answers."""
    folder = real_data / "eval" / "vicuna80"
    cfg = vicuna(run_folder, folder / "question.jsonl", folder / "answer_alpaca-13b.jsonl", endpoint)
    scores = evaluate(cfg)
    out = run_folder / "evaluation" / "vicuna80"
    answers, others = read_answers(out / "answers.jsonl"), read_answers(folder / "answer_alpaca-13b.jsonl")
    wins = sum(len(answers[id]) > len(others[id]) for id in answers)
    assert len(answers) == 80 == scores["win"] + scores["tie"] + scores["loss"] and scores["win"] == wins
    assert scores["first_preferred"] == 0.5 and len(endpoint.requests) == 160
    printed = capsys.readouterr().out
    for category in ("generic", "fermi", "math", "all"):
        assert re.search(rf"{category} +\d+ +\d+ +\d+ +0", printed)
    lines = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    assert Counter(line["ours_first"] for line in lines)["other"] == scores["loss"]
    for file in out.iterdir():
        assert KEY not in file.read_text()
    assert evaluate(cfg) == scores and len(endpoint.requests) == 160


def test_without_an_endpoint_only_answers(run_folder, real_data, endpoint):
    questions = real_data / "eval" / "vicuna80" / "question.jsonl"
    scores = evaluate(vicuna(run_folder, questions, "null"))
    assert scores == {"split": "question", "questions": 80, "empty": scores["empty"]} and endpoint.received == 0
    out = run_folder / "evaluation" / "vicuna80"
    assert not (out / "judgements.jsonl").exists() and "no judge was asked" in (out / "report.html").read_text()
    answers = read_answers(out / "answers.jsonl")
    # one run's answers are another's reference: compared with itself, every pair is a tie
    again = vicuna(run_folder, questions, out / "answers.jsonl", endpoint)
    assert evaluate(again)["tie"] == 80 == len(answers)


def test_questions_and_answers_in_their_published_forms(real_data, tmp_path):
    folder = real_data / "eval" / "vicuna80"
    questions = read_questions(folder / "question.jsonl")
    assert len(questions) == 80 and questions["1"] == ("generic", "How can I improve my time management skills?")
    assert len(read_answers(folder / "reference_gpt-4.jsonl")) == 10  # in the form of choices and turns
    (tmp_path / "old.jsonl").write_text('{"question_id": 3, "text": "Why?", "category": "fermi"}\n\n')
    assert read_questions(tmp_path / "old.jsonl") == {"3": ("fermi", "Why?")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question_id": 1, "text": "a"}\n{"question_id": 1, "text": "b"}', "line 2: question 1 comes twice"),
        ('{"id": 1}', 'line 1 is no JSON object with a "question_id"'),
        ('{"question_id": 1}', 'question 1: neither "text" nor "turns"'),
        ("", "is empty"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    (tmp_path / "file.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        read_questions(tmp_path / "file.jsonl")


def test_missing_reference_answers_show_before_weights_are_read(run_folder, endpoint, tmp_path, monkeypatch):
    lines = [json.dumps({"question_id": n, "turns": ["Why?"]}) for n in range(3)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    (tmp_path / "a.jsonl").write_text('{"question_id": 1, "text": "So."}')
    monkeypatch.setattr(run, "load", None)
    with pytest.raises(UserError, match="has no answer to the questions 0, 2"):
        evaluate(vicuna(run_folder, tmp_path / "q.jsonl", tmp_path / "a.jsonl", endpoint))
