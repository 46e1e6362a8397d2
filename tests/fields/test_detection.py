"""Faster R-CNN: its own four losses, and batches of pictures without objects."""

import warnings

import pytest
import torch
from fields.examples import example

import equipoise as eq

detection = example("detection.py")
TASKS, BOXES = detection.TASKS, ("loss_box_reg", "loss_rpn_box_reg")
OTHERS = ("loss_classifier", "loss_objectness")


def test_it_finds_objects():
    found = detection.main(steps=120)
    assert found["found"] > 0.4


class Twin:
    """A method on a detector of its own, whose samplers draw the same as every other's."""

    def __init__(self, name):
        torch.manual_seed(0)
        self.model = detection.detector()
        self.method = eq.make_method(name, self.model, TASKS, lr=1e-3)
        self.images, self.targets = detection.pictures(2, torch.Generator().manual_seed(3))
        assert all(len(target["boxes"]) for target in self.targets)

    def losses(self, index, objects=True):
        torch.manual_seed(index)
        none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
        return self.model(self.images, self.targets if objects else [none] * len(self.images))

    def step(self, losses):
        """The weights, and the gradients that the parameters got."""
        self.method.zero_grad()
        weights = {task: float(weight) for task, weight in self.method.backward(losses).items()}
        gradients = [None if p.grad is None else p.grad.clone() for p in self.model.parameters()]
        self.method.step()
        return weights, gradients


def test_losses_of_pictures_without_objects_are_0_and_have_a_graph():
    losses = Twin("ew").losses(0, objects=False)
    assert [losses[task].item() for task in BOXES] == [0, 0]
    assert all(losses[task].requires_grad for task in TASKS)


@pytest.mark.parametrize("name", ["ema", "gls"])
def test_a_method_that_takes_no_0_leaves_the_box_losses_out_and_says_so(name):
    twin, other = Twin(name), Twin(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index in range(2):  # the second finds what the first has changed
            twin.step(twin.losses(2 * index))
            other.step(other.losses(2 * index))
            losses = other.losses(2 * index + 1, objects=False)
            expected = other.step({task: losses[task] for task in OTHERS})
            losses = twin.losses(2 * index + 1, objects=False)
            if index == 0:
                with pytest.warns(UserWarning, match="'loss_box_reg', 'loss_rpn_box_reg' is 0 or below"):
                    found = twin.step(losses)
            else:
                found = twin.step(losses)
            assert found[0] == pytest.approx(expected[0])
            for one, wanted, p in zip(found[1], expected[1], twin.model.parameters(), strict=True):
                assert (one is None) == (wanted is None), p.shape
                if one is not None:
                    torch.testing.assert_close(one, wanted)
    if name == "gls":
        product = losses["loss_classifier"] * losses["loss_objectness"]
        for task in OTHERS:
            assert found[0][task] == pytest.approx((product.sqrt() / 2 / losses[task]).item(), rel=1e-5)


def test_imtl_g_gives_box_losses_without_a_gradient_no_weight():
    """Its equation, of the two tasks that have a gradient: equal projections on both, weights that sum to 1."""
    twin = Twin("imtl-g")
    heads = twin.model.roi_heads.box_head, twin.model.rpn.head.conv
    shared = [p for module in (twin.model.backbone, *heads) for p in module.parameters()]  # by two tasks or by all four
    losses = twin.losses(0, objects=False)
    rows = []
    for task in OTHERS:
        found = torch.autograd.grad(losses[task], shared, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in found]).double())
    norms = [float(row.norm()) for row in rows]
    weights, gradients = twin.step(losses)
    # Two directions have equal projections on their sum, which is that of the rows divided by their norms.
    assert [weights[task] for task in OTHERS] == pytest.approx([norms[1] / sum(norms), norms[0] / sum(norms)], rel=1e-4)
    assert [weights[task] for task in BOXES] == [0, 0]
    written = dict(zip(twin.model.parameters(), gradients, strict=True))
    expected = (norms[1] * rows[0] + norms[0] * rows[1]) / sum(norms)
    found = torch.cat([written[p].flatten() for p in shared]).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)


def test_mgda_stops_what_is_shared_unless_the_box_losses_are_left_out():
    twin = Twin("mgda")
    losses = twin.losses(0, objects=False)
    weights, _ = twin.step(losses)
    assert weights == pytest.approx({**dict.fromkeys(BOXES, 0.5), **dict.fromkeys(OTHERS, 0.0)})
    losses = twin.losses(1, objects=False)
    weights, gradients = twin.step({task: losses[task] for task in OTHERS})
    assert sum(weights.values()) == pytest.approx(1)
    assert all(g.abs().sum() > 0 for g in gradients[:1])


def test_mao_moves_the_box_layers_by_their_moments_only_where_their_losses_are_given():
    """A gradient of 0 is a gradient to Adam, whose moments decay and move on; a loss left out is none."""
    for leaves_out in (False, True):
        twin = Twin("mao")
        twin.step(twin.losses(0))
        own = twin.model.roi_heads.box_predictor.bbox_pred.weight
        state = twin.method.optimizer.state[own]
        before, average = own.detach().clone(), state["exp_avg.loss_box_reg"].clone()
        losses = twin.losses(1, objects=False)
        twin.step({task: losses[task] for task in OTHERS} if leaves_out else losses)
        assert torch.equal(own, before) == leaves_out
        torch.testing.assert_close(state["exp_avg.loss_box_reg"], average if leaves_out else 0.9 * average)
        assert "exp_avg.loss_classifier" not in state
