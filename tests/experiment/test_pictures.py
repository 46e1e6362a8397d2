from io import BytesIO

import pytest
from PIL import Image

from equipoise.experiment.comparison import Result
from equipoise.experiment.costs import Cost
from equipoise.experiment.pictures import draw_all, draw_training, draw_weights, style
from equipoise.experiment.settings import Settings
from equipoise.experiment.statistics import summarise
from equipoise.experiment.tables import notes, to_markdown, to_rich
from equipoise.problems.digits import Digits

METHODS = ("ew", "mao", "no|weights")
SETTINGS = Settings("digits", METHODS, 3, True, 2, 64, 100, 1e-3, 0.0, "constant", {"mao": {"lr": 3e-4}})


def result(seeds=3):
    problem = Digits()
    names = [task.name for task in problem.tasks]
    records = []
    for seed in range(seeds):
        for number, method in enumerate([f"single:{name}" for name in names] + list(METHODS)):
            shown = names if number > 2 else [names[number]]
            values = {
                name: {measure.name: 0.5 + 0.1 * number + 0.01 * seed**2 for measure in task.measures}
                for name, task in zip(names, problem.tasks, strict=True)
                if name in shown
            }
            weights = {} if method == "no|weights" else dict.fromkeys(shown, 2.0)
            epochs = [{"weights": weights, "validation": values}] * 2
            records.append({"method": method, "seed": seed, "status": "finished", "epochs": epochs, "test": values})
    summary = summarise(records, problem.tasks, METHODS)
    costs = {"ew": Cost(2.0, 1.0, 3.0, 1.0), "mao": Cost(5.0, 2.5, 6.0, 2.0)}
    return Result(SETTINGS, problem, records, summary, costs, "a counter")


def test_pictures_are_images():
    pictures = draw_all(result())
    assert set(pictures) == {"results.png", "training.png", "weights.png"}
    for content in pictures.values():
        assert min(Image.open(BytesIO(content)).size) > 200


def test_every_method_and_task_has_its_lines():
    axes = draw_training(result()).axes
    assert [panel.get_title() for panel in axes] == ["left: accuracy % ↑", "right: accuracy % ↑", "sum: MSE ↓"]
    assert all([line.get_label() for line in panel.lines] == ["single-task", *METHODS] for panel in axes)
    assert axes[0].lines[1].get_ydata() == pytest.approx([100 * (0.8 + 0.05 / 3)] * 2)  # ew, mean over seeds, in %


def test_weights_are_shares_and_methods_without_are_left_out():
    axes = draw_weights(result()).axes
    assert [panel.get_title() for panel in axes] == ["ew", "mao"]
    assert axes[0].lines[0].get_ydata() == pytest.approx([1 / 3, 1 / 3])


def test_lines_of_one_colour_differ_otherwise():
    styles = [tuple(style(index).values()) for index in range(-1, 40)]
    for first in range(41):
        for second in range(first):
            if styles[first][0] == styles[second][0] and first - second <= 18:
                assert styles[first][1] != styles[second][1] or styles[first][2] != styles[second][2]


def test_markdown_escapes_and_marks():
    lines = to_markdown(result()).splitlines()
    assert lines[2].startswith("| single-task | 51.7 ± 2.1 |")
    assert lines[3].split(" | ")[1] == "81.7 ± 2.1\\*\\*"  # a constant difference from the best
    assert lines[4].endswith("| 2.50 | 2.00 |")
    assert lines[5].startswith("| no\\|weights | **101.7 ± 2.1** |")
    assert all(line.count(" | ") == lines[0].count(" | ") for line in lines[2:6])


def test_notes_say_what_has_to_be_known():
    text = "\n".join(notes(result()))
    for part in (
        "QUICK",
        "3 seeds, 2 epochs at batch size 64",
        "0.001 (mao 0.0003)",
        "2.0 ms",
        "a counter",
        "p < 0.05",
    ):
        assert part in text
    assert "No stars: a paired t-test needs at least 3 seeds, this is 2." in "\n".join(notes(result(2)))


def test_terminal_table_has_main_measures_and_costs():
    table = to_rich(result())
    assert len(table.columns) == 1 + 3 + 1 + 2
    assert table.row_count == 4
