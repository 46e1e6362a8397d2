"""VOC's rules against a transcription of the devkit's text, COCO's against pycocotools alone."""

import contextlib
import io

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision")

from merging import assert_merges

from equipoise.bench.metrics.detection import COCODetection, VOCDetection

CLASSES = 4
INCLUSIVE = np.array([1, 1, 0, 0])  # back to pixel-inclusive corners


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.integers(0, 60, (count, 2))
    return np.concatenate([corner, corner + rng.integers(8, 40, (count, 2))], 1).astype(np.float64)


@pytest.fixture(params=[0, 1, 2])
def images(request) -> tuple[list, list]:
    rng = np.random.default_rng(request.param)
    detections, truth = [], []
    for image in range(25):
        count = 0 if image == 3 else int(rng.integers(1, 6))
        boxes = random_boxes(rng, count)
        labels = rng.integers(0, CLASSES - 1, count)  # the last class has no box
        difficult = rng.random(count) < 0.2
        near = np.repeat(boxes, 2, 0) + rng.normal(0, 3, (2 * count, 4)).round()
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        found = np.concatenate([near, random_boxes(rng, 4)])
        guesses = np.concatenate([np.repeat(labels, 2), rng.integers(0, CLASSES, 4)])
        guesses = np.where(rng.random(len(guesses)) < 0.15, rng.integers(0, CLASSES, len(guesses)), guesses)
        if image == 5:
            found, guesses = found[:0], guesses[:0]
        scores = rng.permutation(10_000)[: len(found)] / 10_000 + image * 1e-6  # no two the same
        detections.append(
            {
                "boxes": torch.tensor(found).float().reshape(-1, 4),
                "scores": torch.tensor(scores).float(),
                "labels": torch.tensor(guesses),
            }
        )
        truth.append(
            {
                "boxes": torch.tensor(boxes).float().reshape(-1, 4),
                "labels": torch.tensor(labels),
                "difficult": torch.tensor(difficult),
            }
        )
    return detections, truth


def devkit(detections: list, truth: list, rule: str) -> float:
    """VOCevaldet, VOCap and VOC07ap as the devkit spells them: loops over sorted detections, inclusive pixels."""
    averages = []
    for label in range(CLASSES):
        objects, positives = [], 0
        for image in truth:
            keep = image["labels"] == label
            objects.append(
                {
                    "boxes": image["boxes"][keep].numpy() + INCLUSIVE,
                    "difficult": image["difficult"][keep].numpy(),
                    "detected": [False] * int(keep.sum()),
                }
            )
            positives += int((~image["difficult"][keep]).sum())
        if positives == 0:
            continue
        everything = [
            (float(score), index, box.numpy() + INCLUSIVE)
            for index, image in enumerate(detections)
            for box, score, guess in zip(image["boxes"], image["scores"], image["labels"], strict=True)
            if guess == label
        ]
        everything.sort(key=lambda entry: -entry[0])
        hits, misses = [], []
        for _, index, box in everything:
            best, where = -np.inf, -1
            for position, other in enumerate(objects[index]["boxes"]):
                width = min(box[2], other[2]) - max(box[0], other[0]) + 1
                height = min(box[3], other[3]) - max(box[1], other[1]) + 1
                if width > 0 and height > 0:
                    both = (
                        (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
                        + (other[2] - other[0] + 1) * (other[3] - other[1] + 1)
                        - width * height
                    )
                    if width * height / both > best:
                        best, where = width * height / both, position
            hit = miss = 0
            if best >= 0.5:
                if not objects[index]["difficult"][where]:
                    if objects[index]["detected"][where]:
                        miss = 1
                    else:
                        hit = 1
                        objects[index]["detected"][where] = True
            else:
                miss = 1
            hits.append(hit)
            misses.append(miss)
        hits, misses = np.cumsum(hits), np.cumsum(misses)
        recall = hits / positives
        with np.errstate(invalid="ignore"):
            precision = np.nan_to_num(hits / (hits + misses))  # 0 / 0 while only difficult ones were found
        if rule == "2007":
            averages.append(sum(max(precision[recall >= i / 10], default=0) / 11 for i in range(11)))
        else:
            recall = np.concatenate([[0], recall, [1]])
            precision = np.concatenate([[0], precision, [0]])
            for i in range(len(precision) - 2, -1, -1):
                precision[i] = max(precision[i], precision[i + 1])
            steps = np.nonzero(recall[1:] != recall[:-1])[0] + 1
            averages.append(float(((recall[steps] - recall[steps - 1]) * precision[steps]).sum()))
    return float(np.mean(averages))


@pytest.mark.parametrize("rule", ["2007", "2012"])
def test_voc_agrees_with_the_devkit(images, rule: str) -> None:
    values = assert_merges(lambda: VOCDetection(CLASSES, rule), images, [4, 1, 5, 15])
    expected = devkit(*images, rule)
    assert 0.2 < expected < 0.9
    assert values["value"].item() == pytest.approx(expected, rel=1e-6)


def one(boxes, labels, scores=None, difficult=None) -> list[dict[str, torch.Tensor]]:
    image = {"boxes": torch.tensor(boxes).float().reshape(-1, 4), "labels": torch.tensor(labels).long()}
    if scores is not None:
        image["scores"] = torch.tensor(scores)
    if difficult is not None:
        image["difficult"] = torch.tensor(difficult)
    return [image]


BOX, FAR = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]


@pytest.mark.parametrize(
    ("detections", "truth", "expected"),
    [
        (one([BOX, BOX], [0, 0], [0.9, 0.8]), one([BOX], [0]), {"2007": 1, "2012": 1}),
        (one([FAR, BOX], [0, 0], [0.9, 0.8]), one([BOX], [0]), {"2007": 0.5, "2012": 0.5}),
        (one([FAR, BOX], [0, 0], [0.9, 0.9]), one([BOX], [0]), {"2007": 0.5, "2012": 0.5}),
        (one([BOX, FAR], [0, 0], [0.9, 0.9]), one([BOX], [0]), {"2007": 0.5, "2012": 0.5}),
        (one([BOX], [1], [0.9]), one([BOX], [0]), {"2007": 0, "2012": 0}),
        (one([BOX, FAR], [0, 0], [0.9, 0.8]), one([BOX, FAR], [0, 0], difficult=[True, False]), {"2007": 1, "2012": 1}),
        (one([BOX], [0], [0.9]), one([BOX, FAR], [0, 0]), {"2007": 6 / 11, "2012": 0.5}),
        (one([[0.0, 0.0, 10.0, 5.0]], [0], [0.9]), one([BOX], [0]), {"2007": 1, "2012": 1}),  # an overlap of exactly ½
        (one([], [], []), one([BOX], [0]), {"2007": 0, "2012": 0}),
    ],
)
@pytest.mark.parametrize("rule", ["2007", "2012"])
def test_voc_by_hand(detections, truth, expected, rule: str) -> None:
    metric = VOCDetection(2, rule)
    metric.update(detections, truth)
    assert metric.compute().item() == pytest.approx(expected[rule])


def test_voc_is_nan_without_a_box() -> None:
    metric = VOCDetection(2)
    metric.update(one([BOX], [0], [0.9]), one([BOX], [0], difficult=[True]))
    assert metric.compute().isnan()


def test_voc_refuses_what_does_not_pair_up() -> None:
    with pytest.raises(ValueError, match="1 images and true boxes of 0"):
        VOCDetection(2).update(one([BOX], [0], [0.9]), [])
    with pytest.raises(ValueError, match="'2007', '2012', found '2010'"):
        VOCDetection(2, "2010")


def test_coco_agrees_with_pycocotools(images) -> None:
    detections, truth = images
    rng = np.random.default_rng(0)
    for image in truth:
        image["iscrowd"] = torch.tensor(rng.random(len(image["labels"])) < 0.1).long()
    values = assert_merges(COCODetection, images, [4, 1, 5, 15])
    expected = pycocotools(detections, truth)
    assert 0.05 < expected[0] < 0.9
    assert [values[name].item() for name in ("mAP", "AP50", "AP75")] == pytest.approx(expected, abs=1e-6)


def pycocotools(detections: list, truth: list) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def sides(box: list[float]) -> list[float]:
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    boxes, answers = [], []
    for index, (found, true) in enumerate(zip(detections, truth, strict=True)):
        for box, label, crowd in zip(*(true[name].tolist() for name in ("boxes", "labels", "iscrowd")), strict=True):
            area = (box[2] - box[0]) * (box[3] - box[1])
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": index,
                    "category_id": label,
                    "iscrowd": crowd,
                    "bbox": sides(box),
                    "area": area,
                }
            )
        for box, label, score in zip(*(found[name].tolist() for name in ("boxes", "labels", "scores")), strict=True):
            answers.append({"image_id": index, "category_id": label, "score": score, "bbox": sides(box)})
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = {
            "images": [{"id": i} for i in range(len(truth))],
            "annotations": boxes,
            "categories": [{"id": i} for i in range(CLASSES)],
            "info": {},
        }
        data.createIndex()
        evaluation = COCOeval(data, data.loadRes(answers), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:3].tolist()
