"""Errors in a person's own code: where in the file they came from, and what was expected there."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from equipoise.bench.errors import BenchError
from equipoise.bench.problems._base import Task

LIBRARY = Path(__file__).parents[2]
"""Where equipoise is."""

NOT_OWN = (LIBRARY, *(Path(sysconfig.get_paths()[kind]) for kind in ("stdlib", "platstdlib", "purelib", "platlib")))
"""Where no person's own code is."""


class ProblemCodeError(BenchError):
    """Something went wrong in a problem's code, or a method's; the message is a line.

    Args:
        what: what was found.
        place: where, as "FILE, line N".
        code: what stands there.
        hint: what was expected; empty where that is not known.
    """

    def __init__(self, what: str, place: str, code: str = "", hint: str = "") -> None:
        super().__init__(what, place, code, hint)
        self.what, self.place, self.code, self.hint = what, place, code, hint

    def __str__(self) -> str:
        return f"{self.what} ({self.place}){f'. {self.hint}' if self.hint else ''}"

    @property
    def block(self) -> str:
        """All that is known, a few lines."""
        return "\n".join([self.what, f"  {self.place}", *(f"    {line}" for line in [self.code] if line), *self._hint])

    @property
    def _hint(self) -> list[str]:
        return [f"  {self.hint}"] if self.hint else []


class problem_code:  # noqa: N801  # used as a statement
    """A context in which a problem's code is called: what it raises becomes a `ProblemCodeError`.

    Args:
        doing: what is being done, as "the loss of task 'depth'".
        predictions, batch: what the code was given, to name what is in it where something is missing.

    Example:
        >>> from equipoise.bench.problems._errors import problem_code
        >>> with problem_code("the loss of task 'b'", predictions={"a": 1}, batch={"b": 2}):  # doctest: +SKIP
        ...     task.loss(predictions, batch)
    """

    def __init__(self, doing: str, predictions: Any = None, batch: Any = None) -> None:
        self._doing, self._predictions, self._batch = doing, predictions, batch

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, (StopIteration, BenchError)):
            return
        place, code = place_of(error)
        said = (str(error).splitlines() or [""])[0]
        what = f"{kind.__name__ if kind else ''}: {said} in {self._doing}"
        raise ProblemCodeError(what, place, code, self._missing(error)) from error

    def _missing(self, error: Exception) -> str:
        """What there is, where a name was asked for that is not there."""
        if not isinstance(error, KeyError) or len(error.args) != 1:
            return ""
        (key,) = error.args
        lacking = [
            f"{says} no {key!r}; {it}: {', '.join(map(str, given)) or 'nothing'}."
            for given, says, it in (
                (self._predictions, "The network predicts", "it predicts"),
                (self._batch, "The batch has", "it has"),
            )
            if isinstance(given, Mapping) and key not in given
        ]
        return " ".join(lacking)


def in_own_code(error: Exception) -> ProblemCodeError | None:
    """Returns what is said of an error that came out of the person's own code; None if it did not."""
    if isinstance(error, ProblemCodeError):
        return error
    if not _own_frames(error):
        return None
    return ProblemCodeError(f"{type(error).__name__}: {error}".splitlines()[0], *place_of(error))


def place_of(error: BaseException) -> tuple[str, str]:
    """Returns where in the person's own file an error came from, else in equipoise: "FILE, line N", and the code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = _own_frames(error)
    library = [frame for frame in frames if Path(frame.filename).is_relative_to(LIBRARY)]
    frame = (own or library or frames)[-1]
    return f"{_shown(Path(frame.filename))}, line {frame.lineno}", frame.line or ""


def check_computed(task: Task, computed: Mapping[str, Any]) -> None:
    """Checks that a task's metrics compute its measures.

    Raises:
        ProblemCodeError: one is not there.
    """
    lacking = [repr(measure.name) for measure in task.measures if measure.name not in computed]
    if lacking:
        code = inspect.unwrap(type(task).metrics).__code__
        raise ProblemCodeError(
            f"Task {task.name!r} has the measure {', '.join(lacking)}",
            f"{_shown(Path(code.co_filename))}, line {code.co_firstlineno}",
            hint=f"`metrics()` computes no {', '.join(lacking)}; it computes: {', '.join(computed) or 'nothing'}.",
        )


def _own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    return [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(Path(frame.filename))]


def _is_own(file: Path) -> bool:
    return file.exists() and not any(file.is_relative_to(place) for place in NOT_OWN)


def _shown(file: Path) -> Path:
    """A path as one would write it here."""
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
