"""TransNetV2 in NumPy against the same network in PyTorch, with random weights."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from worker.media.transnet import TransNet, colours

FILTERS = (16, 32, 64)


def random_weights(seed: int = 0) -> dict[str, Tensor]:
    """A state of the shapes that the package's file has."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        fan_in = int(np.prod(shape[1:])) or 1
        return torch.randn(*shape, generator=generator) * (1.5 / fan_in) ** 0.5

    found: dict[str, Tensor] = {}
    channels = 3
    for block, filters in enumerate(FILTERS):
        for cell in (0, 1):
            name = f"SDDCNN.{block}.DDCNN.{cell}"
            for reach in (1, 2, 4, 8):
                found[f"{name}.Conv3D_{reach}.layers.0.weight"] = random(2 * filters, channels, 1, 3, 3)
                found[f"{name}.Conv3D_{reach}.layers.1.weight"] = random(filters, 2 * filters, 3, 1, 1)
            channels = 4 * filters
            found[f"{name}.bn.weight"] = torch.rand(channels, generator=generator) + 0.5
            found[f"{name}.bn.bias"] = random(channels)
            found[f"{name}.bn.running_mean"] = random(channels)
            found[f"{name}.bn.running_var"] = torch.rand(channels, generator=generator) + 0.5
            found[f"{name}.bn.num_batches_tracked"] = torch.tensor(1)
    for name, (into, out) in {
        "frame_sim_layer.projection": (448, 128),
        "frame_sim_layer.fc": (101, 128),
        "color_hist_layer.fc": (101, 128),
        "fc1": (4864, 1024),
        "cls_layer1": (1024, 1),
        "cls_layer2": (1024, 1),
    }.items():
        found[f"{name}.weight"], found[f"{name}.bias"] = random(out, into), random(out)
    return found


def expected(weights: dict[str, Tensor], frames: np.ndarray) -> np.ndarray:
    """The network as its paper and its package define it."""

    def cell(x: Tensor, name: str) -> Tensor:
        parts = []
        for reach in (1, 2, 4, 8):
            layers = f"{name}.Conv3D_{reach}.layers"
            wide = functional.conv3d(x, weights[f"{layers}.0.weight"], padding=(0, 1, 1))
            kernel = weights[f"{layers}.1.weight"]
            parts.append(functional.conv3d(wide, kernel, padding=(reach, 0, 0), dilation=(reach, 1, 1)))
        norm = (weights[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(torch.cat(parts, 1), *norm, eps=1e-3)

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def band(vectors: Tensor) -> Tensor:
        unit = functional.normalize(vectors, dim=1)
        padded = functional.pad(unit @ unit.T, (50, 50))
        return torch.stack([padded[t, t : t + 101] for t in range(len(unit))])

    x = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 255
    means = []
    for block in range(3):
        first = functional.relu(cell(x, f"SDDCNN.{block}.DDCNN.0"))
        x = functional.relu(cell(first, f"SDDCNN.{block}.DDCNN.1")) + first
        x = functional.avg_pool3d(x, (1, 2, 2))
        means.append(x.mean((3, 4))[0].T)
    projected = linear(torch.cat(means, 1), "frame_sim_layer.projection")
    flat = x[0].permute(1, 2, 3, 0).reshape(len(frames), -1)
    shown = functional.relu(linear(band(torch.from_numpy(colours(frames))), "color_hist_layer.fc"))
    similar = functional.relu(linear(band(projected), "frame_sim_layer.fc"))
    hidden = functional.relu(linear(torch.cat([shown, similar, flat], 1), "fc1"))
    found = torch.cat([linear(hidden, "cls_layer1"), linear(hidden, "cls_layer2")], 1)
    return torch.sigmoid(found).numpy()


def test_says_what_the_network_says_in_pytorch(tmp_path: Path) -> None:
    weights = random_weights()
    torch.save(weights, tmp_path / "weights.pth")
    frames = np.random.default_rng(1).integers(0, 256, (18, 27, 48, 3), np.uint8)
    with torch.inference_mode():
        right = expected(weights, frames)
    assert right.std() > 0.01
    np.testing.assert_allclose(TransNet(tmp_path / "weights.pth").judge(frames), right, atol=2e-4)


def test_colours_are_counted_in_512_bins() -> None:
    frames = np.zeros((1, 27, 48, 3), np.uint8)
    frames[0, 0, 0] = (255, 32, 31)
    assert dict(enumerate(colours(frames)[0])) | {0: 0, 7 * 64 + 8: 0} == dict.fromkeys(range(512), 0)
    assert colours(frames)[0, 7 * 64 + 8] == 1


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Also one that would run code: the file can name nothing but tensors."""
    path = tmp_path / "weights.pth"
    path.write_bytes(b"not an archive")
    with pytest.raises(ValueError, match="no file of tensors"):
        TransNet(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"it names os\.system"):
        TransNet(path)
    torch.save({"other": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not TransNetV2's weights"):
        TransNet(path)
