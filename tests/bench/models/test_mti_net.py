import pytest
import torch
from torch.nn import functional

pytest.importorskip("timm")

from equipoise.bench.models import MTINet, initial_predictions
from equipoise.bench.models._distillation import Distillation
from equipoise.bench.models.mti_net import Propagation

TASKS = {"segmentation": 5, "depth": 1, "normals": 3}


@pytest.fixture(scope="module")
def network() -> MTINet:
    torch.manual_seed(0)
    return MTINet(TASKS, "hrnet_w18_small")


@pytest.mark.parametrize("size", [(64, 96), (65, 50)])
def test_four_scales_and_their_initial_predictions(network, size) -> None:
    images = torch.randn(2, 3, *size)
    padded = [-(-side // 32) * 32 for side in size]
    representation = network.representation(images)
    strides = (4, 8, 16, 32)
    assert [tuple(scale.shape[2:]) for scale in representation] == [tuple(p // s for p in padded) for s in strides]
    assert [scale.shape[1] for scale in representation] == [16, 32, 64, 128]
    predictions = network(images)
    assert len(predictions) == 3 * 5
    for task, outputs in TASKS.items():
        for stride in strides:
            assert predictions[f"{task}@{stride}"].shape == (2, outputs, *(p // stride for p in padded))
        initial = initial_predictions(predictions, task, size)
        assert [tuple(prediction.shape) for prediction in initial] == [(2, outputs, *size)] * 4
    network.eval()
    with torch.no_grad():
        predictions = network(images)
    network.train()
    assert list(predictions) == list(TASKS)
    assert initial_predictions(predictions, "depth", size) == []


def test_initial_predictions_are_upsampled_and_cut() -> None:
    coarse = torch.arange(4.0).reshape(1, 1, 2, 2)
    (found,) = initial_predictions({"depth@8": coarse, "depth": torch.zeros(1), "other@4": coarse}, "depth", (15, 9))
    expected = functional.interpolate(coarse, scale_factor=8, mode="bilinear", align_corners=False)[..., :15, :9]
    assert torch.equal(found, expected)


def test_padding_changes_nothing_for_images_that_need_none(network) -> None:
    images = torch.randn(1, 3, 64, 32)
    network.eval()
    with torch.no_grad():
        for found, expected in zip(network.representation(images), network.trunk(images), strict=True):
            assert torch.equal(found, expected)
    network.train()


def test_features_go_from_coarse_to_fine_only(network) -> None:
    """An initial prediction depends on its own scale and coarser ones, the final prediction on all."""
    scales = [s.detach().requires_grad_() for s in network.representation(torch.randn(2, 3, 64, 64))]
    predictions = network.predict(tuple(scales), (64, 64))
    for index, stride in enumerate((4, 8, 16, 32)):
        gradients = torch.autograd.grad(
            predictions[f"depth@{stride}"].square().sum(), scales, retain_graph=True, allow_unused=True
        )
        reached = [gradient is not None and bool(gradient.any()) for gradient in gradients]
        assert reached == [False] * index + [True] * (4 - index)
    gradients = torch.autograd.grad(predictions["depth"].square().sum(), scales)
    assert all(gradient.any() for gradient in gradients)


def test_what_a_task_finds_reaches_the_others_by_distillation_and_propagation(network) -> None:
    """Final predictions depend on all tasks' features at every scale; an initial one on the others' coarser ones."""
    predictions = network(torch.randn(2, 3, 64, 64))
    for scale in range(4):
        for other in range(3):
            norm = network.features[scale][other][1].bn2.bias
            (gradient,) = torch.autograd.grad(predictions["depth"].square().sum(), norm, retain_graph=True)
            assert gradient.any(), (scale, other)
            (gradient,) = torch.autograd.grad(
                predictions["depth@8"].square().sum(), norm, retain_graph=True, allow_unused=True
            )
            expected = scale > 1 or (scale == 1 and other == 1)
            assert (gradient is not None and bool(gradient.any())) == expected, (scale, other)


def test_distillation_is_the_formula() -> None:
    torch.manual_seed(0)
    layer = Distillation(4, 3).double()
    features = [torch.randn(2, 4, 5, 6, dtype=torch.float64) for _ in range(3)]
    for index, found in enumerate(layer(features)):
        expected = features[index].clone()
        others = [position for position in range(3) if position != index]
        for link, other in zip(layer.links[index], others, strict=True):
            mask = torch.sigmoid(functional.conv2d(features[other], link.mask[0].weight, padding=1))
            assert mask.std() > 0.01
            expected += mask * functional.conv2d(features[other], link.message.weight, padding=1)
        torch.testing.assert_close(found, expected)


def test_propagation_weighs_the_tasks_with_shares_of_one() -> None:
    torch.manual_seed(0)
    layer = Propagation(8, 3).eval()
    seen = []
    layer.reduce.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    features = [torch.randn(2, 8, 4, 4) for _ in range(3)]
    found = layer(features)
    together = torch.cat(features, 1)
    scores = layer.attend(together)
    shares = torch.stack(scores.split(8, 1)).softmax(0)
    assert shares.std() > 0.05
    torch.testing.assert_close(shares.sum(0), torch.ones(2, 8, 4, 4))
    mixed = torch.cat([share * own for share, own in zip(shares, features, strict=True)], 1)
    torch.testing.assert_close(seen[0][0], mixed)
    for own, gate, result in zip(features, layer.gates, found, strict=True):
        torch.testing.assert_close(result, own + gate(seen[0][1]))


@pytest.mark.slow
def test_hrnet_18_has_the_known_widths() -> None:
    network = MTINet({"depth": 1, "normals": 3})
    # Sun et al., 2019: 18, 36, 72 and 144 channels; 9.6 M parameters without a head
    assert [tuple(scale.shape) for scale in network.trunk(torch.randn(2, 3, 64, 64))] == [
        (2, 18, 16, 16),
        (2, 36, 8, 8),
        (2, 72, 4, 4),
        (2, 144, 2, 2),
    ]
    assert network.trunk.feature_info.channels() == [18, 36, 72, 144]
    assert round(sum(p.numel() for p in network.trunk.parameters()) / 1e6, 1) == 9.6
