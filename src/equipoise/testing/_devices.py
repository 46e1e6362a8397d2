"""The check that another device gives what the CPU gives."""

from __future__ import annotations

import torch

from equipoise.testing._comparing import assert_near
from equipoise.testing._subject import Network, Subject, batch


def check_device(subject: Subject, device: str) -> None:
    """Three steps in float64 there change the parameters as on the CPU."""
    if subject.draws:  # generators differ between devices where they draw on them
        return
    found = []
    for place in ("cpu", device):
        model, method = subject.make(model=Network().double().to(place))
        for index in range(3):
            method.zero_grad()
            if method.needs_validation_losses:
                with torch.no_grad():
                    method.observe_validation(model.losses(batch(index).to(place)))
            method.backward(model.losses(batch(index).to(place)))
            method.step()
            if method.needs_after_step:
                with torch.no_grad():
                    method.after_step(model.losses(batch(index).to(place)))
        found.append({name: value.cpu() for name, value in model.state_dict().items()})
    assert_near(found[1], found[0], f"three steps on {device} are not those on the CPU", rtol=1e-8, atol=1e-10)
