"""The pages of the fields hold their examples as they are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "fields").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_is_its_files(page):
    included = re.findall(r"^<!-- (\S+) -->\n```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert included
    for path, code in included:
        assert code == (ROOT / path).read_text(), path
