"""Errors in a person's own code: where in the file they came from, and what was expected there."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from equipoise.bench.errors import BenchError

if TYPE_CHECKING:
    from equipoise.bench.problems._base import Task

LIBRARY = Path(__file__).parents[2]
"""Where equipoise is."""

NOT_OWN = (LIBRARY, *(Path(sysconfig.get_paths()[kind]) for kind in ("stdlib", "platstdlib", "purelib", "platlib")))
"""Where no person's own code is."""


class ProblemCodeError(BenchError):
    """Something went wrong in a problem's code, or a method's; the message is a line.

    Args:
        what: what was found.
        place: where, as "FILE, line N"; empty where what was found is said wholly.
        code: what stands there.
        hint: what was expected; empty where that is not known.
    """

    def __init__(self, what: str, place: str, code: str = "", hint: str = "") -> None:
        super().__init__(what, place, code, hint)
        self.what, self.place, self.code, self.hint = what, place, code, hint

    def __str__(self) -> str:
        return f"{self.what}{f' ({self.place})' if self.place else ''}{f'. {self.hint}' if self.hint else ''}"

    @property
    def block(self) -> str:
        """All that is known, a few lines."""
        below = ((2, self.place), (4, self.code), (2, self.hint))
        return "\n".join([self.what, *(" " * indent + line for indent, line in below if line)])


class MisfitError(ProblemCodeError):
    """Parts of a problem do not fit together; the message says how, whatever line it was found in.

    Args:
        part: which part, as `check_problem` names it.
        sentence: what was found and what was expected.
    """

    def __init__(self, part: str, sentence: str) -> None:
        super().__init__(f"{part}: {sentence}", "")
        self.args = (part, sentence)
        self.part, self.sentence = part, sentence


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
        if isinstance(error, Exception) and not isinstance(error, (StopIteration, BenchError)):
            raise explain(error, f" in {self._doing}", self._predictions, self._batch) from error


def explain(error: Exception, doing: str = "", predictions: Any = None, batch: Any = None) -> ProblemCodeError:
    """Returns what is said of an error in a problem's code.

    Args:
        error: what it raised.
        doing: put behind the error, as " in the loss of task 'depth'".
        predictions: as for `problem_code`.
        batch: as for `problem_code`.
    """
    if isinstance(error, RuntimeError) and "double" in str(error).lower() and (names := _doubles(batch)):
        return MisfitError(
            "predict",
            f"A batch holds {names} as float64, and the network's weights are float32: write .float() where the data "
            "are made.",
        )
    said = (str(error).splitlines() or [""])[0]
    place, code = place_of(error)
    return ProblemCodeError(f"{type(error).__name__}: {said}{doing}", place, code, _missing(error, predictions, batch))


def _missing(error: Exception, predictions: Any, batch: Any) -> str:
    """What there is, where a name was asked for that is not there."""
    if not isinstance(error, KeyError) or len(error.args) != 1:
        return ""
    (key,) = error.args
    lacking = [
        f"{says} no {key!r}; {it}: {', '.join(map(str, given)) or 'nothing'}."
        for given, says, it in (
            (predictions, "The network predicts", "it predicts"),
            (batch, "A batch holds", "it holds"),
        )
        if isinstance(given, Mapping) and key not in given
    ]
    return " ".join(lacking)


def _doubles(batch: Any) -> str:
    """The names in a batch of what is float64."""
    named = batch.items() if isinstance(batch, Mapping) else ()
    return ", ".join(repr(name) for name, value in named if isinstance(value, Tensor) and value.dtype == torch.float64)


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
