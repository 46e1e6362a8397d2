"""AdaTask and MTAdam against their papers' formulas in float64, and against each other's neighbours."""

import copy

import pytest
import torch
from mao_and_reference import PRESENT, Reference
from networks import TASKS, Network, assert_same, batch, snapshot

import equipoise as eq


class AdaTaskByHand(Reference):
    """Adam's averages a task, all corrected by the number of the parameter's updates."""

    @torch.no_grad()
    def step(self, rows):
        (beta1, beta2), eta = self.betas, self.lr
        for name, p in self.parameters.items():
            tasks = [task for task in rows if name in rows[task]]
            if not tasks:
                continue
            self.times[name] = t = self.times.get(name, 0) + 1
            update = eta * self.weight_decay * p
            for task in tasks:
                key, g = (task, name), rows[task][name]
                self.first[key] = m = beta1 * self.first.get(key, 0.0) + (1 - beta1) * g
                self.second[key] = v = beta2 * self.second.get(key, 0.0) + (1 - beta2) * g**2
                update += eta * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + self.eps)
            p.sub_(update)


class MTAdamByHand(Reference):
    """Gradients at the norm of the first task's, averages a task, the largest denominator for all."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.norms = {}

    @torch.no_grad()
    def step(self, rows):
        (beta1, beta2, beta3), eta = self.betas, self.lr
        for name, p in self.parameters.items():
            tasks = [task for task in TASKS if name in rows.get(task, {})]
            if not tasks:
                continue
            for task in tasks:
                norm = rows[task][name].norm().item()
                old = self.norms.get((task, name), norm)
                self.norms[task, name] = beta3 * old + (1 - beta3) * norm
            known = [self.norms.get((task, name), 0.0) for task in tasks]
            anchor = next((norm for norm in known if norm > 1e-10), None)
            averages, roots = [], []
            for task in tasks:
                key, g = (task, name), rows[task][name]
                g = g * (anchor / self.norms[key]) if self.norms[key] > 1e-10 else g
                self.times[key] = t = self.times.get(key, 0) + 1
                self.first[key] = m = beta1 * self.first.get(key, 0.0) + (1 - beta1) * g
                self.second[key] = v = beta2 * self.second.get(key, 0.0) + (1 - beta2) * g**2
                averages.append(m / (1 - beta1**t))
                roots.append((v / (1 - beta2**t)).sqrt())
            p.sub_(eta * sum(averages) / (torch.stack(roots).amax(0) + self.eps) + eta * self.weight_decay * p)


KINDS = {"adatask": (eq.AdaTask, AdaTaskByHand, (0.8, 0.95)), "mtadam": (eq.MTAdam, MTAdamByHand, (0.8, 0.95, 0.7))}
every_kind = pytest.mark.parametrize("kind", KINDS)


def train(model, optimizer, indices, present=PRESENT):
    for index in indices:
        optimizer.zero_grad()
        optimizer.backward(model.losses(batch(index), present[index]))
        optimizer.step()


@every_kind
def test_is_its_papers_formula_with_tasks_that_are_missing(kind):
    made, by_hand, betas = KINDS[kind]
    model, twin = Network().double(), Network().double()
    options = {"lr": 0.02, "betas": betas, "eps": 1e-6, "weight_decay": 0.1}
    optimizer, reference = made(model.parameters(), TASKS, **options), by_hand(twin, **options)
    for index in range(10):
        train(model, optimizer, [index])
        reference.step(reference.gradients(twin.losses(batch(index), PRESENT[index])))
    for (key, found), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=key)


def test_adatask_is_mao_while_every_task_is_there_and_not_when_one_was_missing():
    results = []
    for made in (eq.AdaTask, eq.MAO):
        model = Network()
        optimizer = made(model.parameters(), TASKS, lr=0.02, weight_decay=0.1)
        train(model, optimizer, range(4), ["abc"] * 4)
        together = copy.deepcopy(model.state_dict())
        train(model, optimizer, range(4, 6), [*["abc"] * 4, "a", "abc"])
        results.append((together, model.state_dict()))
    assert_same(results[0][0], results[1][0])
    assert not torch.equal(results[0][1]["trunk.weight"], results[1][1]["trunk.weight"])


@every_kind
def test_with_one_task_is_adam(kind):
    model, twin = Network(), Network()
    optimizer = KINDS[kind][0](model.parameters(), ["a"], lr=0.02, weight_decay=0.1)
    mao = eq.MAO(twin.parameters(), ["a"], lr=0.02, weight_decay=0.1)
    for each in ((model, optimizer), (twin, mao)):
        train(*each, range(5), ["a"] * 5)
    for found, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_adatask_keeps_a_parameters_count_when_the_task_that_had_it_is_dropped():
    model, twin = Network().double(), Network(1).double()
    optimizer = eq.AdaTask(model.parameters(), ["a", "b"], lr=0.02)
    train(model, optimizer, range(4), ["ab", "ab", "a", "a"])
    other = eq.AdaTask(twin.parameters(), ["b", "c"], lr=0.02)
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()), tasks="intersection")
    for each in ((model, optimizer), (twin, other)):
        train(*each, [0], ["b"])
    assert_same(twin.state_dict(), model.state_dict())


def test_mtadam_does_not_see_the_scale_of_a_loss():
    results = []
    for scale in (1.0, 1e4):
        model = Network().double()
        optimizer = eq.MTAdam(model.parameters(), TASKS, lr=0.02, eps=0.0)
        for index in range(4):
            optimizer.zero_grad()
            losses = model.losses(batch(index))
            optimizer.backward({**losses, "b": scale * losses["b"]})
            optimizer.step()
        results.append(model.state_dict())
    for key, found in results[0].items():
        torch.testing.assert_close(found, results[1][key], rtol=1e-9, atol=1e-11, msg=key)


def test_mtadam_takes_another_anchor_where_the_first_has_no_norm():
    """The first task's gradients are zero on a layer; nothing is divided by their norm."""
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = eq.MTAdam([p], TASKS, lr=0.1)
    optimizer.backward({"a": (p * 0).sum(), "b": (p * torch.tensor([1.0, 2.0, 2.0])).sum(), "c": 30 * p[0]})
    optimizer.step()
    g = torch.tensor([[1.0, 2.0, 2.0], [3.0, 0.0, 0.0]], dtype=torch.float64)  # norms of 3
    torch.testing.assert_close(p.detach(), 1 - 0.1 * g.sum(0) / (g.amax(0) + 1e-8), rtol=1e-12, atol=0)
    assert optimizer.state[p]["norm"].tolist() == [0.0, 3.0, 30.0]


@every_kind
def test_priorities_multiply_the_update(kind):
    p = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    optimizer = KINDS[kind][0]([p], TASKS, lr=0.1, eps=0.0, priorities={"b": 4.0, "a": 1.0, "c": 1.0})
    optimizer.backward({"a": 2 * p, "b": 5 * p, "c": -7 * p})
    optimizer.step()
    factors = optimizer.priorities
    assert p.item() == pytest.approx(1 - 0.1 * (factors["a"] + factors["b"] - factors["c"]))


@every_kind
def test_a_penalty_is_no_task_and_sparse_gradients_and_complex_parameters_are_taken(kind):
    made = KINDS[kind][0]
    results = []
    for sparse in (False, True):
        torch.manual_seed(0)
        table = torch.nn.Embedding(4, 2, sparse=sparse)
        spectrum = torch.nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
        optimizer = made([*table.parameters(), spectrum], ["a", "b"], lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            z = table(torch.arange(4)) * spectrum.abs()
            optimizer.backward({"a": z.square().sum(), "b": z.exp().sum()})
            (spectrum.abs().sum() * 0.1).backward()
            optimizer.step()
        assert not spectrum.isnan().any()
        results.append((table.weight.detach(), spectrum.detach()))
    if kind == "mtadam":
        torch.testing.assert_close(results[0], results[1])


@every_kind
def test_refuses_bad_numbers_and_the_state_of_another(kind):
    made, _, betas = KINDS[kind]
    model = Network()
    count = "three" if kind == "mtadam" else "two"
    for options, words in (
        ({"betas": (0.9,)}, f"betas must be {count} numbers"),
        ({"betas": (*betas[:-1], 1.0)}, f"beta{len(betas)} must be"),
        ({"eps": -1.0}, "eps must be"),
    ):
        with pytest.raises(ValueError, match=words):
            made(model.parameters(), TASKS, **options)
    optimizer = made(model.parameters(), TASKS)
    train(model, optimizer, [0])
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="This state_dict is of MAO, expected one of"):
        optimizer.load_state_dict(eq.MAO(model.parameters(), TASKS).state_dict())
    assert_same(snapshot(optimizer), before)


def test_mtadam_keeps_the_norms_of_half_precision_in_full_and_by_the_tasks_names():
    def make(tasks, seed):
        model = Network(seed).bfloat16()
        return model, eq.MTAdam(model.parameters(), tasks, lr=0.02)

    model, optimizer = make(["a", "b"], 0)
    train(model, optimizer, range(3), ["ab"] * 3)
    _, resumed = make(["a", "b"], 1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_same(resumed.state_dict(), optimizer.state_dict())
    third, other = make(["c", "b"], 2)
    train(third, other, range(2), ["bc"] * 2)
    norms = other.state[third.trunk.weight]["norm"].clone()
    other.load_state_dict(optimizer.state_dict(), tasks="intersection")
    found = other.state[third.trunk.weight]["norm"]
    assert found.dtype == torch.float32
    assert found.tolist() == [norms[0].item(), optimizer.state[model.trunk.weight]["norm"][1].item()]
