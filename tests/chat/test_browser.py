"""The web page in a real browser: ``make test-web``. Its screenshots are left in ``outputs/test_web/``."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lav2.experts import Experts
from tests.chat.test_web import SETTINGS, Sign, config, free_port

pytestmark = pytest.mark.web
SCREENSHOTS = Path(__file__).parents[2] / "outputs" / "test_web"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
WIDTHS = {"desktop": (1280, 860), "phone": (390, 844)}
HOW = "`apt-get install chromium`, or `.venv/bin/playwright install chromium`, or name one by CHROMIUM=/path"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="`make test-web` installs playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    with playwright.sync_playwright() as driver:
        own = driver.chromium.executable_path
        found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
        if not found and not Path(own).is_file():
            pytest.skip(f"no Chromium to try the web page in: {HOW}")
        browser = driver.chromium.launch(executable_path=found or own, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(run, assistant, pictures, browser):
    pytest.importorskip("gradio", reason='the web page needs gradio: pip install -e ".[web]"')
    from lav2.chat import web

    cfg = config(run, f"web.port={free_port()}", "web.max_megabytes=1", f"web.examples={pictures[0].parent}")
    page = web.serve(assistant, Experts([Sign()]), SETTINGS | {"max_new_tokens": 180}, cfg, block=False)
    yield page.local_url
    page.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page for one more visitor, at a width; what the browser asked for elsewhere is kept."""
    contexts, elsewhere = [], []

    def visit(width="desktop"):
        size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        contexts.append(browser.new_context(viewport=size))
        page = contexts[-1].new_page()
        page.on("request", lambda asked: elsewhere.append(asked.url))
        page.goto(address)
        page.wait_for_selector("#question textarea")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [url for url in elsewhere if not url.startswith((address, "data:", "blob:"))] == []


def drop(page, picture):
    page.set_input_files("#picture input[type=file]", picture)


def ask(page, question):
    """Ask, and return the seconds until the first word of the answer."""
    before = page.locator("#chat .bot.message").count()
    page.fill("#question textarea", question)
    start = time.monotonic()
    page.press("#question textarea", "Enter")
    page.wait_for_function(
        f"() => [...document.querySelectorAll('#chat .bot.message')].slice({before}).some(one => one.innerText.trim())",
        polling=20,
    )
    return time.monotonic() - start


def answers(page, count):
    """The answers, when there are ``count`` and the last no longer grows."""
    shown, last = page.locator("#chat .bot.message"), None
    while shown.count() < count or (texts := shown.all_inner_texts()) != last or not last[-1].strip():
        last = texts if shown.count() >= count else None
        page.wait_for_timeout(500)
    return texts


@pytest.mark.parametrize("width", WIDTHS)
def test_a_picture_a_question_an_answer(visit, assistant, pictures, width):
    page = visit(width)
    drop(page, pictures[0])
    page.wait_for_selector("#chat img")
    page.wait_for_function("() => document.querySelector('#told textarea').value == 'sign: 60 wide'")
    seconds = ask(page, "What is this?")
    assert seconds < 2
    shown = answers(page, 1)
    told = {"inputs": ["sign: 60 wide"], "max_new_tokens": 180}
    expected = assistant.generate(["What is this?"], [pictures[0]], **told)
    assert [" ".join(text.split()) for text in shown] == [" ".join(text.split()) for text in expected]
    assert page.evaluate("document.documentElement.scrollWidth") == WIDTHS[width][0]  # nothing sticks out
    for part in ("#picture", "#chat", "#question", "#experts"):
        box = page.locator(part).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= WIDTHS[width][0]
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{width}.png", full_page=True)


def test_a_stopped_answer_makes_way_for_the_next(visit, pictures):
    page = visit()
    page.click("#settings button")
    page.fill("#settings input[type=number] >> nth=1", "2")  # the temperature: seldom at an end
    page.press("#settings input[type=number] >> nth=1", "Tab")
    ask(page, "Tell me everything.")
    page.click("text=Stop")
    begun = page.locator("#chat .bot.message").inner_text()
    page.wait_for_timeout(500)
    stopped = page.locator("#chat .bot.message").inner_text()
    page.wait_for_timeout(500)
    assert stopped.startswith(begun[:20]) and page.locator("#chat .bot.message").inner_text() == stopped
    assert ask(page, "And then?") < 2
    answers(page, 2)
    with page.expect_download() as download:
        page.click("text=Download")
    said = json.loads(Path(download.value.path()).read_text())[0]["conversations"]
    assert [turn["value"] for turn in said[::2]] == ["Tell me everything.", "And then?"]
    page.click("text=New")
    page.wait_for_function("() => !document.querySelector('#chat .bot.message')")


def test_two_visitors(visit, pictures):
    """Both ask at once; each has an answer to what was asked there, and nothing of the other's."""
    one, two = visit(), visit("phone")
    drop(one, pictures[0])
    one.wait_for_selector("#chat img")
    for page, question in ((one, "What is left?"), (two, "What is right?")):
        page.fill("#question textarea", question)
    for page in (one, two):
        page.press("#question textarea", "Enter")
    for page in (one, two):
        answers(page, 1)
    assert "What is right?" not in one.inner_text("#chat .user-row") and one.locator("#chat img").count() == 1
    assert two.inner_text("#chat .user-row").strip() == "What is right?" and two.locator("#chat img").count() == 0


def test_wrong_uploads_get_a_message(visit, tmp_path, pictures):
    page = visit()
    text, huge = tmp_path / "notes.png", tmp_path / "huge.png"
    text.write_text("no picture")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (800, 800, 3), np.uint8)).save(huge)
    assert huge.stat().st_size > 1_000_000
    drop(page, text)
    page.wait_for_selector("text=notes.png is no picture that can be read")
    page.wait_for_timeout(500)  # the message fades in
    page.screenshot(path=SCREENSHOTS / "no_picture.png")
    drop(page, huge)
    page.wait_for_selector("text=/too large|exceeds|maximum/i")
    page.wait_for_timeout(500)
    page.screenshot(path=SCREENSHOTS / "huge.png")
    drop(page, pictures[1])  # and it goes on
    page.wait_for_selector("#chat img")


def test_an_example_is_a_click(visit):
    page = visit("phone")
    page.click("#examples button >> nth=1")
    page.wait_for_selector("#chat img")
    page.wait_for_function("() => document.querySelector('#question textarea').value == 'Describe the scene.'")
    page.click("#experts input[type=checkbox]")  # no expert any more
    page.wait_for_function("() => document.querySelector('#told textarea').value == ''")
    page.press("#question textarea", "Enter")
    assert answers(page, 1)[0].strip()
