"""Problems by name, and a person's own from a file."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import secrets
from types import ModuleType
from typing import Any
from urllib.parse import quote, unquote
from weakref import WeakValueDictionary

from equipoise._importing import import_place
from equipoise.bench.errors import BenchError, did_you_mean
from equipoise.bench.problems._base import Problem
from equipoise.registry import is_method, methods_in

PROBLEMS = {
    "digits": "equipoise.bench.problems.digits:Digits",
    "digit-attributes": "equipoise.bench.problems.digit_attributes:DigitAttributes",
    "multi-mnist": "equipoise.bench.problems.multi_mnist:MultiMNIST",
    "yeast": "equipoise.bench.problems.yeast:Yeast",
    "health": "equipoise.bench.problems.health:Health",
    "molecules": "equipoise.bench.problems.molecules:Molecules",
    "rooms": "equipoise.bench.problems.rooms:Rooms",
    "rooms-mtan": "equipoise.bench.problems.rooms:RoomsMTAN",
    "rooms-partial": "equipoise.bench.problems.rooms_partial:RoomsPartial",
    "rooms-efficientdet": "equipoise.bench.problems.rooms_partial:RoomsEfficientDet",
    "celeba": "equipoise.bench.problems.papers.celeba:CelebAAttributes",
    "affwild2": "equipoise.bench.problems.papers.affwild2:AffWild2Affect",
    "affectnet": "equipoise.bench.problems.papers.affectnet:AffectNetAffect",
    "emotic": "equipoise.bench.problems.papers.emotic:EmoticEmotions",
    "emotic-26": "equipoise.bench.problems.papers.emotic:Emotic26",
    "nyudv2-mtan": "equipoise.bench.problems.papers.nyuv2:NYUDv2MTAN",
    "nyudv2-mtinet": "equipoise.bench.problems.papers.nyuv2:NYUDv2MTINet",
    "nyuv2-amtl": "equipoise.bench.problems.papers.nyuv2:NYUv2AMTL",
    "voc-nyu": "equipoise.bench.problems.papers.voc_nyu:VOCWithNYUDepth",
}
"""Name → where its class stands; imported only when asked for."""


_OBJECTS: WeakValueDictionary[str, Problem] = WeakValueDictionary()
"""Name → problem that was given as an object, as long as somebody holds it."""

OBJECT = re.compile(r"[\w-]+#[0-9a-f]{8}")
"""What `name_object` returns."""


HOW_TO_BEGIN = "`equipoise init my_problem.py` writes a problem to begin with."


class ProblemError(BenchError):
    """A problem cannot be had; the message says why and what to do."""


def load_problem(name: str) -> Problem:
    """Returns the problem of that name, or the one a file holds.

    A name is all that another process needs to have the same problem: options stand behind a "?" in it, as in a web
    address (`rooms?seed=3`, `celeba?data=/data/celeba`). `with_options` writes such names.

    Args:
        name: a name in `PROBLEMS`, or `FILE.py:ATTRIBUTE` (or `MODULE:ATTRIBUTE`), where the attribute is a
            Problem, or a class or function that gives one without arguments or with the options as arguments.

    Raises:
        ProblemError: there is none; what is there is no Problem; or it does not take the options.
    """
    if OBJECT.fullmatch(name):
        return _object(name)
    return problem_of(name, find(split_options(name)[0]))


def problem_of(name: str, value: Any) -> Problem:
    """Returns the problem that a name's options make of what was found under it.

    Raises:
        ProblemError: as `load_problem`.
    """
    plain, options = split_options(name)
    if is_method(value):
        raise ProblemError(
            f"{name} is a method: `equipoise check {name}` checks it, and `equipoise compare PROBLEM --methods {name}` "
            f"compares it. {HOW_TO_BEGIN}"
        )
    if callable(value) and not isinstance(value, Problem):
        problem = _make(plain, value, options)
    elif options:
        raise ProblemError(f"{plain} is a problem already and takes no options, found {', '.join(options)}.")
    else:
        problem = value
    if not isinstance(problem, Problem):
        raise ProblemError(
            f"{name} is of type {type(problem).__name__}, expected an equipoise.bench.problems.Problem. {HOW_TO_BEGIN}"
        )
    return problem


def name_object(problem: Problem) -> str:
    """Returns a name by which `load_problem` finds this very object, in this process alone, always the same.

    Every object has another one: nobody can tell from outside whether two of them are the same problem.
    """
    for name, known in _OBJECTS.items():
        if known is problem:
            return name
    name = f"{re.sub(r'[^0-9a-zA-Z_-]+', '-', problem.name).strip('-') or 'problem'}#{secrets.token_hex(4)}"
    _OBJECTS[name] = problem
    return name


def is_object(name: str) -> bool:
    """Whether a name is `name_object`'s."""
    return OBJECT.fullmatch(name) is not None


def _object(name: str) -> Problem:
    if name not in _OBJECTS:
        raise ProblemError(
            f"{name} is no problem of this process: it was given as an object to another one. What is to be had "
            "anywhere is named, as my_problem.py:problem."
        )
    return _OBJECTS[name]


def with_options(name: str, **options: Any) -> str:
    """Returns a problem's name with options, as `load_problem` takes it.

    Args:
        name: without options.
        **options: values that JSON can hold; those that are None are left out.

    Example:
        >>> from equipoise.bench.problems import with_options
        >>> with_options("celeba", data="/data/faces & more", pretrained=False)
        'celeba?data=/data/faces%20%26%20more&pretrained=false'
    """
    given = {key: value for key, value in options.items() if value is not None}
    query = "&".join(f"{key}={quote(_text(value), safe='/:,[]')}" for key, value in given.items())
    return f"{name}?{query}" if query else name


def with_model(name: str, model: str) -> str:
    """Returns a problem's name with the option `model` beside those that it has, checked.

    Raises:
        ProblemError: the problem has a network of its own, does not take this one, or the name has another one.

    Example:
        >>> from equipoise.bench.problems import with_model
        >>> with_model("yeast?seed=1", "ple")
        'yeast?seed=1&model=ple'
    """
    plain, options = split_options(name)
    if options.get("model", model) != model:
        raise ProblemError(f"{name} names a model already: leave {model!r} out.")
    found = find(plain)
    if not callable(found) or "model" not in inspect.signature(found).parameters:
        raise ProblemError(f"{plain} has a network of its own and takes no model, found {model!r}.")
    chosen = with_options(plain, **options | {"model": model})
    load_problem(chosen)  # names those that it takes
    return chosen


def split_options(name: str) -> tuple[str, dict[str, Any]]:
    """Returns a problem's name without options, and the options: JSON where it is JSON, else text.

    Raises:
        ProblemError: what stands behind the "?" is not of the form `name=value&name=value`.
    """
    plain, mark, query = name.partition("?")
    options = {}
    for part in query.split("&") if mark else ():
        key, equals, text = part.partition("=")
        if not equals or not key.isidentifier():
            raise ProblemError(f"Options of a problem are written {plain}?name=value&name=value, found {name!r}.")
        options[key] = _value(unquote(text))
    return plain, options


def find(name: str) -> Any:
    """Returns the problem of that name without options, or what makes it; of a place, whatever stands there.

    Raises:
        ProblemError: there is none.
    """
    place, colon, attribute = PROBLEMS.get(name, name).rpartition(":")
    if name.endswith(".py"):
        raise ProblemError(f"Which problem in {name}? Write {name}:NAME{_problems_in(_import(name), name)}.")
    if not colon or not place or not attribute:
        raise ProblemError(
            f"Unknown problem {name!r}: take one of {', '.join(PROBLEMS)}, or a file of your own as "
            f"my_problem.py:problem.{did_you_mean(name, PROBLEMS)}"
        )
    module = _import(place)
    if not hasattr(module, attribute):
        raise ProblemError(f"{place} has nothing named {attribute!r}{_problems_in(module, place)}.")
    return getattr(module, attribute)


def _problems_in(module: ModuleType, place: str) -> str:
    """Which problems, classes of problems, and methods a file or module has, behind a semicolon."""
    found = [
        f"{place}:{name}"
        for name, value in vars(module).items()
        if isinstance(value, Problem)
        or (inspect.isclass(value) and issubclass(value, Problem) and value.__module__ == module.__name__)
    ]
    methods = methods_in(module, place)
    if methods:
        found.append(f"the method{'s' if methods[1:] else ''} {', '.join(methods)}")
    return f"; it has {', '.join(found)}" if found else ""


def _text(value: Any) -> str:
    """JSON, or the text itself where that cannot be taken for anything else."""
    return value if isinstance(value, str) and _value(value) == value else json.dumps(value, ensure_ascii=False)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _make(name: str, factory: Any, options: dict[str, Any]) -> Any:
    """Calls a class or function with the options.

    Raises:
        ProblemError: it does not take them, or raises.
    """
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        known = list(inspect.signature(factory).parameters)
        meant = "".join(did_you_mean(option, known) for option in options if option not in known)
        raise ProblemError(
            f"{name} does not take these options: {error}; it has: {', '.join(known) or 'none'}.{meant}"
        ) from error
    try:
        return factory(**options)
    except ProblemError:
        raise
    except Exception as error:
        raise ProblemError(f"{name} cannot be made: {type(error).__name__}: {error}.") from error


def need_packages(problem: str, extra: str, *packages: str) -> None:
    """Checks that packages which an extra installs are there; imports none.

    Raises:
        ProblemError: one is not.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ProblemError(f"{problem} needs {' and '.join(missing)}: pip install 'equipoise[{extra}]'.")


def need_vision(problem: str) -> None:
    """Checks that what the extra `vision` installs is there.

    Raises:
        ProblemError: it is not.
    """
    need_packages(problem, "vision", "timm", "torchvision")


def _import(place: str) -> ModuleType:
    try:
        return import_place(place)
    except ModuleNotFoundError as error:
        hint = "; pip install 'equipoise[vision]'" if place.startswith("equipoise.bench.problems.") else ""
        raise ProblemError(f"{place} cannot be imported: {error}{hint}.") from error
    except ImportError as error:
        raise ProblemError(str(error)) from error
