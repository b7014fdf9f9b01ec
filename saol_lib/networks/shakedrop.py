"""ShakeDrop, the regularisation of the paper's strongest PyramidNets."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from saol_lib.options import check_choice

GRANULARITIES = ("sample", "batch")


class ShakeDrop(nn.Module):
    """ShakeDrop (Yamada et al. 2018) on a residual branch's output y (B, C, H, W), before it is added to the shortcut.

    Training: y times b + a - b*a forward, its gradient times b + c - b*c, with b ~ Bernoulli(keep), a ~ U[-1, 1] and
    c ~ U[0, 1], drawn from torch's global generator. Evaluation: y times the forward factor's expectation, `keep`.
    per: "sample" draws b, a and c for every sample, "batch" once for all. Raises ValueError for anything else.
    """

    def __init__(self, keep: float, per: str = "sample") -> None:
        super().__init__()
        check_choice("per", per, GRANULARITIES)
        if not 0 <= keep <= 1:
            raise ValueError(f"keep={keep} must be a probability, 0 to 1")
        self.keep, self.per = keep, per

    def forward(self, y: Tensor) -> Tensor:
        if not self.training:
            return self.keep * y
        one = y[:, :1, :1, :1] if self.per == "sample" else y[:1, :1, :1, :1]
        b = torch.bernoulli(torch.full_like(one, self.keep))
        a = 2 * torch.rand_like(one) - 1
        c = torch.rand_like(one)
        ahead = b + (1 - b) * a
        back = b + (1 - b) * c
        return y * back + (y * (ahead - back)).detach()

    def extra_repr(self) -> str:
        return f"keep={self.keep:.3f}, per={self.per}"


def add_shakedrop(units: Sequence[nn.Module], per: str) -> None:
    """Put ShakeDrop after `bn`, the last BatchNorm of each residual unit; unit l of L keeps with 1 - l / L * 0.5."""
    for number, unit in enumerate(units, 1):
        keep = 1 - number / len(units) * 0.5
        unit.bn = nn.Sequential(unit.bn, ShakeDrop(keep, per))
