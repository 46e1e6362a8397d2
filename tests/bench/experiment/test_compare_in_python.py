"""`equipoise.bench.compare`: a comparison from Python, and what it returns."""

import inspect
import sys
from html.parser import HTMLParser

import pytest
import torch
from comparisons import Errors, make_result
from torch import nn

from equipoise.bench import Outcome, compare
from equipoise.bench.cli.compare import compare as command
from equipoise.bench.comparing import _console
from equipoise.bench.experiment.folder import FolderError
from equipoise.bench.experiment.report.repeat import command as repeated
from equipoise.bench.experiment.settings import SettingsError
from equipoise.bench.problems import (
    Problem,
    ProblemError,
    Regression,
    Splits,
    Tensors,
    Training,
    load_problem,
    name_object,
)


class Lines(Problem):
    name, description = "two lines", "for tests"
    tasks = (Regression("a"), Regression("b"))

    def data(self, quick=False):
        x = torch.linspace(-1, 1, 32)[:, None]
        return Splits(*(Tensors(input=x, a=x[:, 0], b=-x[:, 0]) for _ in range(3)))

    def model(self):
        return Both()

    def training(self, quick=False):
        return Training(epochs=2, batch_size=16)


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 2)

    def forward(self, x):
        y = self.line(x)
        return {"a": y[:, 0], "b": y[:, 1]}


def test_a_comparison_from_python(tmp_path, monkeypatch, capsys):
    """An object is compared here, gone on with by the same object alone, and leaves the process as it was."""
    monkeypatch.chdir(tmp_path)
    problem, given = Lines(), {"seeds": 1, "monitor_every": 0}
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    outcome = compare(problem, ["ew", "ema"], hyperparameters={"ema": {"beta": 0.5}}, priorities={"a": 2}, **given)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random)
    assert "[4/4] ema, seed 0, lr 0.001" in capsys.readouterr().out
    assert outcome.result.problem is problem
    assert list(outcome.table.method) == ["single-task", "ew", "ema"]
    assert outcome.verdict[0].startswith("Use: ")
    assert outcome.result.settings.hyperparameters == {"ema": {"beta": 0.5}}
    assert outcome.result.settings.priorities == {"a": 2}
    call = repeated(outcome.result.settings)
    assert call.startswith("equipoise.bench.compare(problem, methods='ew,ema', seeds=1, ")
    again = eval(call, {"equipoise": sys.modules["equipoise"], "problem": problem})
    out = capsys.readouterr().out
    assert "4 of 4 runs are in the folder already." in out
    assert again.result.records == outcome.result.records
    assert outcome.report() == outcome.result.folder / "report.html"
    assert (tmp_path / "runs" / "two-lines" / "report.html").read_text().startswith("<!doctype html>")
    assert Outcome.load("runs/two-lines").verdict == outcome.verdict
    with pytest.raises(SettingsError, match=r"problem is 'two-lines#.* there and 'two-lines#.*`out`"):
        compare(Lines, "ew", progress=False, **given)
    assert "two-lines#" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 2}, "was given as an object, which no other process has: leave `workers` and `devices` out"),
        ({"devices": 2}, "which no other process has"),
        ({"workers": -1}, "`workers` takes a whole number, at least 0; found -1"),
        ({"seeds": 0}, "`seeds` takes a whole number, at least 1; found 0"),
        ({"batch_size": 2.0}, "`batch_size` takes a whole number"),
        ({"methods": [nn.Linear]}, "`methods` takes names, one of your own as FILE.py:NAME"),
        ({"match": "space"}, '`match` takes "epochs" or "time"; found \'space\''),
        ({"model": "ple"}, "an object has its own network"),
        ({"tune": True, "lr": 0.1}, "leave `lr` out, or name rates with `grid`"),
        ({"tune": True, "grid": [1e-3, 10]}, "between 1e-07 and 1"),
    ],
)
def test_options_are_called_as_in_python(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=message):
        compare(Lines(), **{"methods": "ew", "progress": False, **options})
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_problem_is_refused():
    for given in (3, nn.Linear, nn.Linear(1, 2)):
        with pytest.raises(
            TypeError, match=r"problem must be an equipoise\.bench\.problems\.Problem, its class, or a name"
        ):
            compare(given)


def test_an_object_has_a_name_in_its_process():
    problem, other = Lines(), Lines()
    name = name_object(problem)
    assert name == name_object(problem) != name_object(other)
    assert load_problem(name) is problem
    with pytest.raises(ProblemError, match="two-lines#00000000 is no problem of this process"):
        load_problem("two-lines#00000000")


def test_python_has_the_command_lines_options_and_defaults():
    python, shell = (inspect.signature(function).parameters for function in (compare, command))
    assert python.keys() ^ shell.keys() == {"hyperparameters", "priorities", "progress", "set_", "config"}
    for name in python.keys() & shell.keys():
        default = shell[name].default
        assert python[name].default == getattr(default, "value", default), name


class Tags(HTMLParser):
    """The tags of a page, and the addresses of its pictures."""

    def __init__(self):
        super().__init__()
        self.names, self.sources = set(), []

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.sources += [value for name, value in attributes if name == "src"]


def test_a_notebook_and_a_terminal_show_it(tmp_path):
    outcome = Outcome(make_result(Errors(("<script>alert(1)</script>", "b")), folder=tmp_path))
    tags = Tags()
    tags.feed(outcome._repr_html_())
    assert {"strong", "table", "img"} < tags.names
    assert "script" not in tags.names
    assert len(tags.sources) == 2
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in tags.sources)
    text = str(outcome)
    assert outcome.verdict[0] in text
    assert "mao" in text
    assert repr(outcome) == "Outcome(errors: ew, ema, mao; 4 seeds)"
    assert {"results", "tradeoff"} <= outcome.pictures().keys()
    place = tmp_path / "page.html"
    assert outcome.report(place) == place
    assert place.read_text().startswith("<!doctype html>")
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="cannot be written"):
        outcome.report(tmp_path / "file" / "page.html")


def test_a_notebook_without_widgets_has_a_line_a_run(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not _console(True).is_jupyter
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert _console(True).is_jupyter
