"""`equipoise.bench.compare`: a comparison from Python, and what it returns."""

import importlib
import inspect
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from comparisons import Errors, make_result, tuned
from torch import nn

import equipoise as eq
from equipoise.bench import Outcome, compare
from equipoise.bench.cli._comparing import _kept
from equipoise.bench.cli.compare import compare as command
from equipoise.bench.comparing import _console
from equipoise.bench.experiment.comparison import Comparison
from equipoise.bench.experiment.execution import open_problem
from equipoise.bench.experiment.folder import FolderError, RunFolder, file_name
from equipoise.bench.experiment.pictures import charts
from equipoise.bench.experiment.protocol import what_it_does
from equipoise.bench.experiment.report.repeat import command as repeated
from equipoise.bench.experiment.rows import spec_of
from equipoise.bench.experiment.settings import SettingsError
from equipoise.bench.experiment.tuning import space_of
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
from equipoise.search_space import Range


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
    assert outcome.verdict[0] == "Use: nothing yet. Add seeds, in a new comparison with `seeds=5` and another `out`."
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
    assert outcome.verdict[0] in (tmp_path / "runs" / "two-lines" / "report.html").read_text()
    assert Outcome.load("runs/two-lines").verdict == outcome.verdict
    capsys.readouterr()
    other = compare(Lines, "ew", **given)  # as the same script does in another process
    out = capsys.readouterr().out
    assert "runs/two-lines holds another problem's results: this comparison is in runs/two-lines-2." in out
    assert other.result.folder == Path("runs/two-lines-2")
    assert "two-lines#" not in out
    for name in ("two-lines", "two-lines-2"):
        named = (
            r"is gone on with by this process alone: name it, as FILE\.py:NAME, take another folder with `out`, or `ov"
        )
        with pytest.raises(SettingsError, match=named):
            compare(Lines, "ew", progress=False, out=f"runs/{name}", **given)


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


PROBLEM = f"""
import torch
from torch import nn
from equipoise.bench.problems import Problem, Regression, Splits, Tensors, Training


{inspect.getsource(Lines)}

{inspect.getsource(Both)}

"""

METHOD = '''
import equipoise as eq
from equipoise.search_space import Range


class Inverse(eq.Weighting):
    """Every loss by its inverse, to a power."""

    search_space = {"power": Range(0.25, 4.0, log=True)}

    def __init__(self, power=1.0):
        super().__init__()
        self.power = power

    def forward(self, losses):
        return losses**-self.power


class Lacking(eq.Weighting):
    def forward(self, losses):
        return losses * {}["scale"]


class Unmade(Inverse):
    def __init__(self):
        self.scale = {}["scale"]
'''


def test_methods_of_ones_own_are_compared(tmp_path, monkeypatch, capsys):
    """An edited file is another method; an error in one says where it stands."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "own" / "my_method.py"
    place.parent.mkdir()
    place.write_text(METHOD)
    row = "own/my_method.py:Inverse"
    problem, given = Lines(), {"seeds": 1, "progress": False, "hyperparameters": {row: {"power": 0.5}}}
    rows = ["ew", row, f"replay:{row}", "own/my_method.py:Lacking"]
    first = compare(problem, rows, **given)
    records = {record["method"]: record for record in first.result.records}
    assert records[row]["hyperparameters"] == {"power": 0.5}
    failed = records["own/my_method.py:Lacking"]
    assert failed["message"] == "KeyError: 'scale' (own/my_method.py, line 21)"
    assert failed["block"].splitlines()[2].strip() == 'return losses * {}["scale"]'
    assert what_it_does(row) == f"Every loss by its inverse, to a power ({row})"
    assert space_of("adamw", spec_of(row), (), {}, rates=True)["power"] == Range(0.25, 4.0, log=True)
    assert f"--set {row}.power=0.5" in repeated(replace(first.result.settings, problem="mine.py:problem"))
    monitors = [path.name for path in (tmp_path / "runs" / "two-lines" / "monitor").iterdir()]
    assert len(monitors) == 3
    assert any(name.startswith("own-my_method.py-Inverse-") for name in monitors)
    place.write_text(METHOD.replace("-self.power", "-2"))
    again = compare(problem, rows[:3], **given | {"progress": True})
    assert "has own/my_method.py:Lacking already, and is finished with all that it has; another folder with `out`" in (
        " ".join(capsys.readouterr().out.split())
    )
    edited = {record["method"]: record for record in again.result.records}
    assert edited["ew"] == records["ew"]
    assert edited[row]["run"] != records[row]["run"]
    place.write_text(METHOD.replace("-self.power", "-3"))
    comparison = Comparison(again.result.settings, Path("runs/two-lines"))
    assert len(comparison.records()) == 7  # two files' runs among them that this one has no use for
    assert _kept(comparison) == "3 of 6 runs are finished and kept in runs/two-lines"
    with pytest.raises(SettingsError, match=r"Unmade: KeyError: 'scale' \(own/my_method\.py, line 26\)"):
        compare(problem, "own/my_method.py:Unmade", progress=False, out="unmade")


def test_an_edited_file_is_read_anew(tmp_path, monkeypatch):
    """Also within a process that has read it before: the file's digest says that it is another one."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "mine.py"
    place.write_text(METHOD)
    assert list(spec_of("mine.py:Inverse").hyperparameters) == ["power"]
    place.write_text(METHOD.replace("power", "exponent"))
    assert list(spec_of("mine.py:Inverse@sgd").hyperparameters) == ["exponent"]
    place.write_text(f"{PROBLEM}problem = Lines()\n")
    assert open_problem("mine.py:problem", False)[0] is open_problem("mine.py:problem", False)[0]
    place.write_text(f"{PROBLEM}problem = Lines()\nproblem.description = 'edited'\n")
    assert open_problem("mine.py:problem", False)[0].description == "edited"


def test_names_of_files_are_no_paths():
    names = [
        "ew",
        "replay:ema@sgd",
        "single:a b",
        "my.py:A",
        "./my.py:A",
        "../my.py:A",
        "/" + 200 * "long/" + "my.py:A",
    ]
    made = [file_name(name) for name in names]
    assert made[:4] == ["ew", "replay-ema@sgd", "single-a-b", "my.py-A"]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch(r"[\w@][\w.@-]{0,99}", name) for name in made)


def test_what_holds_no_results_is_begun_anew_and_the_rest_if_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place, out, given = tmp_path / "mine.py", tmp_path / "out", {"seeds": 1, "progress": False, "out": "out"}
    wrong = f"{PROBLEM}problem = Lines()\n"
    in_evaluation = "y = self.line(x) if self.training else self.lines(x)"  # before that, nothing would be begun
    place.write_text(wrong.replace("y = self.line(x)", in_evaluation))
    given |= {"workers": 1, "monitor_every": 0}
    failed = compare("mine.py:problem", "ew,uw", **given)
    assert {record["status"] for record in failed.result.records} == {"failed"}
    place.write_text(wrong)
    (out / "predictions").mkdir()
    own = [out / "notes.txt", out / "predictions" / "mine.png"]
    for path in own:
        path.write_text("a person's")
    fine = compare("mine.py:problem", "ew", lr=0.1, **given)  # another file, other settings: nothing is lost
    assert fine.result.settings.methods == ("ew",)
    assert {record["status"] for record in fine.result.records} == {"finished"}
    assert not (out / "errors").exists()
    before = (out / "runs.jsonl").read_bytes()
    with pytest.raises(SettingsError, match=r"lr is 0\.1 there and 0\.01 here.* or `overwrite`, which begins anew"):
        compare("mine.py:problem", "ew", lr=0.01, **given)
    with pytest.raises(SettingsError, match="no hyperparameter gamma"):
        compare("mine.py:problem", "ew", overwrite=True, hyperparameters={"ew": {"gamma": 1}}, **given)
    assert (out / "runs.jsonl").read_bytes() == before
    again = compare("mine.py:problem", "mao", lr=0.01, overwrite=True, **given)
    assert again.result.settings.methods == ("mao",)
    assert {record["lr"] for record in again.result.records} == {0.01}
    assert all(path.read_text() == "a person's" for path in own)


def test_clearing_a_folder_leaves_what_is_not_a_comparisons(tmp_path):
    """All that a comparison is known to write goes, the study aside, and nothing else."""
    result = make_result(folder=tmp_path)
    row, run = "my/own.py:Inverse", "ew-0-0123456789abcdef"
    written = ["settings.json", "costs.json", "runs.jsonl", "table.csv", "table.md", "paper.md", "report.html"]
    written += [f"{chart.name}.png" for chart in charts(tuned(result))] + ["front.png"]
    written += ["predictions/ew.png", f"monitor/{file_name(row)}-0.jsonl"]
    written += [f"errors/{run}.txt", f"checkpoints/{run}/checkpoint.pt"]
    own = ["study.db", "notes.txt", "my.png", "predictions/my.png", "monitor/ew.jsonl", "mine/results.png"]
    for name in (*written, *own):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    RunFolder(tmp_path).clear(["ew", row])
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        own
    )
    assert not (tmp_path / "errors").exists()


OWN = """
import equipoise as eq


class Inverse(eq.Weighting):
    def forward(self, losses):
        return 1 / (1 + losses)
"""


def test_methods_may_be_classes(tmp_path, monkeypatch):
    """The library's go by their names, one's own by the file, as on the command line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("mine")
    try:
        outcome = compare(Lines, ["ew", eq.EMA, mine.Inverse], seeds=1, out=tmp_path / "run", progress=False)
    finally:
        del sys.modules["mine"]
    assert outcome.result.settings.methods == ("ew", "ema", "mine.py:Inverse")
    assert not outcome.result.summary.failures


def test_methods_that_no_other_process_can_find_are_refused(tmp_path):
    class Nested(eq.EMA):
        pass

    interactive = type("Interactive", (eq.EMA,), {"__module__": "__main__"})
    for method in (Nested, interactive, eq.EMA()):
        with pytest.raises(TypeError, match=r"into a file, at its top, and name it as FILE\.py:NAME"):
            compare(Lines, ["ew", method], seeds=1, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
