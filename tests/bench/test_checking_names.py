"""What a person names, in a file of their own: `check` of a problem or a method, and the errors of what is neither."""

import re

import pytest
from typer.testing import CliRunner

from equipoise._importing import import_place
from equipoise.bench.cli import app
from equipoise.testing import method_checks

METHODS = '''
import equipoise as eq


class Inverse(eq.Weighting):
    """Every loss by its inverse, to a power."""

    requires_positive = True

    def __init__(self, power=1.0, on=True, either: "float | str" = 1.0):
        super().__init__()
        self.power = power

    def forward(self, losses):
        return losses**-self.power


class Few(Inverse):
    """It forgets a task."""

    def forward(self, losses):
        return losses[:1]


class Remembering(Inverse):
    """It changes what nobody saves."""

    seen = 0

    def forward(self, losses):
        self.seen += 1
        return losses * self.seen


number = 3
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with methods in `mine.py`; runs a command there, and returns its exit code and what it said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(METHODS)

    def run(*words):
        done = CliRunner().invoke(app, [str(word) for word in words])
        return done.exit_code, done.output

    return run


def test_a_method_is_held_to_the_contract(mine, monkeypatch):
    monkeypatch.setattr("equipoise.testing.method_checks", lambda name: method_checks(name)[:3])
    code, said = mine("check", "mine.py:Inverse")
    *checks, last = said.splitlines()
    assert code == 0, said
    assert len(checks) == 3
    assert all(line.startswith("   ok  ") for line in checks)
    assert last == f"All {len(checks)} checks are passed. Next: equipoise compare PROBLEM --methods ew,mine.py:Inverse"


def test_what_is_wrong_with_a_method_is_said_and_ends_with_1(mine):
    code, said = mine("check", "mine.py:Remembering")
    wrong = [line for line in said.splitlines() if line.startswith("WRONG  ")]
    assert code == 1
    assert 0 < len(wrong) < len(said.splitlines()) - 1
    assert said.splitlines()[-1].startswith(f"{len(wrong)} of ")
    code, said = mine("check", "mine.py:Few")
    assert code == 1
    assert said.startswith("WRONG  ")


COMPARE = ("compare", "digits", "--quick")
HAS = "mine.py:Inverse, mine.py:Few, mine.py:Remembering."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("check", "mine.py:Nope"), f"mine.py has nothing named 'Nope'; it has the methods {HAS}"),
        (("check", "mine.py"), f"Which problem in mine.py. Write mine.py:NAME; it has the methods {HAS}"),
        (
            ("check", "mine.py:number"),
            "mine.py:number is of type int, .* `equipoise init my_problem.py` writes a probl",
        ),
        (("check", "mine.py:Few", "--full"), "--full is for problems; mine.py:Few is a method: leave it out."),
        (("compare", "mine.py:Few"), "mine.py:Few is a method: `equipoise check mine.py:Few` checks it, and"),
        ((*COMPARE, "--methods", "ew,mine.py"), f"^error: Which method in mine.py. Write mine.py:NAME; it has {HAS}"),
        ((*COMPARE, "--methods", "mine.py:Nope"), f"^error: mine.py has nothing named 'Nope'; it has {HAS}"),
        (
            (*COMPARE, "--methods", "mine.py:Inverse", "--set", "mine.py:Inverse.powr=1"),
            "^error: Method 'mine.py:Inverse' has no hyperparameter powr; it takes: power, on, either.",
        ),
        (
            (*COMPARE, "--methods", "mine.py:Inverse", "--set", "mine.py:Inverse.power=abc"),
            "^error: mine.py:Inverse.power must be a number, found 'abc'.",
        ),
        (
            (*COMPARE, "--methods", "mine.py:Inverse", "--set", "mine.py:Inverse.power=true"),
            "^error: mine.py:Inverse.power must be a number, found True.",
        ),
        (
            (*COMPARE, "--methods", "mine.py:Inverse", "--set", "mine.py:Inverse.on=3"),
            "^error: mine.py:Inverse.on must be true or false, found 3.",
        ),
    ],
)
def test_what_is_named_wrongly_is_said_once(mine, tmp_path, words, message):
    code, said = mine(*words)
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert re.search(message, error), error
    assert {path.name for path in tmp_path.iterdir()} <= {"mine.py", "__pycache__"}


def test_where_a_file_cannot_be_parsed_its_line_is_said(tmp_path):
    file = tmp_path / "unparsed.py"
    file.write_text("import math\nx = (1,\n")
    with pytest.raises(ImportError) as found:
        import_place(str(file))
    assert str(found.value) == f"{file} cannot be imported: SyntaxError: '(' was never closed ({file}, line 2)."
    file.write_text("import math\nmath.sqrt(-1)\n")
    with pytest.raises(ImportError, match=r"ValueError: .*\(.*unparsed\.py, line 2\)\.$"):
        import_place(str(file))


def test_check_says_what_it_looked_at(mine):
    assert mine("init", "new.py")[0] == 0
    for words, seen in (((), "The quick data were looked at; --full looks at all."), (("--full",), "All data were")):
        code, said = mine("check", "new.py:problem", *words)
        assert code == 0
        assert f"Nothing is wrong. {seen}" in said.splitlines()[-1]
        assert said.splitlines()[-1].endswith("Next: equipoise compare new.py:problem --quick")
