import json
import math
import os

import pytest

from equipoise.experiment.folder import FolderError, RunFolder


def record(method="ew", seed=0, **more):
    return {"method": method, "seed": seed, "status": "finished", **more}


def test_runs_round_trip_with_nan(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b")
    folder.add_run(record(test={"kind": {"F1": math.nan, "accuracy": 0.5}}))
    folder.add_run(record("mao", 1))
    first, second = RunFolder(tmp_path / "a" / "b").runs()
    assert math.isnan(first["test"]["kind"]["F1"])
    assert first["test"]["kind"]["accuracy"] == 0.5
    assert second["method"] == "mao"
    for line in folder.runs_path.read_text().splitlines():
        json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


def test_a_line_cut_off_by_a_crash_is_dropped_and_the_rest_kept(tmp_path):
    folder = RunFolder(tmp_path)
    folder.add_run(record("ew"))
    folder.add_run(record("mao"))
    whole = folder.runs_path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first + 1, len(whole)):
        folder.runs_path.write_bytes(whole[:cut])
        assert [run["method"] for run in RunFolder(tmp_path).runs()] == ["ew"]
        assert folder.runs_path.read_bytes() == whole[:first]


def test_the_last_record_of_a_run_counts(tmp_path):
    folder = RunFolder(tmp_path)
    folder.add_run({"method": "ew", "seed": 0, "status": "failed", "message": "no"})
    folder.add_run(record("ew"))
    assert [run["status"] for run in folder.runs()] == ["finished"]


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.write("table.md", b"old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        folder.write("table.md", b"new")
    assert (tmp_path / "table.md").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]


def test_damage_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    folder.runs_path.write_text('{"method": "ew", "seed": 0}\nnonsense\n')
    with pytest.raises(FolderError, match="line 2 is damaged"):
        folder.runs()
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(FolderError, match=r"settings\.json is damaged"):
        folder.read_json("settings.json")
    assert folder.read_json("costs.json") is None


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="cannot be used"):
        RunFolder(tmp_path / "file")
