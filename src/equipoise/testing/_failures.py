"""What a check says when it fails: what was found, and what it usually comes from."""

from __future__ import annotations

import textwrap
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from equipoise.testing._properties import PROMISES
from equipoise.testing._subject import Subject
from equipoise.testing._training import draws_from_its_own

STATE = (
    "state that is kept in a plain attribute is neither saved nor undone; declare it with add_state, and use it as "
    "self.state.<name>"
)
RANDOM = "random numbers are not drawn from self.generator, which add_generator(seed) declares"
KINDS = "a tensor is made in a dtype of its own; make it like the losses, with losses.new_zeros or torch.full_like"
ACROSS = "a formula counts on tasks that are not there; use len(losses), and keep what belongs to a task in add_state"
COPY = (
    "a copy shares something with the first, such as a global or an attribute of the class, or something that is kept "
    "cannot be pickled, such as a lambda"
)
DIVISION = "it divides by 0 or takes a logarithm of 0; guard it, or say requires_positive = True for losses"

CAUSES: dict[str, str] = {
    "trains_and_stays_finite": DIVISION,
    "loss_falls_on_one_batch": "weights are negative, or so small or large that nothing is learned",
    "is_determined_by_the_seed": RANDOM,
    "does_not_disturb_the_default_generator": RANDOM,
    "order_of_the_mapping_does_not_matter": RANDOM,
    "a_task_that_is_never_there_might_as_well_not_exist": ACROSS,
    "double": KINDS,
    "bfloat16_model": DIVISION,
    "micro_batches_and_counts": "gradients or state of earlier micro-batches are lost, or change what the next ones do",
    "grad_scaler": STATE,
    "resumes_bit_for_bit": STATE,
    "goes_on_as_a_copy": COPY,
    "goes_back_to_a_saved_state": STATE,
    "saving_changes_nothing": "state_dict or get_extra_state changes what it saves",
    "a_balancers_state_is_tensors_whose_sizes_stay": "a buffer grows while training; declare its size, with "
    "add_state(name, default, size=N)",
    "the_state_of_an_absent_task_is_untouched": "a buffer is written past self.state, which has the tasks present",
    "state_never_becomes_narrower": "a buffer's dtype is changed by the method; declare it with add_state",
    "errors_change_nothing": STATE,
    "is_finite": "it divides by the length of a gradient that is 0, or solves with a Gramian that is singular",
    "not_finite_shows": "nan_to_num, a clamp or a comparison hides it; say robust = True if rows may be left out",
    "float32_is_near_float64": KINDS,
    "masked": "what is done across tasks goes past self.active, which has sum, mean, softmax and more; use that, or "
    "leave masked = True out",
}
"""A check's name → what a failure of it usually comes from."""

FIRST = (
    "can_be_made",
    "promises_are_known",
    "does_not_disturb_the_default_generator",
    "resumes_bit_for_bit",
    "goes_back_to_a_saved_state",
)
"""The checks that say the most of a cause which other checks fail of, too."""


LIBRARIES = (Path(__file__).parents[1], Path(torch.__file__).parent)
PYTHON = Path(traceback.__file__).parent

LAYOUT = textwrap.TextWrapper(
    88, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
)


class ContractError(AssertionError):
    """A method does not pass checks.

    Attributes:
        failures: the name of each that it failed → a sentence: what was done and found, and what it usually comes from.
    """

    def __init__(self, message: str, failures: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.failures = dict(failures or {})


@dataclass(frozen=True)
class Failure:
    """Why a method does not pass a check.

    Attributes:
        found: what was done and found.
        cause: what that usually comes from; empty: nothing is known.
        error: what was raised.
    """

    found: str
    cause: str
    error: Exception

    @property
    def sentence(self) -> str:
        """All of it."""
        return f"{self.found}{': ' if self.cause else ''}{self.cause}."


def failure_of(name: str, error: Exception, subject: Subject | None) -> Failure:
    """Says why a method does not pass a check that raised this."""
    text = str(error).partition("\n")[0].rstrip(".")
    place = _place(error)
    if type(error) is AssertionError and text and not place:
        return Failure(text, _cause(name, subject), error)
    done = "making it, and a step of three tasks, " if name == "can_be_made" else ""
    found = f"{done}raised {type(error).__name__}{': ' if text else ''}{text}{place}"
    return Failure(found, COPY if name == "goes_on_as_a_copy" else "", error)


def _cause(name: str, subject: Subject | None) -> str:
    """What a difference that this check finds usually comes from, with the attributes of this method that may be it."""
    cause = CAUSES.get(name, "")
    if name in PROMISES:
        return f"the class says {name} = True; mend the formula, or leave the promise out"
    if subject is None or cause not in (STATE, ACROSS, COPY):
        return cause
    with suppress(Exception):  # of a method that fails, anything may
        changed = ", ".join(dict.fromkeys(subject.changed_attributes())) if cause == STATE else ""
        if changed:
            return f"{STATE}. Attributes that changed while training: {changed}"
        if not draws_from_its_own(subject):
            return RANDOM
    return cause


def summary(failures: Mapping[str, Failure], count: int) -> ContractError:
    """Makes one error of several; the most telling comes first, and a cause is told once.

    Args:
        failures: name → why.
        count: how many checks there were.
    """
    order = sorted(failures, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    told: dict[str, str] = {}
    lines = []
    for name in order:
        failure = failures[name]
        first = told.setdefault(failure.cause or failure.found, name)
        said = failure.sentence if first == name else f"{failure.found}: likely of the same cause as {first}."
        lines += LAYOUT.wrap(f"{name}: {said}")
    sentences = {name: failures[name].sentence for name in order}
    return ContractError("\n".join([f"{len(failures)} of {count} checks failed:", *lines]), sentences)


def _place(error: Exception) -> str:
    """File and line, in brackets, of the innermost code that is no library's; empty: there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        in_python = PYTHON in path.parents and "site-packages" not in path.parts
        if not in_python and not any(library in path.parents for library in LIBRARIES):
            return f" ({frame.filename}, line {frame.lineno})"
    return ""
