"""Linear layers whose weights stand in memory as oneDNN reads them, for models on a CPU.

``torch.nn.Linear`` rearranges its weights at every call there, or reads them in an order that is bad for few rows: 2 to 3 times as slow
for a query of ten tokens, 1.2 times for a batch. The operators are those that torch's own compiler (Inductor) emits for frozen layers.
"""

from __future__ import annotations

import torch
from torch import nn


class PackedLinear(nn.Module):  # type: ignore[misc]  # mypy skips torch
    """The same function as a linear layer of float32 on a CPU, whose weights it replaces."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")


def pack_linears(network: nn.Module, device: str, dtype: str) -> None:
    """Replace the linear layers of a network; none where torch has no such operators, and none on a GPU."""
    operators = ("_reorder_linear_weight", "_linear_pointwise")
    known = torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in operators
    )
    if not known or (device, dtype) != ("cpu", "float32"):
        return
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child))
