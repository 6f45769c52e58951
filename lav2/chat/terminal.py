"""A conversation in the terminal, or with a script that writes questions to stdin and reads answers from stdout."""

import glob
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from lav2.chat.conversation import Conversation
from lav2.errors import UserError

HELP = """Ask anything; Ctrl-C stops an answer, Ctrl-D leaves.
/image PATH      talk about this picture from here on
/experts         what the experts say about the picture; /experts NAME, NAME asks these alone, /experts none nobody
/reset           forget what was said, and the picture
/save [PATH]     write the conversation to a file (ShareGPT's format)
/help            this list
/quit            leave"""


class Terminal:
    """Reads lines, does what commands say, and prints answers as they come.

    With a person at the terminal, mistakes are one line and the conversation goes on. Elsewhere nothing but answers
    goes to stdout, notes go to stderr, and a mistake ends the program: a script's next questions rely on what failed.

    Args:
        conversation: with whom.
        settings: of the generation.
    """

    def __init__(self, conversation: Conversation, settings: Mapping[str, Any]):
        self.conversation, self.settings = conversation, dict(settings)
        self.everybody = conversation.experts
        self.saved: set[Path] = set()
        self.person = sys.stdin.isatty() and sys.stdout.isatty()
        self.commands = {
            "/image": self.image,
            "/experts": self.experts,
            "/reset": self.reset,
            "/save": self.save,
            "/help": lambda _: self.tell(HELP),
        }

    def run(self) -> None:
        """Until ``/quit`` or the end of the input.

        Raises:
            UserError: a mistake in a script's line.
        """
        if self.person:
            self.tell("/help lists the commands.")
        for line in self.lines():
            if line == "/quit":
                return
            try:
                self.answer(line)
            except UserError as error:
                if not self.person:
                    raise
                self.tell(f"error: {error}")

    def lines(self) -> Iterator[str]:
        """What the user writes, without empty lines."""
        if not self.person:
            yield from filter(None, map(str.strip, sys.stdin))
            return
        edit_lines([*self.commands, "/quit"])
        while True:
            try:
                line = input("> ").strip()
            except KeyboardInterrupt:
                self.tell("\n/quit or Ctrl-D leaves.")
                continue
            except EOFError:
                print()
                return
            if line:
                yield line

    def answer(self, line: str) -> None:
        """Do what a command says, or answer a question."""
        name, _, argument = line.partition(" ")
        try:
            if name in self.commands:
                self.commands[name](argument.strip())
            elif name.startswith("/"):
                raise UserError(f"there is no command {name}; /help lists them")
            else:
                self.ask(line)
        except KeyboardInterrupt:
            if not self.person:
                raise
            print(" [stopped]")

    def ask(self, question: str) -> None:
        with closing(self.conversation.ask(question, **self.settings)) as pieces:
            if self.conversation.note:
                self.tell(f"({self.conversation.note})")
            for piece in pieces:
                print(piece, end="", flush=True)
        print(flush=True)

    def image(self, path: str) -> None:
        if not path:
            raise UserError("/image needs the path of a picture")
        self.conversation.show(Path(path).expanduser())
        if self.person:
            self.tell(f"(from here on about {self.conversation.picture})")

    def experts(self, names: str) -> None:
        """Choose among the experts, and tell what those chosen say about the picture."""
        known = [expert.name for expert in self.everybody.experts]
        if not known:
            raise UserError("no experts are here; start with some, such as experts=[caption,ocr]")
        if names:
            self.conversation.use(self.everybody.only([] if names == "none" else names.split(",")))
        asked = [expert.name for expert in self.conversation.experts.experts]
        said = self.conversation.consult()
        for name in known:
            if name not in asked:
                text = "(not asked)"
            elif self.conversation.image is None:
                text = "(no picture yet)"
            elif name in said.failures:
                text = f"(failed: {said.failures[name]})"
            else:
                text = said.texts[name] or "(nothing)"
            self.tell(f"{name}: {text}")

    def reset(self, _: str) -> None:
        self.conversation.reset()

    def save(self, path: str) -> None:
        where = Path(path).expanduser() if path else Path(time.strftime("conversation_%Y-%m-%d_%H-%M-%S.json"))
        if where.exists() and where not in self.saved:
            raise UserError(f"{where} exists: choose another name")
        self.conversation.save(where)
        self.saved.add(where)
        self.tell(f"saved as {where}")

    def tell(self, text: str) -> None:
        """What is no answer."""
        print(text, file=sys.stdout if self.person else sys.stderr, flush=True)


def edit_lines(commands: Sequence[str]) -> None:
    """Give ``input`` its arrow keys, a history, and completion of commands and paths, where the system has them."""
    try:
        import readline
    except ImportError:  # Windows
        return

    def complete(text: str, state: int) -> str | None:
        paths = [path + "/" * Path(path).is_dir() for path in glob.glob(glob.escape(text) + "*")]
        found = paths if readline.get_begidx() else [name for name in commands if name.startswith(text)]
        return found[state] if state < len(found) else None

    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
