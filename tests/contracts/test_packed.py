"""Linear layers in oneDNN's order compute what torch's own compute, on a CPU; elsewhere they stay what they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from worker.models.providers.packed import PackedLinear, pack_linears

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN"
)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(24, 40), nn.GELU(), nn.Sequential(nn.Linear(40, 8, bias=False), nn.LayerNorm(8))
    ).eval()


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 7, 3), (0, 4)], ids=str)
@torch.inference_mode()
def test_packed_layers_compute_the_same(shape: tuple[int, ...]) -> None:
    packed = network()
    pack_linears(packed, "cpu", "float32")
    assert sum(isinstance(part, PackedLinear) for part in packed.modules()) == 2
    rows = torch.randn(*shape, 24)
    torch.testing.assert_close(packed(rows), network()(rows), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("device", "dtype"), [("cuda:0", "float32"), ("cpu", "bfloat16")])
def test_others_are_left_alone(device: str, dtype: str) -> None:
    whole = network()
    pack_linears(whole, device, dtype)
    assert not any(isinstance(part, PackedLinear) for part in whole.modules())
