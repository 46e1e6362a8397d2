import math
import multiprocessing
import os
import time
from collections import Counter
from dataclasses import replace

import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from equipoise.bench.experiment import store as module
from equipoise.bench.experiment.database import StorageError, remove_damaged, sqlite_path, sqlite_url
from equipoise.bench.experiment.definition import Definition
from equipoise.bench.experiment.store import Store
from equipoise.bench.experiment.trial import Trial
from equipoise.bench.experiment.view import MAX_DEATHS

TRIAL = Trial("ema", 1, 3, 8, 16, 1e-2, 0.0, hyperparameters={"beta": 0.2}, reference={"a": math.nan, "b": 0.5})
DEFINITION = Definition("digits", True, TRIAL, picture=True, monitor_every=50)
RECORD = {
    **TRIAL.head,
    "status": "finished",
    "selected": 1,
    "epochs": [{"score": 0.25, "validation": {"a": {"MSE": math.nan}}}],
}


@pytest.fixture
def store(tmp_path):
    return Store(sqlite_url(tmp_path / "with space%20 and ?" / "study.db"), "name", create=True)


@pytest.fixture(autouse=True)
def folder(tmp_path):
    (tmp_path / "with space%20 and ?").mkdir()


def states(store):
    return [trial.state for trial in store.view().trials]


def definitions(count):
    return [replace(DEFINITION, trial=replace(TRIAL, seed=seed)) for seed in range(count)]


def test_definitions_survive_json_with_nan_and_none(store):
    store.enqueue([DEFINITION])
    claim = Store(store.url, "name").claim("me")
    found = claim.definition
    assert math.isnan(found.trial.reference["a"])
    assert found.trial.potentials is None
    plain = replace(TRIAL, reference=None)
    assert replace(found, trial=replace(found.trial, reference=None)) == replace(DEFINITION, trial=plain)


def test_a_run_goes_from_the_queue_to_its_record_and_files(store):
    store.enqueue([DEFINITION])
    assert store.view().queued == {TRIAL.key}
    claim = store.claim("me")
    assert store.claim("you") is None
    store.epoch(claim, 1, 0.1)
    store.epoch(claim, 2, math.nan)
    assert list(store.view().under_way.values()) == [2]
    assert store.finish(claim, RECORD, {"predictions/ema.png": b"\x89PNG\x00", "monitor/ema-1.jsonl": b"{}\n"})
    view = Store(store.url, "name").view()
    assert view.queued == set()
    assert view.under_way == {}
    (record,) = view.records().values()
    assert math.isnan(record["epochs"][0]["validation"]["a"]["MSE"])
    assert record["epochs"][0]["score"] == 0.25
    assert view.files(TRIAL.key) == {"predictions/ema.png": b"\x89PNG\x00", "monitor/ema-1.jsonl": b"{}\n"}
    assert view.trials[0].value == 0.25


def test_what_the_comparison_says_about_itself(store):
    assert store.get("settings") is None
    store.set("settings", {"methods": ["ew"]})
    assert Store(store.url, "name").get("settings") == {"methods": ["ew"]}


def take(url, queue, start):
    store = Store(url, "name")
    start.wait()
    taken = []
    while (claim := store.claim("me")) is not None:
        taken.append(claim.definition.trial.seed)
    queue.put(taken)


def test_processes_never_take_the_same_run(store):
    """SQLite has no row locks: without the lock from a transaction's beginning, this fails."""
    store.enqueue(definitions(60))
    context = multiprocessing.get_context("spawn")
    queue, start = context.Queue(), context.Event()
    processes = [context.Process(target=take, args=(store.url, queue, start)) for _ in range(4)]
    for process in processes:
        process.start()
    time.sleep(1)
    start.set()
    taken = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert Counter(seed for seeds in taken for seed in seeds) == Counter(range(60))


def test_a_run_that_is_given_back_is_taken_again(store):
    store.enqueue([DEFINITION])
    first = store.claim("me")
    store.give_back(first)
    second = store.claim("you")
    assert second == first
    assert store.finish(second, RECORD, {})
    store.give_back(first)  # what is done stays done
    assert states(store) == [TrialState.COMPLETE]


def test_a_worker_that_does_not_answer_loses_its_run_and_cannot_finish_it(store, monkeypatch):
    monkeypatch.setattr(store._storage, "grace_period", 1)
    store.enqueue(definitions(2))
    silent, answering = store.claim("silent"), store.claim("answering")
    deadline = time.monotonic() + 3.2
    while time.monotonic() < deadline:
        assert store.alive(answering)
        time.sleep(0.2)
    store.tidy()
    assert states(store) == [TrialState.FAIL, TrialState.RUNNING]
    assert not store.alive(silent)
    assert store.alive(answering)
    store.epoch(silent, 1, 0.5)
    assert not store.finish(silent, RECORD, {"a": b"b"})
    assert store.finish(answering, RECORD, {})
    view = store.view()
    assert view.queued == set()
    assert set(view.records()) == {TRIAL.key}


def test_a_run_that_waited_long_is_not_taken_away_at_once(store, monkeypatch):
    """It has an old heartbeat, from the worker that gave it back."""
    monkeypatch.setattr(store._storage, "grace_period", 1)
    store.enqueue([DEFINITION])
    store.give_back(store.claim("me"))
    time.sleep(2.2)
    store.claim("you")
    store.tidy()
    assert states(store) == [TrialState.RUNNING]


def test_a_worker_that_is_known_to_be_dead_loses_its_run(store):
    store.enqueue(definitions(2))
    store.claim("dead")
    store.claim("alive")
    store.abandon("dead")
    assert states(store) == [TrialState.FAIL, TrialState.RUNNING]


def test_a_worker_of_this_machine_that_is_gone_loses_its_run_at_once(store):
    """In an SQLite file; of other machines' workers nothing is known but their heartbeat."""
    gone = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0,))
    gone.start()
    gone.join()
    store.enqueue(definitions(3))
    for worker in (module.worker_name(gone.pid), module.worker_name(os.getpid()), f"elsewhere:{gone.pid}"):
        store.claim(worker)
    store.tidy()
    assert states(store) == [TrialState.FAIL, TrialState.RUNNING, TrialState.RUNNING]


def test_what_is_there_twice_counts_once(store):
    store.enqueue([DEFINITION, DEFINITION, DEFINITION])
    first, second = store.claim("me"), store.claim("you")
    store.finish(second, RECORD | {"seconds": 2}, {})
    assert len(store.view().surplus) == 1
    store.tidy()
    assert states(store) == [TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED]
    assert store.claim("them") is None
    store.finish(first, RECORD | {"seconds": 1}, {})
    assert [record["seconds"] for record in store.view().records().values()] == [1]


def test_of_two_that_wait_the_first_stays(store):
    store.enqueue([DEFINITION, DEFINITION])
    store.tidy()
    assert states(store) == [TrialState.WAITING, TrialState.PRUNED]


def test_failures_count_until_they_are_tried_again(store):
    failed = RECORD | {"status": "failed", "message": "no memory"}
    store.enqueue([DEFINITION])
    store.finish(store.claim("me"), failed, {})
    assert store.view().records()[TRIAL.key]["message"] == "no memory"
    assert store.view().records({0}) == {}
    store.enqueue([DEFINITION])
    store.finish(store.claim("me"), RECORD, {})
    for forgiven in (set(), {0}, {0, 1}):
        assert store.view().records(forgiven)[TRIAL.key]["status"] == "finished"


def test_a_run_that_its_workers_die_of_is_given_up(store):
    for death in range(MAX_DEATHS):
        assert store.view().records() == {}
        store.enqueue([DEFINITION])
        store.claim(f"worker {death}")
        store.abandon(f"worker {death}")
    (record,) = store.view().records().values()
    assert record["status"] == "failed"
    assert "3 workers died" in record["message"]


def test_diverged_runs_are_settled(store):
    store.enqueue([DEFINITION])
    store.finish(store.claim("me"), RECORD | {"status": "diverged", "message": "nan"}, {})
    assert store.view().trials[0].value == -math.inf
    assert store.view().records({0})[TRIAL.key]["status"] == "diverged"


def test_runs_of_another_version_are_refused_and_left(store, monkeypatch):
    store.enqueue([DEFINITION])
    monkeypatch.setattr("equipoise.bench.experiment.definition.FORMAT", 3)
    with pytest.raises(StorageError, match="another version"):
        store.claim("me")
    assert states(store) == [TrialState.WAITING]


def test_what_is_not_there(tmp_path, store):
    with pytest.raises(StorageError, match=r"There is no study 'name' in sqlite:.*none\.db"):
        Store(sqlite_url(tmp_path / "none.db"), "name")
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(StorageError, match="There is no study 'other'"):
        Store(store.url, "other")


def test_passwords_are_not_shown():
    url = "postgresql+psycopg://me:secret@localhost:1/nothing"
    with pytest.raises(StorageError, match="cannot be used") as caught:
        Store(url, "name", create=True)
    assert "secret" not in str(caught.value)


def test_one_comparison_at_a_time_works_on_a_study(store, monkeypatch):
    other = Store(store.url, "name")
    with store.coordinate():
        monkeypatch.setattr(module, "worker_name", lambda process: "elsewhere:1")
        with pytest.raises(StorageError, match=rf"\(.*:{os.getpid()}\) works on study"), other.coordinate():
            pass
        monkeypatch.setattr(module, "_lives", lambda worker: False)  # as if it had been killed
        with other.coordinate():
            pass
        monkeypatch.undo()
        monkeypatch.setattr(module, "worker_name", lambda process: "elsewhere:1")
        monkeypatch.setattr(module, "GRACE_SECONDS", 0)  # or had not answered for long
        with other.coordinate():
            pass
    monkeypatch.setattr(module, "GRACE_SECONDS", 60)
    with other.coordinate():
        pass


def test_a_run_that_waits_when_a_session_begins_may_fail_in_it(store):
    store.enqueue([DEFINITION])
    forgiven = store.view().failures
    store.finish(store.claim("me"), RECORD | {"status": "failed", "message": "no memory"}, {})
    assert store.view().records(forgiven)[TRIAL.key]["message"] == "no memory"
    assert store.view().records(store.view().failures) == {}


def test_a_record_left_by_a_worker_that_died_before_it_counted_does_not_count(store):
    store.enqueue([DEFINITION])
    claim = store.claim("me")
    store._storage.set_trial_user_attr(claim.trial_id, "record", RECORD)
    store.abandon("me")
    assert store.view().records() == {}


def test_a_run_taken_again_is_not_its_dead_workers(store, monkeypatch):
    """Between being taken and its new worker's name being known."""
    gone = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0,))
    gone.start()
    gone.join()
    store.enqueue([DEFINITION])
    store.give_back(store.claim(module.worker_name(gone.pid)))
    write = store._storage.set_trial_user_attr

    def tidied_before(trial_id, name, value):
        Store(store.url, "name").tidy()
        write(trial_id, name, value)

    monkeypatch.setattr(store._storage, "set_trial_user_attr", tidied_before)
    store.claim("me")
    assert states(store) == [TrialState.RUNNING]


@pytest.mark.parametrize(
    "url", ["mysql://me@here/x", "oracle://me@here/x", "postgresql+psycopg://here:port/x", "sqlite://", "nonsense"]
)
def test_what_is_no_database_that_can_be_used(url):
    with pytest.raises(StorageError, match="no database that can be used: write sqlite:///FILE"):
        Store(url, "name", create=True)


def test_a_server_that_is_away_for_a_while_costs_no_record(store, monkeypatch):
    store.enqueue([DEFINITION])
    claim = store.claim("me")
    write, failures = store._storage.set_trial_user_attr, iter(range(3))

    def flaky(trial_id, name, value):
        if next(failures, None) is not None:
            raise StorageInternalError from OperationalError(
                "UPDATE", {}, Exception("the server closed the connection")
            )
        write(trial_id, name, value)

    monkeypatch.setattr(store._storage, "set_trial_user_attr", flaky)
    with pytest.raises(StorageError, match="the server closed the connection"):
        store.finish(claim, RECORD, {})  # an SQLite file does not come back
    monkeypatch.setattr(module, "sqlite_path", lambda url: None)
    assert store.finish(claim, RECORD, {})
    assert states(store) == [TrialState.COMPLETE]
    store.enqueue(definitions(1))
    claim = store.claim("me")
    failures = iter(range(99))
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.5)
    with pytest.raises(StorageError, match="the server closed the connection"):
        store.finish(claim, RECORD, {})


def test_a_study_begun_anew_is_empty_and_has_its_workers(store):
    store.set("settings", 1)
    store.enqueue([DEFINITION])
    waiting = Store(store.url, "name")
    assert waiting.claim("me") is not None
    Store(store.url, "another", create=True)  # the next study has another number
    store.begin_anew()
    assert store.get("settings") is None
    assert states(store) == []
    assert waiting.claim("me") is None
    store.enqueue([DEFINITION])
    assert waiting.claim("me") is not None


def test_a_file_that_is_no_database_is_removed_and_any_other_stays(store, tmp_path):
    store.set("settings", 1)
    place = sqlite_path(store.url)
    remove_damaged(place)
    assert store.get("settings") == 1
    damaged = tmp_path / "damaged.db"
    remove_damaged(damaged)
    damaged.write_bytes(b"no database " * 100)
    remove_damaged(damaged)
    assert not damaged.exists()
