"""Detection around the network: anchors' targets, the loss, and from raw predictions to boxes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import batched_nms, box_convert, box_iou, clip_boxes_to_image, sigmoid_focal_loss

MAX_LOG_SCALE = math.log(1000 / 16)
"""A predicted box is at most this much larger than its anchor: beyond, the exponential overflows early in training."""


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Returns the offsets from anchors to boxes, `(Δx/w, Δy/h, log w'/w, log h'/h)`; all `[N, 4]`, boxes as corners."""
    box, anchor = (box_convert(corners, "xyxy", "cxcywh") for corners in (boxes, anchors))
    return torch.cat([(box[..., :2] - anchor[..., :2]) / anchor[..., 2:], (box[..., 2:] / anchor[..., 2:]).log()], -1)


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Returns the boxes, as corners, that `encode` gave the offsets of; scales are capped at 62.5."""
    anchor = box_convert(anchors, "xyxy", "cxcywh")
    centers = offsets[..., :2] * anchor[..., 2:] + anchor[..., :2]
    sizes = offsets[..., 2:].clamp(max=MAX_LOG_SCALE).exp() * anchor[..., 2:]
    boxes: Tensor = box_convert(torch.cat([centers, sizes], -1), "cxcywh", "xyxy")
    return boxes


def assign(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Gives each anchor a box: that of the largest overlap if it is ½ or more; and each box its best anchor anyway.

    Args:
        anchors: `[A, 4]`.
        boxes: `[N, 4]`.

    Returns:
        `[A]`: the box's index, −1 for background.
    """
    if len(boxes) == 0:
        return torch.full((len(anchors),), -1, device=anchors.device)
    overlap = box_iou(boxes, anchors)
    best, taken = overlap.max(0)
    taken = torch.where(best >= 0.5, taken, -1)
    taken[overlap.argmax(1)] = torch.arange(len(boxes), device=anchors.device)
    return taken


def detection_loss(
    logits: Tensor,
    offsets: Tensor,
    anchors: Tensor,
    targets: Sequence[Mapping[str, Tensor]],
    box_weight: float = 50.0,
) -> Tensor:
    """Focal loss of the classes and smooth L1 loss of the offsets, over the number of anchors that have a box.

    Args:
        logits: `[B, A, classes]`.
        offsets: `[B, A, 4]`.
        anchors: `[A, 4]`, as corners.
        targets: per image its true `boxes` `[N, 4]` and `labels` `[N]`.
        box_weight: of the offsets' loss.

    Returns:
        0-dim; an image without a box counts as background everywhere.

    Source: Tan et al., "EfficientDet", CVPR 2020: α = 0.25 and γ = 1.5; the rest (weight 50, smooth below 0.1, anchors
    matched at an overlap of ½) is its authors' code.
    """
    classes = torch.zeros_like(logits)
    errors = offsets.new_zeros(())
    positives = 0
    for index, target in enumerate(targets):
        taken = assign(anchors, target["boxes"].to(anchors.dtype))
        found = taken >= 0
        chosen = taken[found]
        classes[index, found, target["labels"][chosen]] = 1
        wanted = encode(target["boxes"][chosen].to(anchors.dtype), anchors[found])
        errors = errors + functional.smooth_l1_loss(offsets[index, found], wanted, beta=0.1, reduction="sum")
        positives += len(chosen)
    focal: Tensor = sigmoid_focal_loss(logits, classes, alpha=0.25, gamma=1.5, reduction="sum")
    return (focal + box_weight * errors / 4) / max(positives, 1)


def detect(
    logits: Tensor,
    offsets: Tensor,
    anchors: Tensor,
    size: tuple[int, int],
    min_score: float = 0.05,
    max_overlap: float = 0.5,
    candidates: int = 5000,
    limit: int = 100,
) -> list[dict[str, Tensor]]:
    """Turns raw predictions into detections.

    Args:
        logits: `[B, A, classes]`.
        offsets: `[B, A, 4]`.
        anchors: `[A, 4]`.
        size: height and width of the images, to which boxes are cut.
        min_score: detections below are dropped.
        max_overlap: of two detections of a class that overlap more, the better one stays.
        candidates: at most as many pairs of anchor and class of an image are looked at, the best first.
        limit: at most as many detections an image.

    Returns:
        Per image `boxes` `[N, 4]`, `scores` `[N]` in falling order and `labels` `[N]`.
    """
    found = []
    for scores, moves in zip(logits.detach().float().sigmoid(), offsets.detach().float(), strict=True):
        best, order = scores.flatten().topk(min(candidates, scores.numel()))
        order = order[best > min_score]
        best = best[best > min_score]
        anchor, label = order // scores.shape[1], order % scores.shape[1]
        boxes = clip_boxes_to_image(decode(moves[anchor], anchors[anchor]), size)
        keep = batched_nms(boxes, best, label, max_overlap)[:limit]
        found.append({"boxes": boxes[keep], "scores": best[keep], "labels": label[keep]})
    return found
