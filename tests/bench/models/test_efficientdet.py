import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("torchvision")

from equipoise.bench.metrics.detection import VOCDetection
from equipoise.bench.models import EfficientDet
from equipoise.bench.models.boxes import detect, detection_loss
from equipoise.bench.models.efficientdet import ANCHORS, STRIDES, BiFPNLayer, Fusion


def small(**options) -> EfficientDet:
    torch.manual_seed(0)
    return EfficientDet({"objects": 3}, {"depth": 1}, "test_efficientnet", width=16, layers=1, depth=1, **options)


def test_d0_has_its_known_number_of_parameters() -> None:
    """3,880,067 (its authors' D0, 90 classes), but for what the docstring says and redundant biases."""
    network = EfficientDet({"objects": 90}, {}, "tf_efficientnet_b0")
    second_laterals = (112 * 64 + 64 + 128) + (320 * 64 + 64 + 128)  # strides 16 and 32 projected again for their edge
    redundant_biases = 3 * 8 * 64  # before the batch normalisation of each fusion
    assert sum(p.numel() for p in network.parameters()) + second_laterals + redundant_biases == 3_880_067


def test_fusion_weights_are_shares() -> None:
    network = small()
    fusions = [module for module in network.modules() if isinstance(module, Fusion)]
    assert [len(fusion.weights) for fusion in fusions] == [2, 2, 2, 2, 3, 3, 3, 2]
    for fusion in fusions:
        assert fusion.shares().sum().item() == pytest.approx(1, abs=1e-4)
    fusion = fusions[4]
    with torch.no_grad():
        fusion.weights.copy_(torch.tensor([3.0, -2.0, 1.0]))
    torch.testing.assert_close(fusion.shares(), torch.tensor([0.75, 0, 0.25]), rtol=1e-3, atol=1e-4)
    scales = [torch.randn(2, 16, 5, 5) for _ in range(3)]
    fusion.eval()
    expected = fusion.convolution(0.75 * scales[0] + 0.25 * scales[2])
    torch.testing.assert_close(fusion(*scales), expected, rtol=1e-3, atol=1e-3)


def test_every_scale_reaches_every_other_within_a_layer() -> None:
    torch.manual_seed(0)
    layer = BiFPNLayer(4, 5)
    sides = [(24, 17), (12, 9), (6, 5), (3, 3), (2, 2)]
    scales = [torch.randn(2, 4, *side, requires_grad=True) for side in sides]
    fused = layer(scales)
    assert [tuple(scale.shape[2:]) for scale in fused] == sides
    for scale in fused:
        gradients = torch.autograd.grad(scale.square().sum(), scales, retain_graph=True)
        assert all(gradient.any() for gradient in gradients)


def test_a_layer_goes_down_and_up_as_in_the_paper() -> None:
    torch.manual_seed(0)
    layer = BiFPNLayer(4, 5).eval()
    down, up = layer.downward, layer.upward
    p3, p4, p5, p6, p7 = [torch.randn(2, 4, side, side) for side in (32, 16, 8, 4, 2)]

    def twice(scale: torch.Tensor) -> torch.Tensor:
        return scale.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def half(scale: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.max_pool2d(scale, 3, 2, 1)

    t6 = down[0](p6, twice(p7))
    t5 = down[1](p5, twice(t6))
    t4 = down[2](p4, twice(t5))
    o3 = down[3](p3, twice(t4))
    o4 = up[0](p4, t4, half(o3))
    o5 = up[1](p5, t5, half(o4))
    o6 = up[2](p6, t6, half(o5))
    o7 = layer.coarsest(p7, half(o6))
    for found, expected in zip(layer([p3, p4, p5, p6, p7]), (o3, o4, o5, o6, o7), strict=True):
        torch.testing.assert_close(found, expected)


def test_anchors_are_centred_on_their_cells() -> None:
    anchors = small()(torch.randn(2, 3, 70, 50))["objects.anchors"]
    start = 0
    for stride in STRIDES:
        rows, columns = -(-70 // stride), -(-50 // stride)
        level = anchors[start : start + rows * columns * ANCHORS].reshape(rows, columns, ANCHORS, 4)
        start += rows * columns * ANCHORS
        centers = (level[..., :2] + level[..., 2:]) / 2
        for row in range(rows):
            for column in range(columns):
                expected = torch.tensor([(column + 0.5) * stride, (row + 0.5) * stride])
                assert torch.equal(centers[row, column], expected.expand(ANCHORS, 2))
        sides = level[0, 0, :, 2:] - level[0, 0, :, :2]
        areas = sides.prod(1).sqrt() / (4 * stride)
        assert sorted(areas.tolist()) == pytest.approx(sorted([1, 2 ** (1 / 3), 2 ** (2 / 3)] * 3), rel=0.03)
        assert sorted((sides[:, 1] / sides[:, 0]).tolist()) == pytest.approx([0.5] * 3 + [1] * 3 + [2] * 3, rel=0.05)
    assert start == len(anchors)


@pytest.mark.parametrize("level", range(4))
def test_predictions_stand_in_the_order_of_the_anchors(level: int) -> None:
    """What changes when one cell of one scale does are the predictions of the anchors around it, at that scale."""
    network = small().eval()
    representation = [scale.clone() for scale in network.representation(torch.randn(1, 3, 128, 192))]
    before = network.predict(tuple(representation), (128, 192))
    rows, columns = representation[level].shape[2:]
    row, column = rows // 3, columns - 1
    representation[level][0, :, row, column] += 5
    after = network.predict(tuple(representation), (128, 192))
    for name in ("objects", "objects.offsets"):
        changed = (before[name] != after[name]).any(-1)[0]
        anchors = before["objects.anchors"][changed]
        stride = STRIDES[level]
        cells = ((anchors[:, :2] + anchors[:, 2:]) / 2 / stride - 0.5).round().long()
        assert {tuple(cell) for cell in cells.tolist()} <= {
            (x, y) for x in range(column - 2, column + 3) for y in range(row - 2, row + 3)
        }
        assert (column, row) in {tuple(cell) for cell in cells.tolist()}
        sides = (anchors[:, 2:] - anchors[:, :2]).prod(1).sqrt()
        assert (sides > 3.8 * stride).all()
        assert (sides < 6.6 * stride).all()


def test_starts_with_the_prior() -> None:
    scores = small().eval()(torch.randn(1, 3, 64, 64))["objects"].sigmoid()
    assert scores.mean().item() == pytest.approx(0.01, abs=0.005)


@pytest.mark.slow
def test_learns_two_images_by_heart() -> None:
    network = small()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 96, 128, generator=generator) * 0.1
    targets = [
        {"boxes": torch.tensor([[8.0, 8, 48, 40], [70, 30, 110, 90]]), "labels": torch.tensor([0, 1])},
        {"boxes": torch.tensor([[30.0, 20, 90, 84]]), "labels": torch.tensor([2])},
    ]
    for image, target in zip(images, targets, strict=True):
        for box, label in zip(target["boxes"].int().tolist(), target["labels"].tolist(), strict=True):
            image[label, box[1] : box[3], box[0] : box[2]] += 2
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(150):
        predictions = network(images)
        loss = detection_loss(
            predictions["objects"], predictions["objects.offsets"], predictions["objects.anchors"], targets
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[9] < 0.8 * losses[0]
    assert losses[-1] < 0.1 * losses[0]
    found = detect(predictions["objects"], predictions["objects.offsets"], predictions["objects.anchors"], (96, 128))
    metric = VOCDetection(3)
    metric.update(found, targets)
    assert metric.compute() > 0.9


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="one detection task, found 'a', 'b'"):
        EfficientDet({"a": 1, "b": 1}, {}, "test_efficientnet")
    with pytest.raises(ValueError, match=r"'test_vit' has \[16, .* missing"):
        EfficientDet({"a": 1}, {}, "test_vit")
