"""Attaching a monitor changes nothing, and what it records is right for every method and every kind of step."""

import copy
import math

import pytest
import torch
from contract.registry import NAMES, has_aggregator, make
from networks import TASKS, Network, assert_same, batch, gradients, snapshot

import equipoise as eq
from equipoise.gradients.ranks import Alone

PRESENT = ["abc", "ac", "abc", "b", "ab", "abc", "c", "bc", "abc"]


def step(model, method, index, tasks, **options):
    weights = method.backward(model.losses(batch(index), tasks), **options)
    state = gradients(model), torch.get_rng_state()
    method.step()
    if method.needs_after_step:
        with torch.no_grad():
            method.after_step(model.losses(batch(index), tasks))
    method.zero_grad()
    return weights, state


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("every", [1, 2])
def test_training_is_unchanged_bit_for_bit(name, every):
    results = []
    for monitored in (False, True):
        model, method = make(name)
        if monitored:
            monitor = eq.BalanceMonitor(method, model, every=every)
        steps = [step(model, method, index, tasks) for index, tasks in enumerate(PRESENT)]
        results.append((steps, snapshot(model), method.state_dict(), torch.get_rng_state()))
    assert_same(results[1], results[0])
    assert len(monitor.records) >= len(PRESENT) // every // 3


@pytest.mark.parametrize("name", ["ew", "uw", "gradnorm", "pcgrad", "graddrop", "mao"])
@pytest.mark.parametrize("options", [{}, {"counts": {"a": 2, "b": 3, "c": 1}}], ids=["sums", "counts"])
def test_micro_batches_are_unchanged_and_recorded_together(name, options):
    results = []
    for monitored in (False, True):
        model, method = make(name, dtype=torch.float64)
        if monitored:
            monitor = eq.BalanceMonitor(method, model, every=1)
        for index in range(3):
            method.backward(model.losses(batch(2 * index), "ab"), accumulate=True, **options)
            weights = method.backward(model.losses(batch(2 * index + 1), "bc"), **options)
            method.step()
            method.zero_grad()
        results.append((weights, snapshot(model), method.state_dict(), torch.get_rng_state()))
    assert_same(results[1], results[0])
    assert [sorted(t for t, w in record["weights"].items() if w is not None) for record in monitor.records] == [
        list(TASKS)
    ] * 3
    if name in ("ew", "mao"):  # against the gradients of both micro-batches together
        model, method = make(name, dtype=torch.float64)
        share = {"a": (1, 0), "b": (0.5, 0.5) if options else (1, 1), "c": (0, 1)}
        first, second = model.losses(batch(0)), model.losses(batch(1))
        joint = {task: share[task][0] * first[task] + share[task][1] * second[task] for task in TASKS}
        whole = eq.BalanceMonitor(method, model, every=1)
        method.backward(joint)
        method.step()
        assert_close(monitor.records[0], whole.records[0])


def assert_close(found, expected, tolerance=1e-9):
    assert list(found["weights"]) == list(expected["weights"])
    for task, weight in expected["weights"].items():
        assert found["weights"][task] == (None if weight is None else pytest.approx(weight, rel=tolerance))
    for key in ("gradient", "contribution"):
        for task in expected[key]:
            assert found[key][task] == [
                value if value is None else pytest.approx(value, rel=tolerance) for value in expected[key][task]
            ], (key, task)
    assert found["cosines"] == [
        [value if value is None else pytest.approx(value, rel=tolerance, abs=tolerance) for value in row]
        for row in expected["cosines"]
    ]


def norm(tensors):
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_weighted_task_gradients(name):
    model, method = make(name, dtype=torch.float64)
    monitor = eq.BalanceMonitor(method, model, every=1)
    layers = {"trunk": model.trunk, "branch": model.branch, "own": model.own, "heads.b": model.heads["b"]}
    for index, tasks in enumerate(PRESENT):
        losses = model.losses(batch(index), tasks)
        mine = {task: losses[task] for task in losses if task in monitor.recording.tasks}
        everything = [p for p in model.parameters() if p.requires_grad]
        raw = eq.task_gradients(mine, everything, retain_graph=True) if mine else {}
        weights = method.backward(losses)
        method.step()
        method.zero_grad()
        if not mine:
            continue
        record = monitor.records[-1]
        assert record["step"] == index
        assert {t: w for t, w in record["weights"].items() if w is not None} == pytest.approx(
            {task: float(weight) for task, weight in weights.items()}
        )
        for task in mine:
            by_parameter = dict(zip(everything, raw[task], strict=True))
            for layer, module in layers.items():
                own = [by_parameter[p] for p in module.parameters() if by_parameter[p] is not None]
                found = record["gradient"][task][monitor.recording.layers.index(layer)]
                if not own:
                    assert found is None
                elif layer in ("trunk", "branch") or not has_aggregator(name):
                    assert found == pytest.approx(abs(float(weights[task])) * norm(own), rel=1e-6), (task, layer)
        if len(mine) > 1:
            shared = [p for p in everything if p in set(model.shared())]
            for i, one in enumerate(TASKS):
                for j, other in enumerate(TASKS):
                    cosine = record["cosines"][i][j]
                    if one not in mine or other not in mine:
                        assert cosine is None
                        continue
                    rows = [
                        torch.cat(
                            [
                                (torch.zeros_like(p) if g is None else g).flatten()
                                for p, g in zip(everything, raw[task], strict=True)
                                if any(p is q for q in shared)
                            ]
                        )
                        for task in (one, other)
                    ]
                    expected = torch.nn.functional.cosine_similarity(*rows, dim=0)
                    assert cosine == pytest.approx(float(expected), abs=1e-6)


def test_one_pass_methods_need_one_pass_less_than_tasks(monkeypatch):
    passes = []
    rows = Alone.rows

    def counted(self, step, wanted, *arguments, **options):
        passes.extend(row for row in wanted if row)
        return rows(self, step, wanted, *arguments, **options)

    monkeypatch.setattr(Alone, "rows", counted)
    model, method = make("ew")
    monitor = eq.BalanceMonitor(method, model, every=2)
    counts = []
    for index, tasks in enumerate(["abc", "abc", "abc", "abc", "ac", "ac", "b"]):
        passes.clear()
        step(model, method, index, tasks)
        counts.append(len(passes))
    assert counts == [3, 0, 2, 0, 1, 0, 0]
    assert [record["step"] for record in monitor.records] == [0, 2, 4, 6]


def test_the_largest_gradient_is_what_the_others_leave():
    """Where its pass is spared, so that rounding takes next to nothing from it, and nothing from the others."""
    found = []
    for every in (1, 5):  # the sample at step 5 spares a pass, or runs all of them
        model, method = make("ew")
        monitor = eq.BalanceMonitor(method, model, every=every)
        for index in range(6):
            if every == 5 and index == 5:
                monitor._norms.clear()
            step(model, method, index, "abc")
        found.append(monitor.records[-1])
    assert_close(*found, tolerance=1e-4)
    assert found[0]["gradient"]["a"] == found[1]["gradient"]["a"]


@pytest.mark.parametrize("fused", [True, False])  # whose kernel leaves the step out; whose step is not called
def test_an_overflowed_step_leaves_no_trace(fused):
    records = []
    for overflow in (False, True):
        model, balancer = Network(), eq.Balancer(TASKS)
        optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
        monitor = eq.BalanceMonitor(balancer, model, every=1, optimizer=optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=1e38, backoff_factor=1e-36)
        if overflow:
            balancer.backward({task: 1e3 * loss for task, loss in model.losses(batch(5)).items()}, scaler=scaler)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert monitor.records == []
        balancer.backward(model.losses(batch(0)), scaler=scaler if overflow else None)
        scaler.step(optimizer) if overflow else optimizer.step()
        records += monitor.records
    assert_close(records[1], records[0], tolerance=1e-4)


@pytest.mark.parametrize("name", ["ew", "imtl-g", "mao"])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_cleared_in_place_of_a_step_are_not_recorded(name, set_to_none):
    records = []
    for twice in (False, True):
        model, method = make(name, dtype=torch.float64)
        monitor = eq.BalanceMonitor(method, model, every=1)
        if twice:
            method.backward(model.losses(batch(7)))
            method.optimizer.zero_grad(set_to_none)
        method.backward(model.losses(batch(0)))
        method.step()
        records += monitor.records
    assert len(records) == 2
    assert_close(records[1], records[0])


def test_gradients_added_up_by_hand_are_recorded_together():
    model, method = make("ew", dtype=torch.float64)
    monitor = eq.BalanceMonitor(method, model, every=1)
    for index in range(2):
        method.backward({task: loss / 2 for task, loss in model.losses(batch(index)).items()})
    method.step()
    twin, other = make("ew", dtype=torch.float64)
    whole = eq.BalanceMonitor(other, twin, every=1)
    other.backward(twin.losses(torch.cat([batch(0), batch(1)])))
    other.step()
    assert_close(monitor.records[0], whole.records[0])


def test_with_a_scaler_numbers_are_unscaled():
    records = []
    for scale in (None, 2.0**12):
        for name in ("ew", "imtl-g", "mao"):
            model, method = make(name)
            monitor = eq.BalanceMonitor(method, model, every=1)
            scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
            method.backward(model.losses(batch(0)), scaler=scaler)
            method.step() if scaler is None else scaler.step(method.optimizer)
            records += monitor.records
    assert len(records) == 6
    for plain, scaled in zip(records[:3], records[3:], strict=True):
        assert_close(scaled, plain, tolerance=1e-5)


def test_probing_records_every_layer():
    records = []
    for probe in (None, "branch"):
        model = Network().double()
        balancer = eq.Balancer(("a", "b"), aggregator=eq.IMTLG(), probe=None if probe is None else model.branch)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = eq.BalanceMonitor(balancer, model, every=1, optimizer=optimizer)
        weights = balancer.backward(model.losses(batch(0), "ab"))
        optimizer.step()
        (record,) = monitor.records
        assert record["weights"] == pytest.approx({task: float(weight) for task, weight in weights.items()})
        assert None not in record["gradient"]["a"][:1]
        records.append(record)
    ratio = records[1]["weights"]["a"] / records[0]["weights"]["a"]
    assert ratio != pytest.approx(1, abs=1e-5)
    assert records[1]["gradient"]["a"][0] == pytest.approx(abs(ratio) * records[0]["gradient"]["a"][0])


def test_probing_is_unchanged():
    results = []
    for monitored in (False, True):
        model, method = make("gradnorm", probe=None)
        method = eq.make_method("gradnorm", model, TASKS, lr=0.02, probe=model.trunk)
        if monitored:
            eq.BalanceMonitor(method, model, every=2)
        steps = [step(model, method, index, "abc") for index in range(5)]
        results.append((steps, snapshot(model), method.state_dict()))
    assert_same(results[1], results[0])


@pytest.mark.parametrize("compiled", ["whole", "trunk"])
def test_compiled_models_are_unchanged(compiled):
    results = []
    for monitored in (False, True):
        torch.compiler.reset()
        model, method = make("ema")
        compute = torch.compile(model.losses, backend="aot_eager") if compiled == "whole" else model.losses
        if compiled == "trunk":
            model.trunk.compile(backend="aot_eager")
        monitor = eq.BalanceMonitor(method, model, every=2) if monitored else None
        for index in range(4):
            method.backward(compute(batch(index)))
            method.step()
            method.zero_grad()
        results.append((snapshot(model), method.state_dict()))
    assert_same(results[1], results[0])
    eager, other = make("ema")
    plain = eq.BalanceMonitor(other, eager, every=2)
    for index in range(4):
        step(eager, other, index, "abc")
    assert monitor.recording.layers == plain.recording.layers
    for found, expected in zip(monitor.records, plain.records, strict=True):
        assert_close(found, expected, tolerance=1e-3)


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.01}, {"groups": {"first": ["a", "b"], "rest": ["c"]}}])
def test_streaming_is_recorded_as_plain_but_for_the_cosines(options):
    recordings = []
    for streaming in (False, True):
        model = Network().double()
        optimizer = eq.MAO(model.parameters(), TASKS, lr=0.01, streaming=streaming, **options)
        monitor = eq.BalanceMonitor(optimizer, model, every=2)
        for index, tasks in enumerate(PRESENT):
            optimizer.backward(model.losses(batch(index), tasks))
            optimizer.step()
            optimizer.zero_grad()
        recordings.append(monitor.recording)
    plain, streamed = recordings
    assert streamed.tasks == plain.tasks
    assert plain.records[0]["cosines"][0][0] == pytest.approx(1)
    for found, expected in zip(streamed.records, plain.records, strict=True):
        assert {cosine for row in found["cosines"] for cosine in row} == {None}
        assert_close(found | {"cosines": []}, expected | {"cosines": []})


def test_groups_of_tasks_are_recorded_as_one():
    model, twin = Network().double(), Network().double()
    grouped = eq.MAO(model.parameters(), TASKS, lr=0.01, groups={"first": ["a", "b"], "rest": ["c"]})
    summed = eq.MAO(twin.parameters(), ["first", "rest"], lr=0.01)
    monitors = eq.BalanceMonitor(grouped, model, every=1), eq.BalanceMonitor(summed, twin, every=1)
    for index in range(3):
        losses = twin.losses(batch(index))
        grouped.backward(model.losses(batch(index)))
        summed.backward({"first": losses["a"] + losses["b"], "rest": losses["c"]})
        for optimizer in (grouped, summed):
            optimizer.step()
            optimizer.zero_grad()
    assert monitors[0].recording.tasks == ["first", "rest"]
    for found, expected in zip(monitors[0].records, monitors[1].records, strict=True):
        assert_close(found, expected)


def test_max_norm_shows():
    model = Network().double()
    optimizer = eq.MAO(model.parameters(), TASKS, lr=0.01, max_norm=1e-3)
    monitor = eq.BalanceMonitor(optimizer, model, every=1)
    optimizer.backward(model.losses(batch(0)))
    optimizer.step()
    for numbers in monitor.records[0]["gradient"].values():
        assert math.hypot(*(number for number in numbers if number is not None)) == pytest.approx(1e-3, rel=1e-2)


def test_a_task_without_labels_does_not_lose_the_sample():
    model, method = make("single:b")
    monitor = eq.BalanceMonitor(method, model, every=4)
    for index, tasks in enumerate(["a", "c", "b", "ab", "b", "b"]):
        step(model, method, index, tasks)
    assert monitor.recording.steps == [2, 4]
    assert monitor.recording.tasks == ["b"]
    assert monitor.records[0]["cosines"] == [[None]]


def test_goes_on_at_the_saved_step():
    model, method = make("ew")
    monitor = eq.BalanceMonitor(method, model, every=3)
    for index in range(5):
        step(model, method, index, "abc")
    assert monitor.state_dict() == {"step": 5}
    monitor.detach()
    again = eq.BalanceMonitor(method, model, every=3)
    again.load_state_dict(monitor.state_dict())
    for index in range(5, 10):
        step(model, method, index, "abc")
    assert monitor.recording.steps == [0, 3]
    assert again.recording.steps == [6, 9]


def test_detached_leaves_nothing_behind():
    model, method = make("ew")
    hooks = len(method.optimizer._optimizer_step_post_hooks)
    monitor = eq.BalanceMonitor(method, model, every=1)
    with pytest.raises(ValueError, match=r"a monitor already.*detach"):
        eq.BalanceMonitor(method, model)
    step(model, method, 0, "abc")
    monitor.detach()
    assert len(method.optimizer._optimizer_step_post_hooks) == hooks
    step(model, method, 1, "abc")
    assert monitor.recording.steps == [0]


@pytest.mark.parametrize("name", ["ema", "mao"])
def test_copies_are_not_watched(name):
    model, method = make(name)
    monitor = eq.BalanceMonitor(method, model, every=1)
    twin = copy.deepcopy(method.optimizer if name == "mao" else method.balancer)
    twin.backward(model.losses(batch(0)))
    assert not monitor._sample.rows
    assert monitor.records == []


def test_layers_are_those_of_the_plain_model():
    model = Network()
    wrapped = torch.compile(model, backend="eager")
    balancer = eq.Balancer(TASKS, eq.UW(), model=model)
    model.balancer = balancer  # as in a LightningModule
    optimizer = torch.optim.Adam(model.parameters())
    monitor = eq.BalanceMonitor(balancer, wrapped, optimizer=optimizer)
    heads = [f"heads.{task}" for task in TASKS]
    assert monitor.recording.layers == ["trunk", "frozen", "branch", "own", *heads, "unused"]
    alone = torch.nn.Linear(2, 2)
    alone_monitor = eq.BalanceMonitor(eq.MAO(alone.parameters(), TASKS), alone)
    assert alone_monitor.recording.layers == ["(model)"]


@pytest.mark.parametrize("name", ["ew", "mgda"])
def test_of_scalars_the_last_one_is_recorded(name):
    """Each is balanced by itself; a factor does not count."""
    records = []
    for parts in ([0, 1], [1]):
        model, method = make(name, dtype=torch.float64)
        monitor = eq.BalanceMonitor(method, model, every=1)
        for _ in range(2):
            method.zero_grad()
            for part in parts:
                (method.loss(model.losses(batch(part))) / len(parts)).backward()
            before = copy.deepcopy(model.state_dict())
            method.step()
            model.load_state_dict(before)
        records.append([{**record, "contribution": {}} for record in monitor.records])
    for found, expected in zip(*records, strict=True):
        assert_close(found, expected)


def test_what_it_cannot_watch_is_said():
    model = Network()
    balancer = eq.Balancer(TASKS)
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(TypeError, match=r"make_method\(\) gives, a Balancer, or an optimizer as MAO; found Adam"):
        eq.BalanceMonitor(optimizer, model)
    with pytest.raises(ValueError, match="optimizer=optimizer"):
        eq.BalanceMonitor(balancer, model)
    with pytest.raises(ValueError, match="leave optimizer out"):
        eq.BalanceMonitor(eq.make_method("ew", model, TASKS), model, optimizer=optimizer)
    with pytest.raises(TypeError, match=r"of Adam, AdamW, .*, PerTask of these, MAO, AdaTask and MTAdam; found Rprop"):
        eq.BalanceMonitor(balancer, model, optimizer=torch.optim.Rprop(model.parameters()))
    with pytest.raises(ValueError, match="no parameter of the model"):
        eq.BalanceMonitor(balancer, Network(), optimizer=optimizer)
    for every in (0, 2.5):
        with pytest.raises(ValueError, match=rf"every must be .* found {every}"):
            eq.BalanceMonitor(balancer, model, every, optimizer=optimizer)
    with pytest.raises(TypeError, match=r"writers takes paths.* found int"):
        eq.BalanceMonitor(balancer, model, writers=[3], optimizer=optimizer)
    eq.BalanceMonitor(balancer, model, optimizer=optimizer)  # none of them has attached
