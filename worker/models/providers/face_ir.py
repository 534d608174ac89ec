"""The IR networks ("improved residual", for faces of 112 px), layer by layer as in AdaFace's published checkpoints.

Source: Deng et al., "ArcFace" (2019); Kim, Jain, Liu, "AdaFace: Quality Adaptive Margin for Face Recognition" (2022).
The names of the layers are those of the checkpoints: they must not be changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

DIM = 512
#: Units in each of the four stages.
UNITS: dict[str, tuple[int, int, int, int]] = {
    "ir_18": (2, 2, 2, 2),
    "ir_50": (3, 4, 14, 3),
    "ir_101": (3, 13, 30, 3),
}
_CHANNELS = (64, 128, 256, 512)


class Unit(nn.Module):  # type: ignore[misc]
    """Two convolutions and a short cut around them; `stride` 2 halves the sides."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer = (
            nn.MaxPool2d(1, stride)
            if inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, faces: Tensor) -> Tensor:
        return self.res_layer(faces) + self.shortcut_layer(faces)


class IrNetwork(nn.Module):  # type: ignore[misc]
    """Embeds aligned faces.

    Args:
        architecture: one of `UNITS`.
    """

    def __init__(self, architecture: str) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)
        )
        units: list[nn.Module] = []
        inputs = 64
        for outputs, count in zip(_CHANNELS, UNITS[architecture], strict=True):
            for place in range(count):
                units.append(Unit(inputs, outputs, 1 if place else 2))
                inputs = outputs
        self.body = nn.Sequential(*units)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(512 * 7 * 7, DIM),
            nn.BatchNorm1d(DIM, affine=False),
        )

    def place(self, device: str, dtype: Any) -> IrNetwork:
        """Move it, and compute in `dtype` but for the normalisations: their running variances need float32."""
        self.to(device=device, dtype=dtype)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.float()
        return self

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors and their quality.

        Args:
            faces: [N, 3, 112, 112] BGR, -1..1, in the network's dtype.

        Returns: float32 [N, 512] of length 1, and float32 [N], their lengths before normalisation.
        """
        features = self.output_layer[:-1](self.body(self.input_layer(faces)))
        features = self.output_layer[-1](features.float())
        lengths = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        return features / lengths, lengths[:, 0]
