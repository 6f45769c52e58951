"""The web page without a browser: what it says, to whom, and what cannot be had through it."""

import json
import os
import re
import socket
import sys
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from lav2.cli import CONF, register_resolvers
from lav2.errors import UserError
from lav2.experts import Experts

ROOT = Path(__file__).parents[2]
SETTINGS = {"max_new_tokens": 16, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "seed": 0}
VALUES = (16, 0.0, 1.0, 0, 1.0, 0)  # the same, as the page's sliders give them


class Sign:
    name = "sign"

    def __call__(self, image):
        return f"{image.width} wide"


def config(run, *overrides):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("chat", [f"run={run}", "ui=web", *overrides])


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def web():
    pytest.importorskip("gradio", reason='the web page needs gradio: pip install -e ".[web]"')
    from lav2.chat import web

    return web


@pytest.fixture(scope="module")
def page(web, run, assistant, pictures, tmp_path_factory):
    experts = Experts([Sign()])
    cfg = config(run, f"web.examples={pictures[0].parent}", "web.max_megapixels=1")
    return web.Page(assistant, experts, SETTINGS, cfg, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def address(web, run, assistant):
    cfg = config(run, f"web.port={free_port()}", "web.max_megabytes=1")
    served = web.serve(assistant, Experts([]), SETTINGS, cfg, block=False)
    yield served.local_url.rstrip("/")
    served.close()


def shown(outputs):
    """The last answer that the page shows."""
    return outputs[-1][2][-1]["content"]


def test_the_page_gives_the_assistant_s_answers(page, assistant, pictures):
    session, _, messages, told = page.show(None, (str(pictures[0]), "first.png"), ["sign"])
    assert told == "sign: 60 wide" and messages[-1]["content"]["path"] == str(pictures[0])
    outputs = list(page.answer(session, "What is this?", ["sign"], *VALUES))
    expected = assistant.generate(["What is this?"], [pictures[0]], inputs=["sign: 60 wide"], **SETTINGS)
    assert [shown(outputs)] == expected and len(outputs) > 3
    saved = json.loads(Path(outputs[-1][5]["value"]).read_text())
    assert [turn["value"] for turn in saved[0]["conversations"]] == ["What is this?", *expected]
    assert page.choose(session, [])[1] == ""  # nobody is asked any more
    assert "sign" not in str(list(page.answer(session, "And now?", [], *VALUES))[-1][2][-1])
    assert session.conversation.exchanges[1].context == ""


def test_visitors_do_not_mix(page, pictures):
    """Two answers that grow at the same time, each from its own conversation, as if nobody else were there."""

    def begun(picture):
        return page.show(None, (str(picture), "a.png"), [])[0]

    def answers(sessions, *questions):
        growing = [page.answer(*one, [], 16, 2.0, *VALUES[2:]) for one in zip(sessions, questions, strict=True)]
        outputs = list(zip(*zip_longest(*growing), strict=True))
        return [shown([one for one in each if one]) for each in outputs]

    apart = []
    for picture, question in zip(pictures, ("What is left?", "What is right?"), strict=True):
        session = begun(picture)
        apart.append([*answers([session], "Hello."), *answers([session], question)])
    sessions = [begun(picture) for picture in pictures]
    together = [answers(sessions, "Hello.", "Hello."), answers(sessions, "What is left?", "What is right?")]
    assert list(map(list, zip(*together, strict=True))) == apart
    assert apart[0][1] != apart[1][1]


def test_a_new_conversation_knows_nothing(page, pictures):
    session, *_ = page.show(None, (str(pictures[0]), "a.png"), [])
    list(page.answer(session, "Hello.", [], *VALUES))
    fresh, picture, messages, *_ = page.begin_anew([])
    assert fresh.conversation.exchanges == [] and picture is None and messages == []
    assert len(session.conversation.exchanges) == 1


def test_what_is_no_picture_is_said(page, pictures, tmp_path):
    text, cut, large = tmp_path / "a.txt", tmp_path / "b.png", tmp_path / "c.png"
    text.write_text("no picture")
    Image.fromarray(np.zeros((1100, 1000, 3), np.uint8)).save(large)
    cut.write_bytes(pictures[0].read_bytes()[:800])
    for path, message in (
        (text, "a.txt is no picture that can be read; try JPEG, PNG or WebP"),
        (cut, "b.png is no picture that can be read"),
        (large, "c.png has 1.1 megapixels; a picture can have 1 here"),
    ):
        with pytest.warns(UserWarning, match=re.escape(message)):  # to a browser it is sent as a message
            session, picture, *_ = page.show(None, (str(path), path.name), [])
        assert picture is None and session.conversation.image is None
    with pytest.warns(UserWarning, match="the question is empty"):
        list(page.answer(session, " ", [], *VALUES))


def test_examples_are_copies(page, web, run, pictures, tmp_path):
    assert [question for _, question in page.examples] == ["Describe the scene."] * 2
    session, picture, *_, question = page.show_example(None, 1, [])
    assert question == "Describe the scene." and Path(picture).parent == page.folder
    assert np.array_equal(session.conversation.image, Image.open(pictures[1]))

    (tmp_path / "evaluation" / "coco").mkdir(parents=True)
    asked = [(pictures[0], "One?"), (pictures[0], "Two?"), (pictures[1], "One?"), (tmp_path / "gone.png", "Three?")]
    lines = [json.dumps({"image": str(path), "prompt": question}) for path, question in asked]
    (tmp_path / "evaluation" / "coco" / "predictions.jsonl").write_text("\n".join([*lines, '{"prompt": "Four?"}']))
    assert web.find_examples(tmp_path, None, "") == [(pictures[0], "One?"), (pictures[1], "One?")]
    assert web.find_examples(run, None, "") == []
    with pytest.raises(UserError, match="no picture in it"):
        web.find_examples(run, ROOT / "conf", "")


@pytest.mark.parametrize(
    "path",
    [
        "{api}/file={root}/pyproject.toml",
        "{api}/file=pyproject.toml",
        "{api}/file={picture}",
        "{api}/file={folder}/../../{root}/pyproject.toml",
        "{api}/file=..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        "{api}/file=file:///etc/passwd",
        "{api}/file=/proc/self/environ",
        "file=/etc/passwd",
        "static/../../../../../../etc/passwd",
        "assets/..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
    ],
)
def test_no_other_file_is_read_through_it(address, pictures, path):
    import httpx

    folder = os.environ["GRADIO_TEMP_DIR"]
    path = path.format(api="gradio_api", root=ROOT, picture=pictures[0], folder=folder)
    with socket.create_connection(address.removeprefix("http://").split(":")) as one:  # no client mends the path
        one.sendall(f"GET /{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: one.recv(65536), b""))
    assert answer.split()[1] in (b"403", b"404"), answer[:300]
    assert httpx.get(address).status_code == 200


def test_no_other_file_is_shown_to_the_model(address, pictures):
    """A visitor who writes the page's requests by hand names a file that was never uploaded."""
    import httpx

    picture = {"path": str(pictures[0]), "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    api = f"{address}/gradio_api"
    show = next(one for one in httpx.get(f"{address}/config").json()["dependencies"] if one["api_name"] == "show")
    call = {"data": [None, picture, []], "fn_index": show["id"], "session_hash": "visitor"}
    httpx.post(f"{api}/queue/join", json=call).raise_for_status()
    with httpx.stream("GET", f"{api}/queue/data?session_hash=visitor", timeout=30) as events:
        said = [json.loads(line[6:]) for line in events.iter_lines() if line.startswith("data: ")]
    done = next(one for one in said if one["msg"] == "process_completed")
    assert done["success"] is False and "chatbot" not in str(done)


def test_a_huge_upload_is_refused(address):
    import httpx

    files = {"files": ("huge.png", b"\0" * 2_000_000, "image/png")}
    assert httpx.post(f"{address}/gradio_api/upload", files=files).status_code == 413


def test_the_page_is_offline(address):
    """Neither the page nor its style asks for anything elsewhere; what the browser asks for, make test-web sees."""
    import httpx

    settings = httpx.get(f"{address}/config").json()
    assert settings["analytics_enabled"] is False and not settings.get("footer_links")
    assert "fonts.googleapis.com" not in httpx.get(f"{address}/theme.css").text


def test_a_taken_port_is_one_line(web, run, assistant):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot open the page at 127.0.0.1:{port}: .*; choose another web.port"):
            web.serve(assistant, Experts([]), SETTINGS, config(run, f"web.port={port}"), block=False)


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "lav2.chat.web", raising=False)
    with pytest.raises(UserError, match=re.escape('pip install -e ".[web]"')):
        import lav2.chat.web  # noqa: F401
