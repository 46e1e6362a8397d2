"""Another default device for a while."""

from contextlib import contextmanager

import torch


@contextmanager
def default_device(device):
    """Has new tensors be where nobody says where; afterwards there is no default, as before."""
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)
        vars(torch._GLOBAL_DEVICE_CONTEXT).clear()  # PyTorch 2.6 cannot tell the default device of None
