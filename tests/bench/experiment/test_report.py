"""The report's content; test_browser.py opens it in a browser."""

import json
import re
import shlex
from html.parser import HTMLParser

import pytest
from comparisons import METHODS, Errors, make_result, tuned
from PIL import Image
from typer.testing import CliRunner

from equipoise.bench import cli
from equipoise.bench.experiment.chart import LIGHT, save
from equipoise.bench.experiment.report import to_html
from equipoise.bench.experiment.report.repeat import command
from equipoise.bench.experiment.report.why import layers_chart, recordings, steps_chart
from equipoise.bench.experiment.settings import Settings
from equipoise.bench.experiment.tables import notes, verdict

NASTY = "<script>alert('x')</script>\"&$x$_"
VOID = {"meta", "link", "img"}


class Page(HTMLParser):
    """Elements, texts and whether tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def page(result):
    found = Page(result if isinstance(result, str) else to_html(result))
    assert found.open == []
    return found


@pytest.fixture(scope="module")
def plain():
    """A plain comparison's report."""
    return to_html(make_result())


def monitored(folder, methods=METHODS, tasks=("left", "right")):
    """Writes what a monitor would have recorded: `left` moves each layer four times as far as `right`."""
    (folder / "monitor").mkdir(parents=True)
    for method in methods:
        lines = [{"format": 1, "tasks": list(tasks), "layers": ["conv", "dense", "head"], "every": 5}]
        for step in (0, 5, 10):
            one, two = ([size, 2 * size, None] for size in (4e-3, 1e-3))
            lines.append(
                {
                    "step": step,
                    "weights": dict.fromkeys(tasks, 1.0),
                    "gradient": dict(zip(tasks, (one, two), strict=True)),
                    "contribution": dict(zip(tasks, (one, two), strict=True)),
                    "cosines": [[1.0, -0.25], [-0.25, 1.0]],
                }
            )
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (folder / "monitor" / f"{method}-0.jsonl").write_text(text)
    return folder


def test_everything_has_its_place(tmp_path):
    (tmp_path / "predictions").mkdir()
    Image.new("RGB", (1500, 600)).save(tmp_path / "predictions" / "single-left.png")
    Image.new("RGB", (300, 200)).save(tmp_path / "predictions" / "mao.png")
    result = tuned(make_result(folder=monitored(tmp_path)))
    found = page(result)
    ids = {attributes["id"] for _, attributes in found.elements if "id" in attributes}
    assert {
        "table",
        "results",
        "tradeoff",
        "training",
        "tuning",
        "why",
        "layers",
        "steps",
        "weights",
        "conflicts",
    } < ids
    assert {"predictions", "repeat"} < ids
    targets = {attributes["href"] for attributes in found.all("a")}
    assert {target[1:] for target in targets} <= ids
    text = " ".join(found.texts).replace("\u00a0", " ")
    for sentence in (
        *verdict(result),
        *notes(result),
        command(result.settings),
        "a machine",
        "errors that nobody made",
    ):
        assert sentence in text
    assert "left 80%, right 20%" in text
    assert "4.0" in found.texts
    sizes = {(a["width"], a["height"]) for a in found.all("img") if a["src"].startswith("data:image/webp")}
    assert sizes == {("1000", "400"), ("300", "200")}


def test_panels_of_contributions_are_of_one_height(tmp_path):
    """A balanced method would not look like it if its panel were stretched."""
    recorded, _ = recordings(make_result(folder=monitored(tmp_path)))
    recorded["mao"].records[:] = recorded["mao"].records[:1]
    for chart in (layers_chart(recorded), steps_chart(recorded)):
        limits = set()
        for panel in chart.panels:
            with LIGHT.applied():
                [axes] = chart.alone(panel, LIGHT).axes
            limits.add(axes.get_ylim())
            assert b"mathdefault" not in save(axes.figure, "svg")
        assert len(limits) == 1
        assert "left 80%; right 20%" in chart.panels[0].text


def test_what_a_folder_lacks_is_left_out(tmp_path):
    found = page(make_result(folder=tmp_path))
    ids = {attributes["id"] for _, attributes in found.elements if "id" in attributes}
    assert not ids & {"predictions", "layers", "steps", "conflicts", "tuning"}
    assert {"why", "weights"} <= ids  # weights are in the records


def test_a_monitor_file_that_is_damaged_is_named_and_left_out(tmp_path):
    folder = monitored(tmp_path)
    (folder / "monitor" / "ema-0.jsonl").write_text("nonsense\n")
    (folder / "monitor" / "ew-0.jsonl").write_text('{"format": 1, "tasks": ["left"], "layers": [], "every": 1}\n')
    text = to_html(make_result(folder=folder))
    assert "Left out: " in text
    assert "ema-0.jsonl" in text
    assert text.count("<figcaption>mao</figcaption>") == 4
    assert text.count("<figcaption>ema</figcaption>") == 1


def test_it_asks_for_nothing_and_runs_nothing(plain):
    found = page(plain)
    assert found.all("script") == []
    assert not any(name.startswith("on") or name == "style" for _, attributes in found.elements for name in attributes)
    for _, attributes in found.elements:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:", "#"))
    [policy] = [a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "http://" not in plain
    assert "https://" not in plain


def test_pictures_are_there_for_light_and_dark_and_in_words(plain):
    found = page(plain)
    images = {kind: [a for a in found.all("img") if a.get("class") == kind] for kind in ("light", "dark")}
    assert len(images["light"]) == len(images["dark"]) > 5
    for light, dark in zip(images["light"], images["dark"], strict=True):
        assert light["src"] != dark["src"]
        assert light["alt"] == dark["alt"]
        assert len(light["alt"]) > 10
        assert int(light["width"]) > 100


def test_names_are_escaped(tmp_path):
    problem = Errors((NASTY, "b"), measure=NASTY)
    problem.name = problem.description = NASTY
    result = make_result(
        problem,
        folder=monitored(tmp_path, tasks=(NASTY, "b")),
        problem=f"{NASTY}.py:p",
        hyperparameters={"mao": {NASTY: NASTY}},
    )
    result = tuned(result)
    object.__setattr__(result, "versions", {NASTY: NASTY})
    text = to_html(result)
    assert "<script" not in text
    assert "alert(&#39;x&#39;)" in text
    found = page(result)
    assert f"{NASTY}: balancing methods compared" in found.texts
    assert f"weight decay = 0, epochs = 3, {NASTY} = {NASTY}" in found.texts
    assert any(NASTY in image["alt"] for image in found.all("img"))
    assert any(NASTY in attributes.get("aria-label", "") for _, attributes in found.elements)


@pytest.mark.parametrize(
    "settings",
    [
        Settings("digits", ("ew", "mao"), 3, False, 8, 64, 1000, 1e-3, 0.0, "cosine"),
        Settings(
            problem="digits",
            methods=("ew", "ema"),
            seeds=5,
            quick=True,
            epochs=2,
            batch_size=32,
            evaluation_batch_size=1000,
            lr=0.00012345678,
            weight_decay=5e-4,
            schedule="cosine",
            hyperparameters={
                "ema": {"lr": 3e-4, "list": [0.9, 0.99], "text": "a 'b' \"c\" $d"},
                "single": {"on": True},
            },
            priorities={"a task": 2.5, "b.c": 1.0},
            devices=2,
            precision="bf16-mixed",
            strategy="ddp",
            monitor_every=7,
        ),
        Settings("digits", ("mao",), 1, False, 8, 64, 1000, 3e-3, 0.0, "cosine", tune=True, grid=(1e-5, 0.003)),
        Settings(
            "digits", ("ew", "fixed"), 20, False, 8, 64, 1000, 3e-3, 0.0, "cosine", budget=8, looks=(8, 11, 15, 20)
        ),
        Settings("digits", ("ew",), 3, False, 8, 64, 1000, 1e-3, 0.0, "cosine", baselines=False, match_time=True),
    ],
)
def test_the_command_asks_for_the_same(settings, monkeypatch):
    """What the command line makes of it is what it was made of."""
    asked = []

    def carry_out(settings, *_):
        asked.append(settings)
        return make_result()

    monkeypatch.setattr("equipoise.bench.cli._comparing.carry_out", carry_out)
    words = shlex.split(command(settings))
    assert words[0] == "equipoise"
    done = CliRunner().invoke(cli.app, words[1:])
    assert done.exit_code == 0, done.output
    assert asked == [settings]


@pytest.mark.parametrize("seeds", [1, 2])
def test_with_few_seeds_there_are_no_stars(seeds):
    result = make_result(seeds=seeds)
    text = to_html(result)
    assert "too few for a paired t-test" in text
    assert not re.search(r"\d\*", text.split("</style>")[1])


def test_curves_are_open_where_the_answer_rests_on_them(plain):
    """Of a comparison that says to train longer the picture over training shows why."""
    short = make_result(epochs=10)
    for record in short.records:
        record["epochs"] = [{**record["epochs"][0], "score": number / 10} for number in range(10)]
    for text, shown in ((to_html(short), True), (plain, False)):
        assert ("Train longer, with --epochs auto or --epochs 20" in text) == shown
        before, _ = text.split("<h3>Validation over training</h3>")
        assert before.rstrip().removesuffix("<summary>").rstrip().endswith(" open>") == shown


def test_nothing_finished_is_a_page_too():
    found = page(make_result(diverged=[(method, seed) for method in METHODS for seed in range(4)]))
    assert "No method finished every seed: there is nothing to judge." in found.texts
    assert "ew, ema and mao failed in 4 of 4 runs each (seed 0: a loss became nan)." in found.texts


def test_forty_tasks_stay_readable():
    text = to_html(make_result(Errors([f"task {number}" for number in range(40)])))
    tables = [line for line in text.splitlines() if line.startswith("<details")]
    assert tables.count("<details>") >= 40
    assert {line for line in tables if "open" in line} == {'<details class="chart" open>'}
    assert len(text) < 5e6
