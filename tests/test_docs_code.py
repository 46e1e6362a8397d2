"""The Python in the site's pages runs, top to bottom, as a person would paste it."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ["quick-start.md", "own-method.md", "own-problem.md", "from-another-library.md"]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks
    module = ModuleType(page.partition(".")[0].replace("-", "_"))
    monkeypatch.setitem(sys.modules, module.__name__, module)  # a class is pickled by where it is found
    names = vars(module)
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    printed = capsys.readouterr().out
    if page == "own-method.md":
        assert "3 of 18 checks failed:" in printed
        names["test_contract"](names["method_checks"](names["Shortest"])[-1])
    if page == "own-problem.md":
        assert "wrong" not in printed
        assert "fine     sharing" in printed
