"""The Python in the documents runs: whole pages from top to bottom, fragments with what they take for granted."""

import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from scenery import run, scenery

from equipoise.testing import method_checks

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ["quick-start.md", "own-problem.md", "from-another-library.md"]
ELSEWHERE = ["diagnose.md", "package-index.md", "own-method.md"]  # run in tests/monitor; the README's own; below

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
    if page == "own-problem.md":
        assert "wrong" not in printed
        assert "fine     sharing" in printed


def test_the_page_about_own_methods_puts_each_block_into_a_file(tmp_path, monkeypatch, capsys):
    """The last file's name before a block, in its sentence, is where the block goes."""
    text = (DOCS / "own-method.md").read_text(encoding="utf-8")
    files = {}
    for before, block in re.findall(r"([^\n]*(?:\n[^\n]+)*)\n\n```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        (name,) = re.findall(r"`(\w+\.py)`:$", before)
        files.setdefault(name, []).append(block)
    assert list(files) == ["my_method.py", "train.py", "check.py", "test_my_method.py", "counting.py"]
    for name, blocks in files.items():
        (tmp_path / name).write_text("\n\n".join(blocks), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_method", raising=False)
    found = {name: vars(import_module(name.removesuffix(".py"))) for name in files}
    for name in files:
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"))
    found["test_my_method.py"]["test_contract"](method_checks(found["my_method.py"]["Shortest"])[-1])
    passed, printed = capsys.readouterr().out.split("3 of ")
    assert re.fullmatch(r"\d+ checks passed\n\d+ checks passed\n", passed)
    shown = re.findall(r"```text\n3 of (.*?)```", text, re.DOTALL)
    assert [re.sub(r"by up to \S+", "", printed)] == [re.sub(r"by up to \S+", "", output) for output in shown]
