"""What holds for every network."""

import pytest
import torch
from torch import nn

pytest.importorskip("timm")
pytest.importorskip("torchvision")

from vision_networks import CASES, Case, task_losses

import equipoise as eq
from equipoise.bench.models import HardSharing, MultiTaskNetwork
from equipoise.gradients import reached_leaves


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


def build(case: Case) -> MultiTaskNetwork:
    torch.manual_seed(0)
    return case.make()


def images(case: Case, count: int, height: int, width: int) -> torch.Tensor:
    shape = (count, 2, 3, height, width) if case.two_images else (count, 3, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (33, 160)])
def test_predictions_have_the_images_size(case: Case, size: tuple[int, int]) -> None:
    network = build(case)
    assert network.tasks == tuple(case.outputs)
    for mode in (True, False):
        predictions = network.train(mode)(images(case, 2, *size))
        for task, outputs in case.outputs.items():
            if task == "objects":
                anchors = 9 * sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in (8, 16, 32, 64, 128))
                assert predictions[task].shape == (2, anchors, outputs)
                assert predictions["objects.offsets"].shape == (2, anchors, 4)
                assert predictions["objects.anchors"].shape == (anchors, 4)
            else:
                assert predictions[task].shape == ((2, outputs, *size) if case.dense else (2, outputs))


def test_the_graphs_reach_what_the_network_says(case: Case) -> None:
    network = build(case)
    losses = task_losses(network, network(images(case, 2, 64, 64)))
    reached = [{id(leaf) for leaf in leaves} for leaves in reached_leaves(list(losses.values()))]
    counts = {name: sum(id(p) in leaves for leaves in reached) for name, p in network.named_parameters()}
    assert min(counts.values()) >= 1, "every parameter belongs to some task"
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    shared = [names[id(parameter)] for parameter in network.shared_parameters()]
    assert sorted(shared) == sorted(name for name, count in counts.items() if count > 1)
    assert {names[id(p)] for p in network.trunk.parameters()} <= set(shared)
    last = list(network.last_shared_layer().parameters())
    assert any(parameter.dim() > 1 for parameter in last)
    for parameter in last:
        assert counts[names[id(parameter)]] == len(network.tasks)


@pytest.mark.parametrize(
    ("make", "last"),
    [
        (lambda: HardSharing({"a": 1}, "resnet18"), "layer4.1.conv2"),
        (lambda: HardSharing({"a": 1}, "test_vit"), "blocks.5.mlp.fc2"),
        (CASES["mtan"].make, "layer4.1.conv2"),
        (CASES["mti-net"].make, "stage4.0.fuse_layers.3.2.0.0"),
        (CASES["efficientdet"].make, "layers.1.coarsest.convolution.1.1"),
        (CASES["emotic"].make, "fuse.0"),
    ],
)
def test_the_last_shared_layer(make, last: str) -> None:
    network = make()
    names = {id(module): name for name, module in network.trunk.named_modules()}
    assert names[id(network.last_shared_layer())] == last


def test_gradients_arrive_everywhere(case: Case) -> None:
    network = build(case)
    for module in network.modules():  # timm's residual branches start at zero, and then pass no gradient
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    sum(task_losses(network, network(images(case, 4, 96, 96))).values()).backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert silent == []
    zero = [name for name, p in network.named_parameters() if not p.grad.any()]
    allowed = ("bias",)  # of a convolution before batch normalisation
    assert [name for name in zero if not name.endswith(allowed)] == []


def test_the_graph_may_be_cut_at_the_representation(case: Case) -> None:
    """As MGDA-UB does: the gradient at the representation, handed back through the trunk, is the gradient."""
    network = build(case).double()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = images(case, 2, 64, 64).double()
    size = batch.shape[-2:]
    parameters = list(network.trunk.parameters())
    whole = sum(task_losses(network, network(batch)).values())
    expected = torch.autograd.grad(whole, parameters)
    representation = network.representation(batch)
    leaves = tuple(tensor.detach().requires_grad_() for tensor in representation)
    cut = sum(task_losses(network, network.predict(leaves, size)).values())
    torch.testing.assert_close(cut, whole)
    at_cut = torch.autograd.grad(cut, leaves, allow_unused=True)
    used = [(tensor, gradient) for tensor, gradient in zip(representation, at_cut, strict=True) if gradient is not None]
    found = torch.autograd.grad([pair[0] for pair in used], parameters, [pair[1] for pair in used])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_in_evaluation_an_image_does_not_depend_on_its_neighbours(case: Case) -> None:
    network = build(case).double().eval()
    batch = images(case, 3, 64, 80).double()
    with torch.no_grad():
        together, alone = network(batch), network(batch[1:2])
    for task in network.tasks:
        torch.testing.assert_close(together[task][1:2], alone[task])
        assert not torch.equal(together[task][0], together[task][1])


def test_the_default_generator_decides_the_initial_weights(case: Case) -> None:
    one, same = build(case).state_dict(), build(case).state_dict()
    torch.manual_seed(7)
    other = case.make().state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_task_names_may_be_anything() -> None:
    network = HardSharing({"Doubt/Confusion": 1, "a.b": 1, "type": 1}, "test_resnet")
    assert list(network(torch.randn(2, 3, 32, 32))) == ["Doubt/Confusion", "a.b", "type"]
    with pytest.raises(ValueError, match="tasks is empty"):
        HardSharing({}, "test_resnet")


def test_the_representation_serves_mgda_ub(case: Case) -> None:
    """The trunk gets the weighted sum of the task gradients, whatever its tensors are computed from."""
    network = build(case).double().eval()
    inputs = images(case, 2, 64, 64).double()
    trunk = list(network.trunk.parameters())
    gradients = eq.task_gradients(task_losses(network, network(inputs)), trunk)
    representation = [tensor.view_as(tensor) for tensor in network.representation(inputs)]
    losses = task_losses(network, network.predict(representation, (64, 64)))
    balancer = eq.Balancer(network.tasks, aggregator=eq.IMTLG())
    weights = balancer.backward(losses, representation=representation)
    for place, parameter in enumerate(trunk):
        rows = {task: gradients[task][place] for task in network.tasks}
        expected = sum(weights[task] * row for task, row in rows.items() if row is not None)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max() + 1))
