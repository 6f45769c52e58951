"""``chat.py``: fed by a script, and at a terminal with a person's keys."""

import contextlib
import io
import os
import pty
import re
import runpy
import select
import signal
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from lav2.chat import Conversation
from lav2.chat.run import chat
from lav2.chat.terminal import Terminal
from lav2.cli import CONF, register_resolvers
from lav2.errors import UserError

ROOT = Path(__file__).parents[2]
SETTINGS = {"max_new_tokens": 12}


def script(assistant, monkeypatch, lines, experts=()):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    conversation = Conversation(assistant, experts)
    Terminal(conversation, SETTINGS).run()
    return conversation


def test_a_script_reads_answers_and_nothing_else(assistant, monkeypatch, capsys, pictures, tmp_path):
    saved = tmp_path / "talk.json"
    lines = [f"/image {pictures[0]}", "What is this?", "", f"/image {pictures[1]}", "And this?", "/experts none"]
    lines += [f"/save {saved}", "/help", "/reset", "What is this?", "/quit", "never asked"]
    with pytest.raises(UserError, match="no experts are here"):
        script(assistant, monkeypatch, lines)
    first = capsys.readouterr().out
    lines.remove("/experts none")
    conversation = script(assistant, monkeypatch, lines)
    out, notes = capsys.readouterr()
    assert out.startswith(first) and len(conversation.exchanges) == 1  # after /reset
    assert out.splitlines()[0] == assistant.generate(["What is this?"], [pictures[0]], **SETTINGS)[0].splitlines()[0]
    assert out.endswith(assistant.generate(["What is this?"], **SETTINGS)[0] + "\n")
    assert "\x1b" not in out and ">" not in first and "saved as" in notes and "/reset" in notes and saved.is_file()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/picture cat.jpg", "there is no command /picture; /help lists them"),
        ("/image", "/image needs the path of a picture"),
        ("/image nowhere.png", "cannot read the image nowhere.png"),
        (f"/save {__file__}", "exists: choose another name"),
        ("/save", "nothing was said yet"),
    ],
)
def test_a_script_ends_at_its_first_mistake(assistant, monkeypatch, capsys, line, message):
    with pytest.raises(UserError, match=message):
        script(assistant, monkeypatch, [line, "What is this?"])
    assert capsys.readouterr().out == ""


def test_experts_are_chosen_and_shown(assistant, monkeypatch, capsys, pictures):
    def one(text):
        return lambda image: text

    ocr, tags = one("EXIT"), one("")
    ocr.name, tags.name = "text in the image", "tags"
    lines = ["/experts", f"/image {pictures[0]}", "/experts", "/experts tags", "/experts none", "What is this?"]
    conversation = script(assistant, monkeypatch, lines, [ocr, tags])
    _, notes = capsys.readouterr()
    shown = re.findall("text in the image: (.*)\ntags: (.*)", notes)
    assert shown == [
        ("(no picture yet)",) * 2,
        ("EXIT", "(nothing)"),
        ("(not asked)", "(nothing)"),
        ("(not asked)",) * 2,
    ]
    assert conversation.exchanges[0].context == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run=nowhere/at-all"], "run=nowhere/at-all: no adapter there"),
        (["dtype=int8"], "dtype is 'int8'"),
        (["quantize=int3"], "quantize is 'int3'; choose trained, null or one of int8, nf4"),
        (["image=nowhere.png"], "cannot read the image nowhere.png"),
        (["ui=window"], "ui is 'window'; choose one of terminal, web"),
        (["turns=-1"], "turns is -1"),
        (["generation.temperature=hot"], "temperature is 'hot'"),
        (["+generation.num_beams=2"], "beam search cannot be streamed"),
        (["generation.max_new_tokens=256"], "max_new_tokens is 256, but this model reads 256 tokens"),
        (["base=nowhere/base"], "no base model at nowhere/base"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_mistakes_are_found_before_the_model_is_read(run, monkeypatch, arguments, message):
    monkeypatch.setattr("lav2.inference.load_llama", lambda *_: pytest.fail("the weights were read"))
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("chat", [f"run={run}", *arguments])
    with pytest.raises(UserError, match=re.escape(message)):
        chat(cfg)


class Keyboard:
    """``chat.py`` at a terminal of its own, in a fork of this process, which has torch already."""

    def __init__(self, *arguments):
        self.program, self.terminal = pty.fork()
        if self.program == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
            sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
            sys.argv = ["chat.py", *arguments]
            code = 1
            with contextlib.suppress(SystemExit):
                runpy.run_path(str(ROOT / "chat.py"), run_name="__main__")
                code = 0
            os._exit(code)
        self.seen = ""

    def wait_for(self, pattern, seconds=60):
        """What the screen shows, since the last call, up to and with a match of ``pattern``."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, f"{pattern!r} never came; the screen shows {self.seen!r}"
            if select.select([self.terminal], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # what Linux raises when the program has ended
                    self.seen += os.read(self.terminal, 4096).decode(errors="replace")
        text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return text

    def press(self, keys):
        os.write(self.terminal, keys.encode())

    def interrupt_until(self, pattern):
        """Ctrl-C, again where it comes while readline is at work, which does not look for signals then."""
        for _ in range(9):
            self.press("\x03")
            with contextlib.suppress(AssertionError):
                return self.wait_for(pattern, seconds=3)
        return self.wait_for(pattern)


def test_a_person_at_a_terminal(run, pictures, tmp_path):
    talkative = ["generation.max_new_tokens=180", "generation.temperature=2"]
    keyboard = Keyboard(f"run={run}", f"image={pictures[0]}", *talkative)
    try:
        keyboard.wait_for("> $")
        keyboard.press("What is this?\r")
        keyboard.wait_for(r"What is this\?\r\n")
        keyboard.wait_for(r"\w+ \w+")
        keyboard.press("\x03")  # Ctrl-C: the answer stops, the program goes on
        keyboard.wait_for(r"\[stopped\]")
        keyboard.wait_for("> $")
        keyboard.press("/image nowhere.png\r")
        keyboard.wait_for("error: cannot read the image nowhere.png")
        keyboard.wait_for("> $")
        keyboard.press("\x1b[A\x1b[A")  # twice the arrow key
        keyboard.wait_for(r"What is this\?$")
        keyboard.interrupt_until("/quit or Ctrl-D leaves")
        keyboard.wait_for("> $")
        keyboard.press(f"/save {tmp_path / 'talk.json'}\r")
        keyboard.wait_for("saved as")
        keyboard.wait_for("> $")
        keyboard.press("\x04")
        assert os.waitpid(keyboard.program, 0)[1] == 0
        assert "What is this?" in (tmp_path / "talk.json").read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(keyboard.program, signal.SIGKILL)
