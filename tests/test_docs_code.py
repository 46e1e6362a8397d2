"""The Python in the documents runs: whole pages from top to bottom, fragments with what they take for granted."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from scenery import run, scenery

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ["quick-start.md", "own-method.md", "own-problem.md", "from-another-library.md"]
ELSEWHERE = ["diagnose.md", "package-index.md"]  # run in tests/monitor; the README's own

LIBRARIES = {"lightning": "lightning", "fabric": "lightning", "accelerat": "accelerate", "Training": "transformers"}
LIBRARIES |= {"torchjd": "torchjd", "deepspeed": "deepspeed", "tensorboard": "tensorboard"}
"""What is in a fragment's text → what it needs; where that is not installed the fragment is skipped."""


def blocks_of(page):
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


FRAGMENTS = [
    pytest.param(page, block, id=f"{page.stem}-{number}")
    for page in [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]
    if page.name not in PAGES + ELSEWHERE
    for number, block in enumerate(blocks_of(page), 1)
]


@pytest.mark.parametrize(("page", "code"), FRAGMENTS)
def test_a_fragment_runs(page, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for library in {library for text, library in LIBRARIES.items() if text in code}:
        pytest.importorskip(library)
    run(code, page, scenery(code, tmp_path))


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of(DOCS / page)
    assert blocks
    module = ModuleType(page.partition(".")[0].replace("-", "_"))
    monkeypatch.setitem(sys.modules, module.__name__, module)  # a class is pickled by where it is found
    names = vars(module)
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    printed = capsys.readouterr().out
    if page == "quick-start.md":
        assert printed in (DOCS / page).read_text(encoding="utf-8")
    if page == "own-method.md":
        assert "3 of 18 checks failed:" in printed
        names["test_contract"](names["method_checks"](names["Shortest"])[-1])
    if page == "own-problem.md":
        assert "wrong" not in printed
        assert "fine     sharing" in printed
