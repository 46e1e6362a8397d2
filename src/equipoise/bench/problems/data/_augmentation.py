"""Labels that move with their image, also through torchvision's v2 transforms, and transforms of our own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from equipoise._checks import check_number
from equipoise.bench.problems.data._files import Sample

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
"""ImageNet's mean and standard deviation, which pretrained backbones expect taken out."""


class PixelLabels(tv_tensors.Mask):  # type: ignore[misc]
    """A label per pixel, `[…, H, W]`, some of them missing.

    It follows its image through torchvision's v2 transforms. Labels are never mixed: resizing takes the nearest
    pixel's, so that none is made up between two objects, or from a missing one. What padding or a crop beyond
    the border brings in is missing. Transforms under which the labels would be wrong (rotation, shear,
    perspective, …) raise.

    Attributes:
        missing: the label of a pixel without one.
    """

    missing: ClassVar[float]


class SegmentationMap(PixelLabels):
    """Classes per pixel, int64 `[H, W]`; −1 is missing."""

    missing = -1


class DepthMap(PixelLabels):
    """Depth per pixel along the optical axis in metres, float32 `[1, H, W]`; NaN is missing."""

    missing = math.nan


class NormalMap(PixelLabels):
    """Unit surface normals in camera coordinates, float32 `[3, H, W]`; a pixel with NaN is missing.

    Flips negate the component along the flipped axis.
    """

    missing = math.nan


Labels = TypeVar("Labels", bound=PixelLabels)


def _crop(labels: PixelLabels, top: int, left: int, height: int, width: int) -> PixelLabels:
    old_height, old_width = labels.shape[-2:]
    plain = labels.as_subclass(Tensor)
    cropped = plain.new_full((*labels.shape[:-2], height, width), labels.missing)
    rows = slice(max(top, 0), min(top + height, old_height))
    columns = slice(max(left, 0), min(left + width, old_width))
    if rows.start < rows.stop and columns.start < columns.stop:
        cropped[..., rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = plain[
            ..., rows, columns
        ]
    return _like(labels, cropped)


def _pad(labels: PixelLabels, padding: int | Sequence[int], **_: Any) -> PixelLabels:
    sides = [padding] * 4 if isinstance(padding, int) else list(padding) * (4 // len(padding))
    left, top, right, bottom = sides
    height, width = labels.shape[-2:]
    return _crop(labels, -top, -left, height + top + bottom, width + left + right)


def _resize(labels: PixelLabels, size: list[int] | None, max_size: int | None = None, **_: Any) -> PixelLabels:
    # As an image of one pixel row after the other, so that torchvision's rules for the size hold.
    plain = labels.as_subclass(Tensor).reshape(1, -1, *labels.shape[-2:])
    resized = functional.resize_image(
        plain, size, interpolation=InterpolationMode.NEAREST_EXACT, max_size=max_size, antialias=False
    )
    return _like(labels, resized.reshape(*labels.shape[:-2], *resized.shape[-2:]))


def _resized_crop(
    labels: PixelLabels, top: int, left: int, height: int, width: int, size: list[int], **_: Any
) -> PixelLabels:
    return _resize(_crop(labels, top, left, height, width), size)


def _flip_normals_horizontally(normals: NormalMap) -> NormalMap:
    return _like(normals, normals.as_subclass(Tensor).flip(-1) * torch.tensor([-1.0, 1.0, 1.0]).reshape(3, 1, 1))


def _flip_normals_vertically(normals: NormalMap) -> NormalMap:
    return _like(normals, normals.as_subclass(Tensor).flip(-2) * torch.tensor([1.0, -1.0, 1.0]).reshape(3, 1, 1))


def _refuse(labels: PixelLabels, *_: Any, **__: Any) -> PixelLabels:
    raise TypeError(
        f"This transform would leave a {type(labels).__name__} wrong: use flips, crops, padding and resizing, "
        "or apply the transform to the image alone with equipoise.bench.problems.data.OnImage."
    )


def _like(labels: Labels, values: Tensor) -> Labels:
    wrapped: Labels = tv_tensors.wrap(values, like=labels)
    return wrapped


for _functional, _labels, _kernel in (
    (functional.crop, PixelLabels, _crop),
    (functional.pad, PixelLabels, _pad),
    (functional.resize, PixelLabels, _resize),
    (functional.resized_crop, PixelLabels, _resized_crop),
    (functional.horizontal_flip, NormalMap, _flip_normals_horizontally),
    (functional.vertical_flip, NormalMap, _flip_normals_vertically),
    (functional.rotate, PixelLabels, _refuse),
    (functional.affine, PixelLabels, _refuse),
    (functional.perspective, PixelLabels, _refuse),
    (functional.elastic, PixelLabels, _refuse),
    (functional.center_crop, PixelLabels, _refuse),
    (functional.five_crop, PixelLabels, _refuse),
    (functional.ten_crop, PixelLabels, _refuse),
):
    functional.register_kernel(_functional, _labels)(_kernel)


class RandomScaleCrop(v2.Transform):  # type: ignore[misc]
    """Enlarges by a random factor s and crops at random to the old size; s < 1 shrinks and pads.

    What is seen s times as large is s times as near: depth is divided by s. Boxes are clipped to the picture;
    `DropHiddenBoxes` removes those that are no longer in it.

    Args:
        scales: one of them is drawn.
        continuous: draw between the smallest and the largest instead.

    Raises:
        ValueError: there is no scale, or one is not above 0.

    Example:
        >>> import torch
        >>> from equipoise.bench.problems.data import DepthMap, RandomScaleCrop
        >>> sample = {"input": torch.zeros(3, 4, 4), "depth": DepthMap(torch.full((1, 4, 4), 3.0))}
        >>> RandomScaleCrop([2.0])(sample)["depth"].unique()
        tensor([1.5000])
    """

    def __init__(self, scales: Sequence[float], continuous: bool = False) -> None:
        super().__init__()
        if not scales:
            raise ValueError("scales is empty: name at least one scale.")
        self.scales = tuple(check_number("scale", scale, above=0) for scale in scales)
        self.continuous = continuous

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the scale and the window that will fill the picture."""
        if self.continuous:
            low, high = min(self.scales), max(self.scales)
            scale = low + (high - low) * float(torch.rand(()))
        else:
            scale = self.scales[int(torch.randint(len(self.scales), ()))]
        old = functional.get_size(next(value for value in flat_inputs if isinstance(value, Tensor)))
        window = [max(1, round(side / scale)) for side in old]
        top, left = (
            int(torch.randint(min(0, side - part), max(0, side - part) + 1, ()))
            for side, part in zip(old, window, strict=True)
        )
        return {"scale": scale, "window": (top, left, *window), "size": old}

    def transform(self, value: Any, params: dict[str, Any]) -> Any:
        """Cuts the window out and brings it to the old size."""
        result = self._call_kernel(
            functional.resized_crop, value, *params["window"], size=params["size"], antialias=True
        )
        return _like(value, result / params["scale"]) if isinstance(value, DepthMap) else result


class Letterbox(v2.Transform):  # type: ignore[misc]
    """Pads on the right or at the bottom to the aspect ratio of `size`, then resizes to it; nothing is cut or bent.

    Depth is left as it is: this is how every image is brought to the network, in training and evaluation.

    Args:
        size: height and width.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Finds how much is to be padded."""
        height, width = functional.get_size(next(value for value in flat_inputs if isinstance(value, Tensor)))
        ratio = self.size[1] / self.size[0]
        return {"padding": [0, 0, max(0, round(height * ratio) - width), max(0, round(width / ratio) - height)]}

    def transform(self, value: Any, params: dict[str, Any]) -> Any:
        """Pads and resizes."""
        padded = self._call_kernel(functional.pad, value, padding=params["padding"], fill=0)
        return self._call_kernel(functional.resize, padded, size=list(self.size), antialias=True)


class OnImage:
    """Applies a transform to the images under "input" alone: colour, noise, blur.

    Args:
        transform: takes and returns an image, or a mapping of images.
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, sample: Sample) -> Sample:
        return sample | {"input": self.transform(sample["input"])}


class DropHiddenBoxes:
    """Removes the objects under "detection" whose box, clipped to the picture, is thinner than a pixel."""

    def __call__(self, sample: Sample) -> Sample:
        objects = sample.get("detection")
        if objects is None:
            return sample
        boxes = functional.clamp_bounding_boxes(objects["boxes"])
        sides = boxes.as_subclass(Tensor)[:, 2:] - boxes.as_subclass(Tensor)[:, :2]
        kept = (sides >= 1).all(1)
        objects = {
            name: tv_tensors.wrap(value[kept], like=value) for name, value in (objects | {"boxes": boxes}).items()
        }
        return sample | {"detection": objects}


def augmentation(
    size: tuple[int, int],
    *,
    scales: Sequence[float] = (1.0,),
    continuous: bool = False,
    flip: bool = True,
    colour: float = 0.0,
    letterbox: bool = False,
) -> v2.Compose:
    """Returns the transform for training: resize, scale and crop, flip, colours, then normalisation.

    Args:
        size: height and width of the network's input.
        scales: for `RandomScaleCrop`.
        continuous: for `RandomScaleCrop`.
        flip: mirror half of the samples.
        colour: how much brightness, contrast and saturation vary (hue: a tenth of it).
        letterbox: pad instead of changing the aspect ratio.
    """
    steps: list[Any] = [Letterbox(size) if letterbox else v2.Resize(list(size), antialias=True)]
    if tuple(scales) != (1.0,):
        steps += [RandomScaleCrop(scales, continuous), DropHiddenBoxes()]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if colour:
        steps.append(OnImage(v2.ColorJitter(colour, colour, colour, colour / 10)))
    return v2.Compose([*steps, *_normalization()])


def preparation(size: tuple[int, int], *, letterbox: bool = False) -> v2.Compose:
    """Returns the transform for evaluation: resize, then normalisation.

    Args:
        size: height and width of the network's input.
        letterbox: pad instead of changing the aspect ratio.
    """
    return v2.Compose([Letterbox(size) if letterbox else v2.Resize(list(size), antialias=True), *_normalization()])


def _normalization() -> list[OnImage]:
    return [OnImage(v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, DEVIATION)]))]


def collate(samples: Sequence[Sample]) -> Sample:
    """Makes a batch: stacks everything but "detection", which is a list with each sample's objects or None.

    Args:
        samples: with the same labels, missing or not, and an input of the same size.
    """
    return {name: _collate(name, [sample[name] for sample in samples]) for name in samples[0]}


def _collate(name: str, values: list[Any]) -> Any:
    if name == "detection":
        return [value and {part: tensor.as_subclass(Tensor) for part, tensor in value.items()} for value in values]
    if isinstance(values[0], dict):
        return {part: _collate(part, [value[part] for value in values]) for part in values[0]}
    return torch.stack([value.as_subclass(Tensor) for value in values])
