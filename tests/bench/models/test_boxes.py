import math

import pytest
import torch

pytest.importorskip("torchvision")

from torchvision.models.detection._utils import BoxCoder

from equipoise.bench.models.boxes import assign, decode, detect, detection_loss, encode


def boxes(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=dtype) * 80
    return torch.cat([corner, corner + 4 + torch.rand(count, 2, generator=generator, dtype=dtype) * 40], 1)


def overlap(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    return both / ((one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - both)


def test_decoding_undoes_encoding() -> None:
    truth, anchors = boxes(200), boxes(200, seed=1)
    torch.testing.assert_close(decode(encode(truth, anchors), anchors), truth)
    torch.testing.assert_close(encode(decode(encode(truth, anchors), anchors), anchors), encode(truth, anchors))
    assert not encode(anchors, anchors).any()


def test_encoding_agrees_with_torchvision() -> None:
    truth, anchors = boxes(50), boxes(50, seed=1)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    torch.testing.assert_close(encode(truth, anchors), coder.encode_single(truth, anchors))
    offsets = torch.randn(50, 4, dtype=torch.float64) * 3
    torch.testing.assert_close(decode(offsets, anchors), coder.decode_single(offsets, anchors))


def test_a_wild_prediction_stays_finite() -> None:
    assert decode(torch.full((1, 4), 500.0), torch.tensor([[0.0, 0, 10, 10]])).isfinite().all()


def test_assignment_is_the_rule() -> None:
    anchors, truth = boxes(300, seed=2), boxes(7)
    table = [[overlap(box, anchor) for anchor in anchors.tolist()] for box in truth.tolist()]
    expected = []
    for anchor in range(300):
        column = [row[anchor] for row in table]
        expected.append(column.index(max(column)) if max(column) >= 0.5 else -1)
    for index, row in enumerate(table):
        expected[row.index(max(row))] = index
    assert assign(anchors, truth).tolist() == expected
    assert -1 in expected
    assert len(set(expected)) == 8
    assert (assign(anchors, truth[:0]) == -1).all()


def test_loss_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors = boxes(60, seed=3)
    targets = [
        {"boxes": boxes(4), "labels": torch.tensor([0, 2, 1, 1])},
        {"boxes": boxes(0), "labels": torch.tensor([], dtype=torch.long)},
        {"boxes": boxes(2, seed=5), "labels": torch.tensor([2, 0])},
    ]
    logits = torch.randn(3, 60, 3, generator=generator, dtype=torch.float64)
    offsets = torch.randn(3, 60, 4, generator=generator, dtype=torch.float64)
    total, positives = 0.0, 0
    for image, target in enumerate(targets):
        taken = assign(anchors, target["boxes"]).tolist()
        for index, box in enumerate(taken):
            for label in range(3):
                p = 1 / (1 + math.exp(-logits[image, index, label]))
                if box >= 0 and target["labels"][box] == label:
                    total += -0.25 * (1 - p) ** 1.5 * math.log(p)
                else:
                    total += -0.75 * p**1.5 * math.log(1 - p)
            if box >= 0:
                positives += 1
                wanted = encode(target["boxes"][box], anchors[index])
                for error in (offsets[image, index] - wanted).abs().tolist():
                    total += 50 / 4 * (error - 0.05 if error >= 0.1 else error**2 / 0.2)
    assert positives >= 6
    found = detection_loss(logits, offsets, anchors, targets)
    assert found.item() == pytest.approx(total / positives, rel=1e-9)


def test_a_batch_without_a_box_has_a_loss_with_a_graph() -> None:
    logits = torch.zeros(1, 5, 2, requires_grad=True)
    offsets = torch.zeros(1, 5, 4, requires_grad=True)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    loss = detection_loss(logits, offsets, boxes(5).float(), [empty])
    loss.backward()
    assert loss.item() == pytest.approx(10 * 0.75 * 0.5**1.5 * math.log(2), rel=1e-6)
    assert (logits.grad > 0).all()


def test_detections_agree_with_greedy_suppression() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors = boxes(80, seed=3, dtype=torch.float32)
    logits = 3 * torch.randn(2, 80, 3, generator=generator) - 1
    offsets = 0.2 * torch.randn(2, 80, 4, generator=generator)
    for image, found in enumerate(detect(logits, offsets, anchors, (90, 100), min_score=0.3, limit=40)):
        decoded = decode(offsets[image], anchors)
        decoded[:, 0::2] = decoded[:, 0::2].clamp(0, 100)
        decoded[:, 1::2] = decoded[:, 1::2].clamp(0, 90)
        pairs = [
            (score, anchor, label)
            for anchor, row in enumerate(logits[image].sigmoid().tolist())
            for label, score in enumerate(row)
            if score > 0.3
        ]
        kept: list = []
        for score, anchor, label in sorted(pairs, reverse=True):
            box = decoded[anchor].tolist()
            if all(other[2] != label or overlap(box, other[3]) <= 0.5 for other in kept):
                kept.append((score, anchor, label, box))
        assert len(kept) > 40
        kept = kept[:40]
        torch.testing.assert_close(found["scores"], torch.tensor([entry[0] for entry in kept]))
        assert found["labels"].tolist() == [entry[2] for entry in kept]
        torch.testing.assert_close(found["boxes"], torch.tensor([entry[3] for entry in kept]))


def test_looks_at_the_best_candidates_only() -> None:
    logits = torch.tensor([[[3.0, -9.0], [2.0, -9.0], [1.0, -9.0]]])
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    (found,) = detect(logits, torch.zeros(1, 3, 4), anchors, (50, 50), candidates=2)
    assert found["boxes"].tolist() == anchors[:2].tolist()
    (none,) = detect(logits - 20, torch.zeros(1, 3, 4), anchors, (50, 50))
    assert none["boxes"].shape == (0, 4)
