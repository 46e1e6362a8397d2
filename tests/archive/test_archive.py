"""What is installed is whole: the code, and the files beside it that it reads."""

from importlib.resources import files

from equipoise.bench.cli._catalogue import methods, problems
from equipoise.bench.cli.init import TEMPLATES
from equipoise.bench.problems.digits import load_scans


def test_files_beside_the_code_are_there():
    assert len(methods()) > 40
    assert "digits" in problems()
    assert len(load_scans()[0]) == 1797
    assert {"tabular.py", "images.py"} <= {place.name for place in TEMPLATES.iterdir()}
    package = files("equipoise")
    assert package.joinpath("py.typed").is_file()
    report = package / "bench" / "experiment" / "report"
    assert {place.suffix for place in report.iterdir()} >= {".css", ".jinja"}


def test_the_licence_of_shipped_data_is_beside_them():
    data = files("equipoise") / "bench" / "problems" / "data" / "_digits" / "LICENSE.txt"
    assert "CC BY 4.0" in data.read_text()
