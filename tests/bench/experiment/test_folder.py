import json
import math
import os

import pytest

from equipoise.bench.experiment.folder import FolderError, RunFolder


def record(method="ew", seed=0, **more):
    return {"method": method, "seed": seed, "status": "finished", **more}


def test_runs_round_trip_with_nan(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b")
    folder.create()
    folder.write_runs([record(test={"kind": {"F1": math.nan, "accuracy": 0.5}}), record("mao", 1)])
    first, second = RunFolder(tmp_path / "a" / "b").runs()
    assert math.isnan(first["test"]["kind"]["F1"])
    assert first["test"]["kind"]["accuracy"] == 0.5
    assert second["method"] == "mao"
    for line in (folder.path / "runs.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


def test_nothing_is_made_before_it_is_asked_for(tmp_path):
    folder = RunFolder(tmp_path / "a")
    assert folder.runs() == []
    assert not (tmp_path / "a").exists()
    folder.create()
    assert (tmp_path / "a").is_dir()


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
    (tmp_path / "runs.jsonl").write_text('{"method": "ew", "seed": 0}\nnonsense\n')
    with pytest.raises(FolderError, match="line 2 is damaged"):
        folder.runs()
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(FolderError, match=r"settings\.json is damaged"):
        folder.read_json("settings.json")
    assert folder.read_json("costs.json") is None


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="is a file, and a folder is needed"):
        RunFolder(tmp_path / "file")
    with pytest.raises(FolderError, match="cannot be made"):
        RunFolder(tmp_path / "file" / "below").create()
