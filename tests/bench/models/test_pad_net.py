import pytest
import torch
from torch.nn import functional

pytest.importorskip("timm")
pytest.importorskip("torchvision")

from equipoise.bench.models import PADNet, initial_predictions

HEADS = {"segmentation": 5, "depth": 1, "normals": 3}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return PADNet(HEADS, "test_resnet", width=8).double()


def test_distills_by_its_formula(network):
    """From the features on, computed anew from the parameters."""
    network.eval()
    images = torch.randn(2, 3, 48, 40, dtype=torch.float64)
    weights = network.state_dict()
    with torch.no_grad():
        (representation,) = network.representation(images)
        assert representation.shape[-2:] == (6, 5)  # a stride of 8
        features = [blocks(representation) for blocks in network.features]
        for place, (task, prediction) in enumerate(network(images).items()):
            distilled = features[place]
            others = [other for index, other in enumerate(features) if index != place]
            for link, other in enumerate(others):
                at = f"distillation.links.{place}.{link}"
                mask = functional.conv2d(other, weights[f"{at}.mask.0.weight"], padding=1)
                message = functional.conv2d(other, weights[f"{at}.message.weight"], padding=1)
                distilled = distilled + message / (1 + (-mask).exp())
            expected = network.heads[place](distilled)
            expected = functional.interpolate(expected, size=(48, 40), mode="bilinear", align_corners=False)
            torch.testing.assert_close(prediction, expected)
            assert task == list(HEADS)[place]


def test_gives_first_predictions_in_training_only(network):
    images = torch.randn(2, 3, 45, 37, dtype=torch.float64)
    predictions = network.train()(images)
    assert list(predictions) == [*HEADS, *(f"{task}@8" for task in HEADS)]
    (first,) = initial_predictions(predictions, "normals", (45, 37))
    assert first.shape == (2, 3, 45, 37)
    assert list(network.eval()(images)) == list(HEADS)


def test_a_first_prediction_reaches_its_own_features_alone_and_a_final_one_all(network):
    predictions = network.train()(torch.randn(2, 3, 48, 48, dtype=torch.float64))
    own = [next(iter(blocks.parameters())) for blocks in network.features]
    for place, task in enumerate(HEADS):
        first = torch.autograd.grad(predictions[f"{task}@8"].sum(), own, retain_graph=True, allow_unused=True)
        assert [index for index, gradient in enumerate(first) if gradient is not None] == [place]
        final = torch.autograd.grad(predictions[task].square().sum(), own, retain_graph=True)
        assert all(gradient.any() for gradient in final)
