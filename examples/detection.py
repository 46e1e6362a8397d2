"""Object detection: torchvision's Faster R-CNN, which computes its four losses itself; some pictures hold no object.

    python examples/detection.py

Pictures of up to two discs and squares, on which a small detector is trained from nothing. The scales of its losses lie
a factor of fifty apart; UW learns their weights. In a batch without any object there is nothing to regress: both box
losses are 0, and are left out of the step.
"""

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, box_iou

import equipoise as eq

TASKS = ["loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"]
SIZE = 64


def detector() -> FasterRCNN:
    """A backbone of a few convolutions; `fasterrcnn_resnet50_fpn(weights=None)` is trained by the same lines."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    backbone = nn.Sequential(*layers, nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())
    backbone.out_channels = 64
    return FasterRCNN(
        backbone,
        min_size=SIZE,
        rpn_anchor_generator=AnchorGenerator(sizes=((12, 18, 24),), aspect_ratios=((1.0,),)),
        rpn_pre_nms_top_n_train=100,
        rpn_post_nms_top_n_train=40,
        rpn_batch_size_per_image=32,
        box_batch_size_per_image=16,
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=4, sampling_ratio=2),
        box_head=TwoMLPHead(64 * 4 * 4, 64),
        box_predictor=FastRCNNPredictor(64, num_classes=3),
    )


def pictures(count: int, source: torch.Generator) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Noise with 0 to 2 discs (label 1) and squares (label 2), one in the left half and one in the right half."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    images, targets = [], []
    for _ in range(count):
        image, boxes, labels = 0.2 * torch.rand(3, SIZE, SIZE, generator=source), [], []
        for left in (0, SIZE // 2):
            label, radius, cx, cy = (int(n * torch.rand((), generator=source)) for n in (3, 5, 12, 40))
            radius, cx, cy = radius + 6, left + cx + 11, cy + 12
            if label:
                disc = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
                square = torch.maximum((x - cx).abs(), (y - cy).abs()) < radius
                image[:, disc if label == 1 else square] = 0.5 + 0.5 * torch.rand(3, 1, generator=source)
                boxes.append([cx - radius, cy - radius, cx + radius, cy + radius])
                labels.append(label)
        images.append(image)
        targets.append({"boxes": torch.tensor(boxes).reshape(-1, 4).float(), "labels": torch.tensor(labels).long()})
    return images, targets


def main(steps: int = 400, batch_size: int = 4) -> dict[str, float]:
    torch.manual_seed(0)
    source = torch.Generator().manual_seed(0)
    model = detector()
    balancer = eq.Balancer(TASKS, eq.UW())
    optimizer = torch.optim.AdamW([*model.parameters(), *balancer.parameters()], lr=1e-3)
    for step in range(steps):
        images, targets = pictures(batch_size, source)
        losses = model(images, targets)
        if not any(len(target["boxes"]) for target in targets):
            losses = {task: loss for task, loss in losses.items() if not task.endswith("box_reg")}
        weights = balancer.backward(losses)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}:", {task: f"loss {losses[task]:.3f}, weight {weights[task]:.1f}" for task in losses})
    return found(model.eval(), *pictures(50, source))


@torch.no_grad()
def found(model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, float]:
    """Which part of the objects is found, at its place and with its label, and how often something else is."""
    right = objects = claims = 0
    for claimed, target in zip(model(images), targets, strict=True):
        sure = claimed["scores"] > 0.5
        overlaps = box_iou(target["boxes"], claimed["boxes"][sure])
        same = target["labels"][:, None] == claimed["labels"][sure]
        right += int(((overlaps > 0.5) & same).any(1).sum())
        objects, claims = objects + len(target["boxes"]), claims + int(sure.sum())
    print(f"{right} of {objects} objects found; {claims - right} claims are wrong")
    return {"found": right / objects, "wrong": (claims - right) / max(claims, 1)}


if __name__ == "__main__":
    main()
