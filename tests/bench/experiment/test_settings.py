from dataclasses import replace

import pytest

from equipoise.bench.experiment.settings import Settings, SettingsError, parse_hyperparameters

BASE = Settings("digits", ("ew", "ema"), 3, False, 8, 64, 1000, 1e-3, 0.0, "constant", {"ema": {"beta": 0.2}})
PLACE = ("runs/digits", "another folder with --out")


def test_hyperparameters_from_file_and_command_line(tmp_path):
    file = tmp_path / "methods.toml"
    file.write_text("[ema]\nbeta = 0.3\n[mao]\nbetas = [0.8, 0.99]\nlr = 3e-4\n")
    found = parse_hyperparameters(["ema.beta=0.2", "mgda.normalization=l2", "uw.on=true"], file)
    assert found == {
        "ema": {"beta": 0.2},
        "mao": {"betas": [0.8, 0.99], "lr": 3e-4},
        "mgda": {"normalization": "l2"},
        "uw": {"on": True},
    }


def test_priorities_from_file_and_command_line(tmp_path):
    file = tmp_path / "methods.toml"
    file.write_text('[priorities]\nleft = 4.0\n"a.b" = 2\n')
    assert parse_hyperparameters(["priorities.left=3", "priorities.c.d=0.5"], file) == {
        "priorities": {"left": 3, "a.b": 2, "c.d": 0.5}
    }


@pytest.mark.parametrize("assignment", ["beta=0.2", "ema.beta", "ema.=1", ".beta=1", "ema.beta="])
def test_assignments_of_another_form(assignment):
    with pytest.raises(SettingsError, match=r"METHOD\.NAME=VALUE"):
        parse_hyperparameters([assignment], None)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read"):
        parse_hyperparameters([], tmp_path / "missing.toml")
    file = tmp_path / "methods.toml"
    file.write_text("[ema\n")
    with pytest.raises(SettingsError, match="cannot be read"):
        parse_hyperparameters([], file)
    file.write_text("beta = 0.2\n")
    with pytest.raises(SettingsError, match="not a table"):
        parse_hyperparameters([], file)


def test_json_round_trip():
    assert Settings.from_json(BASE.to_json()) == BASE
    with pytest.raises(SettingsError, match="another version"):
        Settings.from_json({"methods": []})


def test_more_methods_and_seeds_extend():
    wanted = replace(BASE, methods=("mao", "ema"), seeds=5)
    extended = wanted.extend(BASE, *PLACE)
    assert extended.methods == ("ew", "ema", "mao")
    assert extended.seeds == 5
    assert replace(BASE, methods=("ew",), seeds=1).extend(BASE, *PLACE) == BASE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1e-4}, "lr is 0.001 there and 0.0001 here"),
        ({"epochs": 2, "quick": True}, "quick is False there and True here; epochs is 8 there and 2 here"),
        ({"problem": "other"}, "problem is 'digits' there"),
        ({"source": "0123"}, "the file of digits was another one there"),
        ({"priorities": {"left": 2.0}}, r"priorities is {} there and {'left': 2.0} here"),
        ({"hyperparameters": {}}, r"ema's hyperparameters are {'beta': 0.2} there and {} here"),
        ({"hyperparameters": {"ema": {"beta": 0.2}, "single": {"lr": 0.1}}}, "single's hyperparameters"),
    ],
)
def test_other_settings_are_refused_and_named(change, message):
    with pytest.raises(SettingsError, match=message):
        replace(BASE, **change).extend(BASE, *PLACE)


def test_hyperparameters_of_a_new_method_are_no_difference():
    given = {"ema": {"beta": 0.2}, "mao": {"lr": 3e-4}}
    extended = replace(BASE, methods=("mao",), hyperparameters={"mao": {"lr": 3e-4}}).extend(BASE, *PLACE)
    assert extended.hyperparameters == given
    assert extended.hyperparameters_of("single:left") == {}


@pytest.mark.parametrize(
    ("earlier", "wanted", "words"),
    [
        (("ew", "ema@sgd"), {"methods": ("ema",)}, r"ema@sgd's hyperparameters are {} there and {'beta': 0.2} here"),
        (
            ("ew", "mao"),
            {"methods": ("ema@sgd",), "hyperparameters": {}},
            r"ema@sgd's hyperparameters are {'beta'.* {}",
        ),
        (("ema",), {"methods": ("ema@sgd",), "hyperparameters": {"ema@sgd": {"beta": 0.9}}}, None),
        (("mao",), {"methods": ("ema", "ema@sgd")}, None),
    ],
)
def test_what_is_given_for_one_row_does_not_reach_another_one(earlier, wanted, words):
    """Whether it is there already or asked for now: a row keeps the hyperparameters that it was asked for with."""
    there = replace(BASE, methods=earlier)
    if "ema@sgd" in earlier or earlier == ("mao",):
        there = replace(there, hyperparameters={})
    here = replace(BASE, **wanted)
    if words is not None:
        with pytest.raises(SettingsError, match=words):
            here.extend(there, *PLACE)
    else:
        both = here.extend(there, *PLACE)
        for settings in (there, here):
            for row in settings.methods:
                assert both.hyperparameters_of(row) == settings.hyperparameters_of(row)
