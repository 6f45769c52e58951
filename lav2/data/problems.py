"""Bad samples: named, counted, and never fatal after hours."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from lav2.data.examples import Example, Fault
from lav2.errors import UserError

SHOWN = 3  # places named for each reason in the summary line


@dataclass
class Problems:
    """The record of the bad samples of one kind (``noun``, such as "captions") among ``total``.

    ``skip`` adds a sample to the record and lets the run go on, until more than ``max_bad`` of the total are bad:
    the data are not what the user thinks they are, and the run stops at once. ``raise`` stops at the first.
    """

    noun: str
    on_error: str = "skip"
    max_bad: float = 0.05
    total: int = 0
    places: dict[str, list[str]] = field(default_factory=dict)  # reason → where, one entry a thing that is wrong
    skipped: int = 0  # samples lost; a broken image may cost several captions
    warnings: list[str] = field(default_factory=list)  # lines about what costs no sample but is hardly meant

    def add(self, reason: str, where: str, samples: int = 1) -> None:
        """Record what is wrong, where, and how many samples it costs.

        Raises:
            UserError: at the first problem with ``on_error="raise"``; when too many samples are bad.
        """
        if self.on_error == "raise":
            hints = "".join(f"; {line}" for line in self.warnings)
            raise UserError(f"{reason}: {where}{hints}; mend it, or set on_error=skip to leave it out")
        self.places.setdefault(reason, []).append(where)
        self.skipped += samples
        if self.skipped > self.max_bad * self.total:
            raise UserError(
                f"more than {self.max_bad:.0%} of {self.total:,} {self.noun} are bad: "
                f"{'; '.join([self.reasons(), *self.warnings])}; mend the data or raise max_bad"
            )

    def sift(self, rows: Iterable[Example | Fault]) -> list[Example]:
        """The examples among ``rows``; the faults are recorded, after all ``rows`` have been added to the total.

        Raises:
            UserError: as :meth:`add`.
        """
        rows = list(rows)
        self.total += len(rows)
        for row in rows:
            if isinstance(row, Fault):
                self.add(row.reason, row.where)
        return [row for row in rows if isinstance(row, Example)]

    def reasons(self) -> str:
        """For example "1 broken image (photos/x.jpg), 4 empty caption (captions.json annotation 17, …)"."""
        parts = []
        for reason, places in self.places.items():
            shown = ", ".join(places[:SHOWN]) + (", …" if len(places) > SHOWN else "")
            parts.append(f"{len(places)} {reason} ({shown})")
        return ", ".join(parts)

    def summary(self) -> str:
        """One line for the user; empty when nothing is wrong."""
        return f"skipped {self.skipped:,} of {self.total:,} {self.noun}: {self.reasons()}" if self.skipped else ""
