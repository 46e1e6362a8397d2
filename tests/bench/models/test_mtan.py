from itertools import pairwise

import pytest
import torch
from torch import nn

pytest.importorskip("timm")
pytest.importorskip("torchvision")

from equipoise.bench.models import MTAN

CHANNELS = (64, 128, 256, 512)


@pytest.fixture(scope="module")
def network() -> MTAN:
    torch.manual_seed(0)
    return MTAN({"segmentation": 5, "depth": 1}, "resnet18")


@pytest.mark.parametrize("size", [(64, 64), (75, 53)])
def test_masks_lie_in_the_unit_interval_and_are_multiplied_with_the_shared_features(network, size) -> None:
    seen = []
    hooks = []
    for task, stages in enumerate(network.attention):
        for stage, attention in enumerate(stages):
            hooks.append(
                attention.mask.register_forward_hook(
                    lambda module, inputs, mask, key=(task, stage): seen.append((key, "mask", inputs[0], mask))
                )
            )
            hooks.append(
                attention.register_forward_hook(
                    lambda module, inputs, out, key=(task, stage): seen.append((key, "selected", inputs[1], out))
                )
            )
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        representation = network.representation(images)
        network.predict(representation, size)
    for hook in hooks:
        hook.remove()
    masks = {key: (given, out) for key, kind, given, out in seen if kind == "mask"}
    selected = {key: (given, out) for key, kind, given, out in seen if kind == "selected"}
    assert set(masks) == set(selected) == {(task, stage) for task in range(2) for stage in range(4)}
    for (task, stage), (given, mask) in masks.items():
        before, after = representation[2 * stage : 2 * stage + 2]
        assert mask.shape == after.shape
        assert mask.min() >= 0
        assert mask.max() <= 1
        assert mask.std() > 0.01
        assert torch.equal(selected[task, stage][0], after)
        assert torch.equal(selected[task, stage][1], mask * after)
        assert torch.equal(given[:, : before.shape[1]], before)
        assert given.shape[1] == before.shape[1] * (1 if stage == 0 else 2)


def test_strides_and_stages(network) -> None:
    representation = network.representation(torch.randn(1, 3, 96, 64))
    assert [tuple(tensor.shape[1:]) for tensor in representation] == [
        shape for shape in [(64, 24, 16), (128, 12, 8), (256, 12, 8), (512, 12, 8)] for _ in range(2)
    ]


def test_the_trunk_is_the_resnet(network) -> None:
    images = torch.randn(2, 3, 64, 64)
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network.representation(images)[-1], network.trunk.forward_features(images))
    network.train()


def test_a_closed_mask_lets_nothing_of_the_stage_through(network) -> None:
    """With every mask at 0 the task's prediction does not depend on the image; the other task's still does."""
    torch.manual_seed(0)
    closed = MTAN({"segmentation": 5, "depth": 1}, "resnet18").eval()
    for attention in closed.attention[0]:
        norm = [layer for layer in attention.mask.modules() if isinstance(layer, nn.BatchNorm2d)][-1]
        nn.init.zeros_(norm.weight)
        nn.init.constant_(norm.bias, -1e4)
    with torch.no_grad():
        one, other = closed(torch.randn(1, 3, 64, 64)), closed(torch.randn(1, 3, 64, 64))
    assert torch.equal(one["segmentation"], other["segmentation"])
    assert not torch.allclose(one["depth"], other["depth"])


def test_number_of_parameters(network) -> None:
    def conv(inputs: int, outputs: int, kernel: int = 1, norm: bool = True) -> int:
        return inputs * outputs * kernel * kernel + 2 * outputs * norm

    attention = sum(conv(c + (c if stage else 0), c // 4) + conv(c // 4, c) for stage, c in enumerate(CHANNELS))
    encoders = sum(
        conv(a, b // 4) + conv(b // 4, b // 4, 3) + conv(b // 4, b) + conv(a, b) for a, b in pairwise(CHANNELS)
    )
    resnet = 11_689_512 - 513_000  # ResNet-18 without its classifier of 1,000
    pyramid = 2 * conv(512, 256) + 3 * conv(512, 256, 3) + conv(5 * 256, 256) + conv(256, 256, 3)
    heads = sum(pyramid + 256 * outputs + outputs for outputs in (5, 1))
    assert sum(p.numel() for p in network.parameters()) == resnet + encoders + 2 * attention + heads


def test_refuses_what_is_no_such_resnet() -> None:
    with pytest.raises(ValueError, match="name of a ResNet in timm, such as 'resnet18'; found 'vgg11'"):
        MTAN({"depth": 1}, "vgg11")
    with pytest.raises(ValueError, match=r"'resnet10t' has \[1, 1, 1, 1\]"):
        MTAN({"depth": 1}, "resnet10t")
