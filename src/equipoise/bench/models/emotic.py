"""The EMOTIC network: one encoder for the image, one for the person in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from equipoise.bench.models._base import MultiTaskNetwork, Representation, create_backbone


class EmoticNetwork(MultiTaskNetwork):
    """Two encoders whose pooled features are concatenated and fully connected: predictions `[B, outputs]`.

    Images are `[B, 2, 3, H, W]`: the whole image, and the person's box resized to the same size (224×224 in the MAO
    paper). The representation is the fused features `[B, width]`.

    Args:
        heads: task → number of outputs: categories 26 and dimensions 3, or 26 tasks of 1.
        backbone: the name of both encoders in timm.
        pretrained: start both from timm's ImageNet weights.
        context_weights: a local file with weights for the image's encoder, such as the ResNet-18 that the authors of
            Places offer: a state dict, or a mapping with one under "state_dict". Names may begin with "module.", and a
            classifier in it is left out. Nothing is unpickled but tensors.
        width: of the fully connected layer.
        dropout: after it.

    Raises:
        ValueError: the file cannot be read, or its weights do not fit the encoder.

    Source: Kosti et al., "Emotion Recognition in Context", CVPR 2017, with ResNet-18 in place of its low-rank filter
    networks as in the MAO paper, which leaves the number and width of the fully connected layers open: one of 256, as
    in Kosti et al., then a linear layer per task.

    Example:
        >>> import torch
        >>> from equipoise.bench.models import EmoticNetwork
        >>> network = EmoticNetwork({"categories": 26, "dimensions": 3}, "test_resnet")
        >>> {task: tuple(prediction.shape) for task, prediction in network(torch.randn(2, 2, 3, 64, 64)).items()}
        {'categories': (2, 26), 'dimensions': (2, 3)}
    """

    def __init__(
        self,
        heads: Mapping[str, int],
        backbone: str = "resnet18",
        pretrained: bool = False,
        context_weights: str | Path | None = None,
        width: int = 256,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(heads)
        self.trunk = TwoEncoders(backbone, pretrained, width, dropout)
        if context_weights is not None:
            load_encoder(self.trunk.context, context_weights)
        self.heads = nn.ModuleList(nn.Linear(width, outputs) for outputs in heads.values())

    def representation(self, images: Tensor) -> Representation:
        """Returns the fused features `[B, width]`.

        Raises:
            ValueError: the images are not `[B, 2, 3, H, W]`.
        """
        if images.dim() != 5 or images.shape[1] != 2:
            raise ValueError(
                "Expected the image and the person's box together, [B, 2, 3, H, W]; "
                f"found {tuple(images.shape)}: stack them with torch.stack([image, person], 1)."
            )
        return (self.trunk(images),)

    def predict(self, representation: Representation, size: tuple[int, int]) -> dict[str, Tensor]:
        """Returns `[B, outputs]` for every task."""
        return {task: head(representation[0]) for task, head in zip(self.tasks, self.heads, strict=True)}


class TwoEncoders(nn.Module):
    """The encoders of the image (`context`) and of the person, and the layer that fuses them."""

    def __init__(self, backbone: str, pretrained: bool, width: int, dropout: float) -> None:
        super().__init__()
        self.context: nn.Module = create_backbone(backbone, pretrained, num_classes=0)
        person = create_backbone(backbone, pretrained, num_classes=0)
        self.person: nn.Module = person
        self.fuse = nn.Sequential(
            nn.Linear(2 * person.head_hidden_size, width),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Returns the fused features `[B, width]` of `[B, 2, 3, H, W]`."""
        context, person = images.unbind(1)
        fused: Tensor = self.fuse(torch.cat([self.context(context), self.person(person)], 1))
        return fused


def load_encoder(encoder: nn.Module, path: str | Path) -> None:
    """Loads weights from a local file into an encoder without a classifier.

    Raises:
        ValueError: the file cannot be read or holds something else than tensors by name; or names or shapes do not
            fit. The message says which.
    """
    weights = _read_weights(path)
    expected = encoder.state_dict()
    wrong = [name for name, tensor in expected.items() if name in weights and weights[name].shape != tensor.shape]
    missing = [name for name in expected if name not in weights and not name.endswith("num_batches_tracked")]
    unknown = [name for name in weights if name not in expected and not name.startswith(("fc.", "classifier."))]
    if wrong or missing or unknown:
        raise ValueError(
            f"The weights in {str(path)!r} do not fit {type(encoder).__name__}: {len(missing)} missing "
            f"{missing[:3]}, {len(unknown)} unknown {unknown[:3]}, {len(wrong)} of another shape {wrong[:3]}. "
            "Take the file of the same architecture."
        )
    encoder.load_state_dict({name: weights.get(name, tensor) for name, tensor in expected.items()})


def _read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads tensors by name, without "module.".

    Raises:
        ValueError: the file cannot be read or holds something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes of a broken file make of the unpickler
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"The weights in {str(path)!r} cannot be read ({reason}). "
            "Fetch the file again; nothing is unpickled but tensors."
        ) from error
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(weights, Mapping) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(f"{str(path)!r} does not hold weights: expected a mapping of names to tensors (a state dict).")
    return {name.removeprefix("module."): tensor for name, tensor in weights.items()}
