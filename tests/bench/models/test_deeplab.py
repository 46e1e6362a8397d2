import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("torchvision")

from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights, deeplabv3_resnet50

from equipoise.bench.models import DeepLabV3


@pytest.mark.slow
def test_is_torchvisions_network() -> None:
    """The same number of parameters, and with the same weights the same predictions."""
    torch.manual_seed(0)
    theirs = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=True).eval()
    ours = DeepLabV3({"segmentation": 21}).eval()
    counts = [sum(p.numel() for p in module.parameters()) for module in (ours, theirs.aux_classifier)]
    assert sum(counts) == DeepLabV3_ResNet50_Weights.DEFAULT.meta["num_params"]
    ours.trunk.load_state_dict(theirs.backbone.state_dict())
    ours.heads[0].load_state_dict(theirs.classifier.state_dict())
    images = torch.randn(1, 3, 97, 65)
    with torch.no_grad():
        (features,) = ours.representation(images)
        assert features.shape == (1, 2048, 13, 9)  # a stride of 8, rounded up
        torch.testing.assert_close(ours(images)["segmentation"], theirs(images)["out"], rtol=1e-4, atol=1e-5)
