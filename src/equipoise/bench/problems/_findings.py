"""What is found about a problem, collected part by part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from equipoise.bench.problems._errors import MisfitError, ProblemCodeError, explain


@dataclass(frozen=True)
class Finding:
    """What was found about one part of a problem.

    Attributes:
        level: "fine", "doubtful" (it trains, perhaps not what is meant) or "wrong" (it cannot be trained or compared).
        part: which part of the problem.
        message: what was found and, unless it is fine, what to do.
    """

    level: Literal["fine", "doubtful", "wrong"]
    part: str
    message: str


class StopError(Exception):
    """What comes next needs what was found to be wrong."""


@dataclass
class Findings:
    """What was found so far."""

    found: list[Finding] = field(default_factory=list)

    def fine(self, part: str, message: str) -> None:
        """Adds what is as it should be."""
        self.found.append(Finding("fine", part, message))

    def doubtful(self, part: str, message: str) -> None:
        """Adds what may not be meant."""
        self.found.append(Finding("doubtful", part, message))

    def wrong(self, part: str, message: str) -> None:
        """Adds what cannot be trained or compared."""
        self.found.append(Finding("wrong", part, message))

    def stop_if_wrong(self) -> None:
        """Ends what looks at the problem, where something was found to be wrong.

        Raises:
            StopError: something was.
        """
        if any(finding.level == "wrong" for finding in self.found):
            raise StopError

    @contextmanager
    def part(self, name: str, predictions: Any = None, batch: Any = None) -> Iterator[None]:
        """Takes an error in a person's code as a finding about the part.

        Args:
            name: the part.
            predictions: as for `problem_code`.
            batch: as for `problem_code`.

        Raises:
            StopError: there was an error.
        """
        try:
            yield
        except StopError:
            raise
        except Exception as error:
            said = error if isinstance(error, ProblemCodeError) else explain(error, "", predictions, batch)
            if isinstance(said, MisfitError):
                self.wrong(said.part, said.sentence)
            else:
                self.wrong(name, f"{said.what} ({said.place}: {said.code}){f'. {said.hint}' if said.hint else ''}")
            raise StopError from error
