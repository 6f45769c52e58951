"""A language model as the judge of pairs of answers, over any endpoint that speaks OpenAI's chat protocol."""

import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from typing import Any

from rich.progress import track

from lav2.errors import UserError
from lav2.evaluation.predict import Journal, digest

SYSTEM = (
    "You compare two answers to a question. Weigh how helpful, relevant, correct and detailed each is; neither their "
    "order nor mere length counts. Explain in a few sentences, then end with your verdict on a line of its own: [[A]] "
    "if the first answer is better, [[B]] if the second is better, [[tie]] if neither is."
)
VERDICT = re.compile(r"\[\[(A|B|tie)\]\]", re.IGNORECASE)
ASKED_AT_MOST = 2  # replies to one pair, if the first states no verdict
PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # HTTP states that may be gone at the next attempt
LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Pair:
    """A question with our answer and the one it is compared with."""

    id: str
    question: str
    ours: str
    other: str


@dataclass(frozen=True)
class Judgement:
    """What the judge said of a pair, shown ours first and shown the other first: ``ours``, ``other``, ``tie``, or
    ``unreadable``."""

    ours_first: str
    other_first: str

    @property
    def outcome(self) -> str:
        """``win`` or ``loss`` if both orders agree on it, ``unreadable`` if one cannot be read, otherwise ``tie``."""
        if "unreadable" in (self.ours_first, self.other_first):
            return "unreadable"
        if self.ours_first != self.other_first:
            return "tie"
        return {"ours": "win", "other": "loss", "tie": "tie"}[self.ours_first]


@dataclass(frozen=True)
class Judge:
    """An endpoint and how to ask it.

    Args:
        endpoint: the address that ``/chat/completions`` follows, such as ``https://…/v1``.
        model: the judge's name there.
        api_key_env: the environment variable with the key, which is written nowhere; ``None`` for an endpoint that
            needs none.
        max_tokens: of a reply.
        attempts, backoff: how often to ask while the endpoint is busy or failing, and the seconds before the second
            attempt; they double each time, and the endpoint's ``Retry-After`` counts if it is longer.
        timeout: seconds to wait for a reply.
    """

    endpoint: str
    model: str
    api_key_env: str | None = "OPENAI_API_KEY"
    max_tokens: int = 1024
    attempts: int = 6
    backoff: float = 2.0
    timeout: float = 120.0

    def __post_init__(self):
        address = urllib.parse.urlsplit(str(self.endpoint))
        problems = []
        if address.scheme not in ("http", "https") or not address.hostname:
            problems.append(f"eval.judge.endpoint is {self.endpoint!r}; give an address such as https://host/v1")
        elif address.scheme == "http" and self.api_key_env and address.hostname not in LOCAL:
            problems.append("eval.judge.endpoint would send the key unencrypted: use https, or api_key_env=null")
        if not self.model:
            problems.append("eval.judge.model is not set: name the judge at the endpoint")
        if self.api_key_env and not os.environ.get(self.api_key_env):
            problems.append(
                f"eval.judge: the environment variable {self.api_key_env} with the key is not set "
                "(api_key_env=null asks without a key)"
            )
        if problems:
            raise UserError("; ".join(problems))

    def judge(self, pairs: Sequence[Pair], journal: Journal) -> dict[str, Judgement]:
        """Each pair by its id, judged in both orders; a reply is journaled at once and never asked for twice.

        Raises:
            UserError: the endpoint refuses, or fails at every attempt; what is judged so far is kept.
        """
        said: dict[str, dict[bool, str]] = {pair.id: {} for pair in pairs}
        shown = [(pair, ours_first) for pair in pairs for ours_first in (True, False)]
        for pair, ours_first in track(shown, "judging"):
            first, second = (pair.ours, pair.other) if ours_first else (pair.other, pair.ours)
            messages = [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": _show(pair.question, first, second)},
            ]
            key = digest("judgement", self.model, self.max_tokens, messages)
            if key not in journal.values:
                journal.add({key: {"id": pair.id, "ours_first": ours_first, **self._verdict(messages)}})
            verdict = journal.values[key]["verdict"]
            better = {"a": "ours", "b": "other"} if ours_first else {"a": "other", "b": "ours"}
            said[pair.id][ours_first] = better.get(verdict, "unreadable" if verdict is None else "tie")
        return {id: Judgement(orders[True], orders[False]) for id, orders in said.items()}

    def _verdict(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        for _ in range(ASKED_AT_MOST):
            reply = self.ask(messages)
            if stated := VERDICT.findall(reply):
                return {"verdict": stated[-1].lower(), "reply": reply}
        return {"verdict": None, "reply": reply}

    def ask(self, messages: list[dict[str, str]]) -> str:
        """The text of one reply.

        Raises:
            UserError: see :meth:`judge`.
        """
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.max_tokens}
        headers = {"Content-Type": "application/json"}
        if self.api_key_env:
            headers["Authorization"] = f"Bearer {os.environ[self.api_key_env]}"
        request = urllib.request.Request(
            f"{self.endpoint.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        for attempt in range(self.attempts):
            wait = self.backoff * 2**attempt
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return json.loads(response.read())["choices"][0]["message"]["content"] or ""
            except urllib.error.HTTPError as error:
                fault = f"HTTP {error.code}: {error.read(300).decode(errors='replace').strip() or error.reason}"
                if error.code not in PASSING:
                    raise UserError(f"the judge at {self.endpoint} refuses: {' '.join(fault.split())}") from None
                wait = max(wait, _retry_after(error.headers))
            except (OSError, HTTPException) as error:  # no connection, a timeout, or half a reply
                fault = str(error)
            except (ValueError, LookupError, TypeError) as error:
                fault = f"a reply that is not OpenAI's chat format ({type(error).__name__}: {error})"
            if attempt + 1 < self.attempts:
                time.sleep(wait)
        raise UserError(
            f"the judge at {self.endpoint} failed {self.attempts} times, at last with {' '.join(fault.split())}: "
            "what is judged so far is kept; run the same command again to go on"
        )


def _show(question: str, first: str, second: str) -> str:
    return (
        f"Question:\n{question}\n\n--- First answer ---\n{first}\n--- End of the first answer ---\n\n"
        f"--- Second answer ---\n{second}\n--- End of the second answer ---"
    )


def _retry_after(headers: Message) -> float:
    try:
        return float(headers.get("Retry-After", 0))
    except ValueError:  # a date
        return 0.0
