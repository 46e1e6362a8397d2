"""The papers' experiments: their tables, and two steps of each on made-up data in the official layouts."""

import math
import re
from pathlib import Path

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("timm")

from typer.testing import CliRunner

from equipoise.bench.cli import app
from equipoise.bench.experiment.execution import _open_problem
from equipoise.bench.experiment.folder import RunFolder
from equipoise.bench.experiment.reproduce import (
    EXPERIMENTS,
    find_experiment,
    hyperparameters_for,
    measured,
    paper_markdown,
    problem_name,
)
from equipoise.bench.experiment.reproduce.table import printed
from equipoise.bench.problems import load_problem, split_options
from equipoise.registry import METHODS


def run(*arguments, code=0):
    _open_problem.cache_clear()  # a process keeps the data that it has read last
    done = CliRunner().invoke(app, ["reproduce", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_smoke(name, tmp_path):
    experiment = EXPERIMENTS[name]
    out = tmp_path / "out"
    output = run(name, "--smoke", "--workers", "1", "--out", out)
    problem = load_problem(experiment.problem)
    own = experiment.methods[-1]
    records = {record["method"]: record for record in RunFolder(out).runs()}
    assert list(records) == [*(f"single:{task.name}" for task in problem.tasks), own]
    assert all(record["status"] == "finished" for record in records.values())
    test, losses = records[own]["test"], records[own]["epochs"][0]["loss"]
    for task in problem.tasks:
        assert math.isfinite(losses[task.name])
        assert {measure.name for measure in task.measures} <= test[task.name].keys()
    paper = (out / "paper.md").read_text()
    assert "SMOKE" in paper
    assert "SMOKE" in output
    for row in experiment.table.rows.values():
        for column, number in zip(experiment.table.columns, row, strict=True):
            if number is not None:
                assert f"{number[0]:.{column.digits}f}" in paper
    here = [line for line in paper.splitlines() if line.startswith("| ") and "| here |" in line]
    assert any(re.search(r"\d", line) for line in here)


def test_a_second_smoke_run_finds_everything_done(tmp_path):
    first = run("emotic", "--smoke", "--workers", "1", "--out", tmp_path / "out")
    assert "runs are in the folder already" not in first
    before = (tmp_path / "out" / "paper.md").read_text()
    run("emotic", "--smoke", "--workers", "1", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "paper.md").read_text() == before


def test_methods_that_all_fail_are_no_success(tmp_path):
    output = run("emotic", "--smoke", "--workers", "1", "--set", "mao.lr=1e30", "--out", tmp_path / "out", code=1)
    assert "(diverged: the loss of" in output
    assert (tmp_path / "out" / "paper.md").exists()


def test_a_smoke_run_fills_an_empty_data_folder_and_reads_what_lies_in_a_full_one(tmp_path):
    data = tmp_path / "data"
    run("affectnet", "--smoke", "--workers", "1", "--data", data)
    assert (data / "training.csv").exists()
    (data / "training.csv").unlink()
    output = run("affectnet", "--smoke", "--workers", "1", "--data", data, code=2)
    assert "training.csv is missing" in output
    assert not (data / "training.csv").exists()


def test_without_a_data_folder_the_layout_and_the_source_are_told():
    output = run("celeba", code=2)
    assert "--data DIR" in output
    assert "list_attr_celeba.txt" in output
    assert "mmlab.ie.cuhk.edu.hk" in output


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_wrong_folder_is_told_with_the_layout_and_where_to_get_the_data(name, tmp_path):
    output = run(name, "--data", tmp_path / "nothing", "--out", tmp_path / "out", code=2)
    source = type(load_problem(EXPERIMENTS[name].problem)).source
    assert "nothing" in output
    assert "Expected in the data folder:" in output
    assert "http" in source.request
    assert not (tmp_path / "out").exists()


def test_an_unknown_experiment_is_told_the_known_ones():
    for arguments in (["imagenet"], []):
        output = run(*arguments, code=2)
        assert all(name in output for name in EXPERIMENTS)


def test_a_wrong_choice_about_damaged_files_is_told(tmp_path):
    output = run("celeba", "--data", tmp_path, "--on-damaged", "ignore", code=2)
    assert "--on-damaged" in output
    assert all(word in output for word in ("'ignore'", "'error'", "'skip'"))


@pytest.mark.parametrize(("option", "below"), [("--data", ""), ("--data", "deeper"), ("--out", "")])
def test_a_file_where_made_up_data_need_a_folder_is_told(option, below, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    output = run("emotic", "--smoke", option, file / below, code=2)
    assert f"{file} is a file" in output
    assert option in output
    assert file.read_text() == "mine"


def test_an_experiments_problem_takes_options():
    experiment = find_experiment("nyudv2-mtan-scratch?loading=0&on_damaged=error")
    name = problem_name(experiment, Path("/data"), smoke=False, on_damaged="skip")
    assert split_options(name) == (
        "nyudv2-mtan",
        {"pretrained": False, "loading": 0, "data": "/data", "on_damaged": "skip"},
    )
    assert find_experiment("nyudv2-mtan-scratch") == EXPERIMENTS["nyudv2-mtan-scratch"]


def test_the_list_names_every_experiment():
    output = run("--list")
    assert all(name in output for name in EXPERIMENTS)


def test_experiments_are_those_of_the_papers():
    assert set(EXPERIMENTS) == {
        "celeba",
        "affwild2",
        "affectnet",
        "emotic",
        "emotic-26",
        "nyudv2-mtan",
        "nyudv2-mtan-scratch",
        "nyudv2-mtinet",
        "nyudv2-mtinet-scratch",
        "nyuv2-amtl",
        "voc-nyu",
    }
    for name, experiment in EXPERIMENTS.items():
        assert experiment.name == name
        assert set(experiment.methods) <= set(METHODS)
        assert experiment.hyperparameters.keys() <= set(experiment.methods)
        assert experiment.table.rows.keys() <= {*experiment.methods, "single-task"}
        tasks = {task.name: task for task in load_problem(experiment.problem).tasks}
        for column in experiment.table.columns:
            assert all(task == "*" or task in tasks for task, _ in column.terms)


PROTOCOLS = {  # epochs, batch, learning rate, weight decay, schedule as the papers say
    "emotic": (15, 52, 1e-4, 5e-4, "tenth-after-half"),
    "emotic-26": (15, 52, 1e-4, 5e-4, "tenth-after-half"),
    "nyudv2-mtan": (100, 4, 1e-4, 1e-4, "poly"),
    "nyudv2-mtan-scratch": (170, 4, 1e-4, 1e-4, "poly"),
    "nyudv2-mtinet": (100, 4, 1e-4, 1e-4, "poly"),
    "nyudv2-mtinet-scratch": (170, 4, 1e-4, 1e-4, "poly"),
    "nyuv2-amtl": (100, 8, 4e-4, 5e-6, "poly"),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_training_is_as_the_paper_says(name):
    from equipoise.bench.problems import with_options

    experiment = EXPERIMENTS[name]
    training = load_problem(with_options(experiment.problem, **experiment.options)).training()
    found = (training.epochs, training.batch_size, training.lr, training.weight_decay, training.schedule)
    assert found == PROTOCOLS[name]
    assert experiment.seeds == (3 if name == "nyuv2-amtl" else 5)


def test_methods_have_the_papers_hyperparameters():
    def own(name, tune=False, **given):
        experiment = EXPERIMENTS[name]
        return hyperparameters_for(experiment, experiment.methods, given, tune)

    for name, beta in (("celeba", 0.2), ("affwild2", 0.1), ("affectnet", 0.1)):
        averaged = {method: {"beta": beta} for method in ("ema", "rema", "dwema")}
        assert own(name) == {"dwa": {"interval": 1}, **averaged}
    assert own("emotic") == own("emotic-26") == {"mao": {"lr": 1e-3}}
    assert own("emotic", tune=True) == {}
    assert own("emotic", mao={"lr": 1e-4}, ew={"lr": 1e-3}) == {"mao": {"lr": 1e-4}, "ew": {"lr": 1e-3}}
    assert own("nyuv2-amtl")["amtl"] == {"potentials": {"segmentation": 0.4453, "depth": 0.8087, "normals": 0.4572}}
    assert hyperparameters_for(EXPERIMENTS["celeba"], ["ew", "ema"], {}, False) == {"ema": {"beta": 0.2}}


def test_overall_scores_of_the_printed_tables_are_what_their_columns_say():
    for name in ("affwild2", "affectnet"):
        for method, row in EXPERIMENTS[name].table.rows.items():
            *parts, overall = (number[0] for number in row)
            assert sum(parts) == pytest.approx(overall, abs=0.0031), method
    for method, row in EXPERIMENTS["emotic-26"].table.rows.items():
        *parts, mean = (number[0] for number in row)
        assert sum(parts) / 26 == pytest.approx(mean, abs=0.011), method


def record(method, seed, **test):
    return {"method": method, "seed": seed, "status": "finished", "test": test}


def test_measured_numbers_are_combined_within_each_seed():
    experiment = EXPERIMENTS["affwild2"]
    tasks = ["action_units", "expression", "valence_arousal"]
    first = {"action_units": {"F1": 0.5}, "expression": {"F1": 0.2}, "valence_arousal": {"CCC": 0.1}}
    second = {"action_units": {"F1": 0.7}, "expression": {"F1": 0.2}, "valence_arousal": {"CCC": 0.3}}
    records = [
        *(record(f"single:{task}", 0, **{task: first[task]}) for task in tasks),
        record("ew", 0, **first),
        record("ew", 1, **second),
        record("ema", 0, **second),
        {"method": "ema", "seed": 1, "status": "diverged", "message": ""},
    ]
    entries = measured(experiment, records, tasks, ["ew", "ema"])
    units, *_, overall = experiment.table.columns
    assert entries["ew"][units].mean == pytest.approx(0.6)
    assert entries["ew"][overall].mean == pytest.approx((0.8 + 1.2) / 2)
    assert entries["ew"][overall].deviation == pytest.approx(math.sqrt(2) * 0.2)
    assert entries["ema"][overall].mean == pytest.approx(1.2)
    assert entries["ema"][overall].deviation is None
    assert entries["single-task"][overall].mean == pytest.approx(0.8)
    assert (entries["ew"][overall].best, entries["ema"][overall].best) == (False, True)
    paper = paper_markdown(experiment, entries, ["a remark"])
    assert "| equal weights | paper | 0.579 | **0.082** | 0.083 | 0.744 |" in paper
    assert "|  | here | 0.600 ± 0.141 | **0.200 ± 0.000** | 0.200 ± 0.141 | 1.000 ± 0.283 |" in paper
    assert "| ema | paper | **0.590** | 0.080 | **0.133** | **0.800** |" in paper
    assert "- a remark" in paper


def test_gains_are_against_single_task_training_of_the_same_seed():
    experiment = EXPERIMENTS["voc-nyu"]
    tasks = ["detection", "segmentation", "depth"]
    records = []
    for seed, factor in ((0, 1.1), (1, 1.3)):
        alone = {"detection": {"mAP": 0.5 + seed / 10}, "segmentation": {"mIoU": 0.4}, "depth": {"δ<1.25": 0.8}}
        records += [record(f"single:{task}", seed, **{task: alone[task]}) for task in tasks]
        both = {task: {name: factor * value for name, value in values.items()} for task, values in alone.items()}
        records.append(record("amtl", seed, **both))
    entries = measured(experiment, records, tasks, ["amtl"])
    gains = [column for column in experiment.table.columns if column.combine == "gain"]
    assert [entries["amtl"][column].mean for column in gains] == pytest.approx([20] * 3)
    assert not any(column in entries["single-task"] for column in gains)
    average = experiment.table.columns[0]
    assert entries["single-task"][average].mean == pytest.approx(0.55)


def test_errors_are_best_where_they_are_smallest():
    marked = printed(EXPERIMENTS["nyudv2-mtinet"])
    columns = EXPERIMENTS["nyudv2-mtinet"].table.columns
    best = {column.label: [method for method in marked if marked[method][column].best] for column in columns}
    assert best == {
        "mIoU %": ["ew"],
        "pAcc %": ["ew"],
        "Abs. δ m": ["gradnorm"],
        "Rel. δ": ["gradnorm"],
        "Mean °": ["mao"],
        "Median °": ["mao"],
    }


def test_settings_name_the_data_folder_absolutely(tmp_path, monkeypatch):
    from pathlib import Path

    from equipoise.bench.experiment.reproduce import problem_name

    monkeypatch.chdir(tmp_path)
    name = problem_name(EXPERIMENTS["nyudv2-mtan-scratch"], Path("my data"), smoke=False, on_damaged="skip")
    expected = {"data": str(tmp_path / "my data"), "on_damaged": "skip", "pretrained": False}
    assert split_options(name) == ("nyudv2-mtan", expected)


def test_the_page_about_it_names_every_experiment():
    text = (Path(__file__).parents[3] / "docs" / "reproduce.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    assert rows == set(EXPERIMENTS)
