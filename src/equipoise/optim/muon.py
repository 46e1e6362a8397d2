"""Muon for matrices and AdamW for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.optimizer import Optimizer, ParamsT

from equipoise._checks import check_number
from equipoise.optim._fused import can_fuse


class MuonAndAdamW(Optimizer):
    """`torch.optim.Muon` on weights of two dimensions or more, `torch.optim.AdamW` on all others.

    Muon orthogonalises the momentum of a matrix: with `M` its moving average, and `UΣVᵀ` the singular value
    decomposition of `M` (of Nesterov's look ahead, `(1 − μ) g + μ M`),

    `θ ← θ − 0.2 η √max(A, B) UVᵀ − η λ θ` for θ of shape `[A, B]`,

    where five steps of Newton and Schulz's iteration approximate `UVᵀ`. The factor gives the update the size of
    AdamW's, so that one learning rate and one weight decay are both optimizers' (Liu et al. 2025). Weights of more
    dimensions, convolutions' kernels, are orthogonalised as matrices `[A, B·…]`, as Muon's author does. Vectors and
    scalars (biases, norms, learned loss weights) go to AdamW. So should embeddings, and Muon's author has it for the
    last layer, too: put them in a group with `use_muon=False`.

    Args:
        params: parameters, or groups of them with options of their own; `use_muon` says which optimizer a group goes
            to, and where it is left out, the parameters' dimensions do, which may split the group.
        lr: learning rate η of both, at least 0.
        weight_decay: λ of both, decoupled, at least 0.
        momentum: Muon's μ, in [0, 1).
        betas: AdamW's.
        eps: AdamW's; Muon's, 1e-7, keeps a norm from being 0.

    Raises:
        ImportError: this PyTorch has no `torch.optim.Muon`.
        ValueError: a group with `use_muon=True` holds a vector or a scalar; or as `torch.optim.AdamW` raises it.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; Liu et al., "Muon is
    Scalable for LLM Training", 2025 (`adjust_lr_fn="match_rms_adamw"` in PyTorch).

    Example:
        >>> import torch, equipoise.optim
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = equipoise.optim.MuonAndAdamW(model.parameters(), lr=1e-3)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.0,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ImportError(
                f"torch.optim.Muon is part of PyTorch from 2.9 on, found PyTorch {torch.__version__}: "
                "install a newer one, or take another optimizer."
            )
        self._furnish()
        check_number("momentum", momentum, at_least=0, below=1)
        of_adamw = AdamW(self._adamw.param_groups[0]["params"], lr, betas, eps, weight_decay).defaults  # checked
        super().__init__(params, {**self._muon.defaults, **of_adamw, "momentum": momentum, "use_muon": None})

    def _furnish(self) -> None:
        """Makes the two optimizers, which are given groups and state at every step."""
        self._muon = torch.optim.Muon([torch.zeros(1, 1, device="cpu")], adjust_lr_fn="match_rms_adamw")
        self._adamw = AdamW([torch.zeros(1, device="cpu")])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, as two groups if some are Muon's and some AdamW's.

        Raises:
            ValueError: see the class.
        """
        if param_group.get("use_muon") is not None:
            self._add(param_group, use_muon=bool(param_group["use_muon"]))
            return
        params = param_group["params"]
        given = [params] if isinstance(params, Tensor) else list(params)
        tensors = [entry[1] if isinstance(entry, tuple) else entry for entry in given]  # of named_parameters()
        for use_muon in (True, False):
            own = [entry for entry, p in zip(given, tensors, strict=True) if (p.dim() >= 2) == use_muon]
            if own:
                self._add({**param_group, "params": own}, use_muon=use_muon)

    def _add(self, group: dict[str, Any], *, use_muon: bool) -> None:
        super().add_param_group({**group, "use_muon": use_muon})
        added = self.param_groups[-1]
        low = [tuple(p.shape) for p in added["params"] if p.dim() < 2] if use_muon else []
        if low:
            self.param_groups.pop()
            raise ValueError(
                f"A group with use_muon=True holds parameters of the shapes {low}; Muon takes those of two dimensions "
                "or more. Put the others in a group with use_muon=False."
            )
        if added["fused"] is None:
            added["fused"] = not use_muon and can_fuse(added["params"])

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates the parameters.

        Args:
            closure: computes the loss anew and returns it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._adamw.state = self.state
        self._adamw.param_groups = [group for group in self.param_groups if not group["use_muon"]]
        self._adamw.step()
        for group in self.param_groups:
            if group["use_muon"]:
                self._step_muon(group)
        return loss

    def _step_muon(self, group: dict[str, Any]) -> None:
        """Has Muon update the parameters of a group, each as a matrix."""
        matrices = {}
        self._muon.state.clear()
        for p in group["params"]:
            if p.grad is None:
                continue
            matrix = matrices[p] = p.detach().flatten(1)
            matrix.grad = p.grad.flatten(1)
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
            self._muon.state[matrix] = {"momentum_buffer": self.state[p]["momentum_buffer"].flatten(1)}
        self._muon.param_groups = [{**group, "params": list(matrices.values()), "eps": self._muon.defaults["eps"]}]
        self._muon.step()  # type: ignore[no-untyped-call]
        for p, matrix in matrices.items():
            if not p.is_contiguous():  # as a matrix it was copied
                p.copy_(matrix.view_as(p))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._furnish()
