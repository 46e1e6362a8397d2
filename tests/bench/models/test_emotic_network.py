from pathlib import Path

import pytest
import torch

pytest.importorskip("timm")

import timm

from equipoise.bench.models import EmoticNetwork

HEADS = {"categories": 26, "dimensions": 3}


def test_number_of_parameters() -> None:
    network = EmoticNetwork(HEADS)
    encoder = 11_689_512 - 513_000  # ResNet-18 without its classifier of 1,000
    expected = 2 * encoder + (1024 * 256 + 256) + 2 * 256 + (256 * 26 + 26) + (256 * 3 + 3)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_each_encoder_sees_its_own_image() -> None:
    torch.manual_seed(0)
    network = EmoticNetwork(HEADS, "test_resnet").eval()
    images = torch.randn(2, 2, 3, 48, 48)
    with torch.no_grad():
        (found,) = network.representation(images)
        parts = [network.trunk.context(images[:, 0]), network.trunk.person(images[:, 1])]
        torch.testing.assert_close(found, network.trunk.fuse(torch.cat(parts, 1)))
    assert not torch.allclose(parts[0], network.trunk.person(images[:, 0]))
    assert not torch.allclose(found, network.representation(images.flip(1))[0])


def test_refuses_a_single_image() -> None:
    with pytest.raises(ValueError, match=r"\[B, 2, 3, H, W\]; found \(2, 3, 48, 48\)"):
        EmoticNetwork(HEADS, "test_resnet")(torch.randn(2, 3, 48, 48))


@pytest.fixture(scope="module")
def places() -> dict[str, torch.Tensor]:
    """A state dict as that of Places: torchvision's names, a classifier of 365."""
    torch.manual_seed(3)
    return timm.create_model("resnet18", num_classes=365).state_dict()


@pytest.mark.parametrize("form", ["plain", "authors"])
def test_loads_the_contexts_weights(tmp_path: Path, places, form: str) -> None:
    content = places
    if form == "authors":
        weights = {f"module.{name}": tensor for name, tensor in places.items() if "num_batches" not in name}
        content = {"epoch": 90, "arch": "resnet18", "best_prec1": 54.2, "state_dict": weights}
    torch.save(content, tmp_path / "places.pth.tar")
    network = EmoticNetwork(HEADS, context_weights=tmp_path / "places.pth.tar")
    for name, tensor in network.trunk.context.state_dict().items():
        assert torch.equal(tensor, places[name]), name
    assert not torch.equal(network.trunk.person.state_dict()["conv1.weight"], places["conv1.weight"])


def test_refuses_weights_that_do_not_fit(tmp_path: Path, places) -> None:
    path = tmp_path / "weights.pth"
    torch.save({name: tensor for name, tensor in places.items() if name != "conv1.weight"}, path)
    with pytest.raises(ValueError, match=r"do not fit ResNet: 1 missing \['conv1.weight'\]"):
        EmoticNetwork(HEADS, context_weights=path)
    torch.save(places | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, path)
    with pytest.raises(ValueError, match=r"1 of another shape \['conv1.weight'\]"):
        EmoticNetwork(HEADS, context_weights=path)
    torch.save(places | {"layer5.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"1 unknown \['layer5.weight'\]"):
        EmoticNetwork(HEADS, context_weights=path)


class Opened:
    def __reduce__(self):
        return (Path.touch, (Path("opened"),))


def test_unpickles_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Opened()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth' cannot be read \(UnpicklingError: "):
        EmoticNetwork(HEADS, "test_resnet", context_weights=tmp_path / "weights.pth")
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut off", None])
def test_a_broken_file_of_weights_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.pth.tar"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.pth\.tar' cannot be read"):
        EmoticNetwork(HEADS, "test_resnet", context_weights=path)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"conv1.weight": 3}}, torch.zeros(2)])
def test_a_file_of_something_else_is_named(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth' does not hold weights"):
        EmoticNetwork(HEADS, "test_resnet", context_weights=tmp_path / "other.pth")
