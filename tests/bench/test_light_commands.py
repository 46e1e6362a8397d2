"""What the command line answers at once, without PyTorch or anything else that takes seconds to import."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from equipoise.bench.cli import app
from equipoise.bench.cli._catalogue import complete_rows

HEAVY = ["torch", "numpy", "scipy", "pandas", "matplotlib", "optuna", "sqlalchemy", "torchmetrics", "lightning_fabric"]

ANSWERS = {
    ("--help",): (0, "compare"),
    ("--version",): (0, "equipoise"),
    ("compare", "--help"): (0, "my_problem.py:problem"),
    ("report", "--help"): (0, "latex"),
    ("init", "no-name.txt"): (2, "no-name.txt cannot be imported: take a name such as my_problem.py."),
    ("check", "digts"): (2, "Did you mean digits"),
    ("methods",): (0, "Kendall et al. 2018"),
    ("methods", "emma"): (2, "Unknown method 'emma'. Did you mean ema"),
    ("problems", "digts"): (2, "Unknown problem 'digts'. Did you mean digits"),
    ("compare", "digits", "--seed", "3"): (2, "--seeds"),
    ("compre",): (2, "compare"),
    ("compare", "digts"): (2, "Unknown problem 'digts'. Did you mean digits"),
    ("compare", "digits", "--methods", "ew,emma"): (2, "Unknown method 'emma'. Did you mean ema"),
    ("compare", "digits", "--methods", "replay:cagard@sgd"): (2, "Unknown method 'cagard'. Did you mean cagrad"),
    ("reproduce", "celeba", "--methods", "nothing-like-it"): (2, "Unknown method 'nothing-like-it'. `equipoise meth"),
}

SCRIPT = f"""
import json, sys
class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise AssertionError(f"imports {{name}}")
sys.meta_path.insert(0, Refusal())
from typer.testing import CliRunner
from equipoise.bench.cli import app
for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, words, env={{"COLUMNS": "160"}})
    print(json.dumps([done.exit_code, done.output, repr(done.exception)]))
"""


def test_help_lists_and_typing_errors_need_nothing_heavy():
    words = [list(words) for words in ANSWERS]
    done = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for (asked, (code, expected)), (found, output, exception) in zip(ANSWERS.items(), answers, strict=True):
        assert (found, expected in output) == (code, True), (asked, output, exception)


def test_importing_the_package_imports_no_pytorch():
    script = (
        "import sys, equipoise, equipoise.bench; assert 'torch' not in sys.modules; equipoise.EMA; "
        "assert 'torch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("incomplete", "expected"), [("ew,em", "ew,ema"), ("na", "nash-mtl"), ("all", "all"), ("ew,fix", "ew,fixed")]
)
def test_methods_are_completed(incomplete, expected):
    assert expected in complete_rows(incomplete)


def test_the_shell_completes_problems():
    environment = {"_EQUIPOISE_COMPLETE": "complete_bash", "COMP_WORDS": "equipoise compare dig", "COMP_CWORD": "2"}
    done = CliRunner().invoke(app, [], prog_name="equipoise", env=environment)
    assert "digits" in done.output.split()


def test_what_is_made_from_the_registry_is_up_to_date():
    place = Path(__file__).parents[2] / "docs" / "tables.py"
    spec = importlib.util.spec_from_file_location("tables", place)
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.FILE.read_text(encoding="utf-8") == tables.catalogue(), "python docs/tables.py"
    assert tables.README.read_text(encoding="utf-8") == tables.readme(), "python docs/tables.py"
    assert tables.INDEX.read_text(encoding="utf-8") == tables.package_index(), "python docs/tables.py"
