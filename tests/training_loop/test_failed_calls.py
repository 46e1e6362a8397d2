"""A call that fails changes nothing that is kept: the step goes on as if it had not been made."""

import copy

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, gradients, snapshot

import equipoise as eq


class Raises(torch.autograd.Function):
    """The identity, whose backward pass raises."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no way back")


class Moody(eq.IMTLG):
    """IMTL-G, which raises when told to."""

    raises = False

    def weights(self, gramian, losses):
        if self.raises:
            raise RuntimeError("no weights")
        return super().weights(gramian, losses)


class MoodyEMA(eq.EMA):
    """EMA, which raises when told to, after it has written its state."""

    raises = False

    def forward(self, losses):
        weights = super().forward(losses)
        if self.raises:
            raise RuntimeError("no coefficients")
        return weights


class Loop:
    def __init__(self, kind, counted):
        self.model = Network()
        self.kind, self.counted = kind, counted
        if kind.startswith("mao"):
            groups = {"first": ["a"], "rest": ["b", "c"]} if kind == "mao groups" else None
            self.method = eq.MAO(
                self.model.parameters(), TASKS, lr=0.1, groups=groups, streaming=kind == "mao streaming"
            )
            self.optimizer = self.method
        else:
            aggregator = {"graddrop": lambda: eq.GradDrop(seed=0), "moody": Moody}.get(kind, lambda: None)()
            objective = eq.UW() if kind == "uw" else MoodyEMA()
            self.parts = {"objective": objective, "aggregator": aggregator}
            self.method = eq.Balancer(TASKS, objective, aggregator, model=self.model)
            self.optimizer = torch.optim.SGD([*self.model.parameters(), *self.method.parameters()], lr=0.1)

    def backward(self, losses, accumulate, counts=None):
        usual = dict.fromkeys(losses, 3) if self.counted and isinstance(losses, dict) else None
        options = {} if self.kind == "mao streaming" else {"accumulate": accumulate}
        return self.method.backward(losses, counts=usual if counts is None else counts, **options)

    def kept(self):
        return [snapshot(self.model, self.method), copy.deepcopy(self.optimizer.state_dict())]


class Fault:
    """Something that goes wrong in a micro-batch.

    Args:
        error: the error and its words.
        change: makes the losses that are given from those of the batch.
        part: of the Balancer, which raises.
        counts: that are given in place of the usual ones.
    """

    def __init__(self, error, words, change=lambda losses: losses, part=None, counts=None):
        self.error, self.words, self.change, self.part, self.counts = error, words, change, part, counts

    def happen(self, loop, index, accumulate):
        part = self.part and loop.parts[self.part]
        if part is not None:
            part.raises = True
        losses = self.change(loop.model.losses(batch(index)))
        with pytest.raises(self.error, match=self.words):
            loop.backward(losses, accumulate, self.counts)
        if part is not None:
            part.raises = False


def broken(*tasks):
    return lambda losses: {task: Raises.apply(loss) if task in tasks else loss for task, loss in losses.items()}


FAULTS = {
    "unknown task": Fault(ValueError, "'d'", lambda losses: {**losses, "d": losses["a"]}),
    "no mapping": Fault(TypeError, "losses", lambda losses: list(losses.values())),
    "nan": Fault(ValueError, "'b' is nan", lambda losses: {**losses, "b": losses["b"] * torch.nan}),
    "no graph": Fault(ValueError, "'c'", lambda losses: {**losses, "c": losses["c"].detach()}),
    "no scalar": Fault(ValueError, "'a'", lambda losses: {**losses, "a": losses["a"].expand(2)}),
    "bad counts": Fault(ValueError, r"counts\['b'\]", counts={"a": 1, "b": -1, "c": 1}),
    "first pass": Fault(RuntimeError, "no way back", broken("a")),
    "second pass": Fault(RuntimeError, "no way back", broken("b")),
    "last pass": Fault(RuntimeError, "no way back", broken("c")),
    "objective": Fault(RuntimeError, "no coefficients", part="objective"),
    "aggregator": Fault(RuntimeError, "no weights", part="aggregator"),
}
KINDS = ["together", "uw", "rows", "graddrop", "moody", "mao", "mao groups"]
PASSES = {"first pass", "second pass", "last pass"}


CASES = [
    (kind, name, at)
    for kind in KINDS
    for name in FAULTS
    for at in range(3)
    if not (name == "objective" and kind in {"uw", "mao", "mao groups"})
    and not (name == "aggregator" and (kind != "moody" or at < 2))  # it is asked at the last micro-batch
    and not (name == "bad counts" and kind == "mao groups")  # groups go without counts where there are micro-batches
    and not (name in PASSES and kind in {"together", "uw"})  # autograd has written .grad by then, as in any loop
]


def run(kind, fault, at):
    """Three steps of three micro-batches each, in the second of which something goes wrong before micro-batch `at`."""
    loop = Loop(kind, counted=kind in {"rows", "mao", "graddrop"})
    for step in range(3):
        loop.optimizer.zero_grad()
        for micro_batch in range(3):
            index, accumulate = 3 * step + micro_batch, micro_batch < 2
            if fault is not None and step == 1 and micro_batch == at:
                before = loop.kept()
                for other in (20, 21):
                    fault.happen(loop, other, accumulate)
                assert_same(loop.kept(), before)
            loop.backward(loop.model.losses(batch(index)), accumulate)
        loop.optimizer.step()
    return loop.kept()


@pytest.mark.parametrize(("kind", "name", "at"), CASES)
def test_a_failed_call_changes_nothing(kind, name, at):
    assert_same(run(kind, FAULTS[name], at), run(kind, None, at))


@pytest.mark.parametrize("at", [0, 1, 2], ids=["first", "middle", "last"])
@pytest.mark.parametrize("kind", ["together", "uw"])
def test_a_failed_pass_of_all_tasks_together_changes_only_grad(kind, at):
    loop = Loop(kind, counted=False)
    for micro_batch in range(at):
        loop.backward(loop.model.losses(batch(micro_batch)), accumulate=True)
    state = copy.deepcopy(loop.method.state_dict())
    FAULTS["last pass"].happen(loop, 20, at < 2)
    assert_same(loop.method.state_dict(), state)
    assert all(p.grad is None for p in loop.method.parameters())
    loop.optimizer.zero_grad()
    fresh = Loop(kind, counted=False)
    for one in (loop, fresh):
        one.backward(one.model.losses(batch(1)), accumulate=True)
        one.backward(one.model.losses(batch(2)), accumulate=False)
    assert_same(loop.kept(), fresh.kept())


@pytest.mark.parametrize("kind", ["together", "rows", "moody"])
def test_a_failed_first_micro_batch_has_nothing_to_be_taken_back(kind):
    """What has changed since then stays when gradients are cleared, or a step overflows."""

    def go(fail, overflow):
        loop = Loop(kind, counted=False)
        loop.backward(loop.model.losses(batch(0)), accumulate=False)
        loop.method.zero_grad()
        if fail:
            FAULTS["objective"].happen(loop, 20, accumulate=True)
        state = copy.deepcopy(loop.method.state_dict())
        loop.method.load_state_dict({k: v if k.endswith("_extra_state") else v + 1 for k, v in state.items()})
        loop.method.zero_grad()
        if overflow:
            losses = {task: loss * torch.inf for task, loss in loop.model.losses(batch(1)).items()}
            loop.method.backward(losses, scaler=torch.amp.GradScaler("cpu"))
        return copy.deepcopy(loop.method.state_dict())

    for overflow in (False, True):
        assert_same(go(True, overflow), go(False, overflow))


# --- scalers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregator", [None, eq.IMTLG], ids=["together", "aggregator"])
@pytest.mark.parametrize("counts", [None, dict.fromkeys(TASKS, 2)], ids=["sums", "counts"])
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("objective", [eq.EMA, eq.DWEMA, lambda: eq.RLW(seed=0)], ids=["ema", "dwema", "rlw"])
def test_a_step_that_overflows_takes_back_the_state_of_all_its_micro_batches(objective, at, counts, aggregator):
    model = Network()
    balancer = eq.Balancer(TASKS, objective(), aggregator and aggregator())
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        before = copy.deepcopy(balancer.state_dict())
        for micro_batch in range(3):
            losses = model.losses(batch(3 * step + micro_batch))
            if step == 1 and micro_batch == at:
                losses["b"] = losses["b"] * torch.inf
            balancer.backward(losses, accumulate=micro_batch < 2, counts=counts, scaler=scaler)
        if step == 1:
            assert_same(balancer.state_dict(), before)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert all(p.isfinite().all() for p in model.parameters())


# --- MAO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [2, {"first": ["a"], "rest": ["b", "c"]}])
@pytest.mark.parametrize("streaming", [False, True])
def test_groups_without_grad_mode(groups, streaming):
    models = Network(), Network()
    for model, enabled in zip(models, (True, False), strict=True):
        optimizer = eq.MAO(model.parameters(), TASKS, lr=0.1, groups=groups, streaming=streaming)
        for index in range(3):
            losses = model.losses(batch(index))
            with torch.set_grad_enabled(enabled):
                optimizer.backward(losses)
                optimizer.step()
                optimizer.zero_grad()
    assert_same(*(model.state_dict() for model in models))


@pytest.mark.parametrize("name", ["nan", "unknown task", "first pass", "second pass", "last pass"])
def test_streaming_goes_on_after_an_error(name):
    """Of the passes before the one that failed only moments are left: parameters and what others get are as before."""
    loop, whole = Loop("mao streaming", counted=False), Loop("mao streaming", counted=False)
    before, moments = copy.deepcopy(loop.model.state_dict()), copy.deepcopy(loop.method.state_dict())
    FAULTS[name].happen(loop, 20, accumulate=False)
    assert_same(loop.model.state_dict(), before)
    assert all(gradient is None for gradient in gradients(loop.model).values())
    loop.method.step()
    assert_same(loop.model.state_dict(), before)
    if name in {"second pass", "last pass"}:
        whole.method.backward(whole.model.losses(batch(20), "ab" if name == "last pass" else "a"))
        whole.method.zero_grad()
        assert_same(loop.method.state_dict(), whole.method.state_dict())
    else:
        assert_same(loop.method.state_dict(), moments)
    for one in (loop, whole):
        for index in range(2):
            one.method.backward(one.model.losses(batch(index)))
            one.method.step()
            one.method.zero_grad()
    assert_same(loop.kept(), whole.kept())


# --- loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ema", "uw", "gradnorm", "famo", "rlw", "mao"])
def test_a_state_that_is_incomplete_changes_nothing(name):
    models = Network(), Network(seed=1)
    method, other = (eq.make_method(name, model, TASKS) for model in models)
    for one, model in zip((method, other), models, strict=True):
        for index in range(3):
            one.zero_grad()
            one.backward(model.losses(batch(index)))
            one.step()
    state = other.state_dict()
    before = copy.deepcopy(method.state_dict())
    for path in [(key,) for key in state] + [("balancer", key) for key in state["balancer"] or ()]:
        lacking = copy.deepcopy(state)
        inner = lacking
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        with pytest.raises(ValueError, match=r"lacks|holds no Balancer"):
            method.load_state_dict(lacking)
        assert_same(method.state_dict(), before)
    method.load_state_dict(state)
    assert_same(method.state_dict()["balancer"], state["balancer"])
