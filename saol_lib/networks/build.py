"""Networks by name: a backbone with its output layers."""

from collections.abc import Sequence

from torch import Tensor

from saol_lib.attach import HEADS, SAOLNet, attach_saol
from saol_lib.layers import SaolOptions
from saol_lib.networks.backbones import build_backbone
from saol_lib.networks.peers import ABN
from saol_lib.networks.weights import load_weights
from saol_lib.streams import seeded


def build_model(
    backbone: str,
    num_classes: int,
    *,
    heads: Sequence[str] = HEADS,
    blocks: int = 3,
    pretrained: bool = False,
    weights: dict[str, Tensor] | None = None,
    seed: int | None = None,
    options: SaolOptions | None = None,
    **changes,
) -> SAOLNet | ABN:
    """A backbone by name (see `backbones`) with the output layers `heads` ("gap", "saol"); ("abn",): an ABN.

    pretrained: torchvision's ImageNet weights; weights: those of a trained backbone with `num_classes`, by name.
    blocks: how many of the last stages feed the spatial logits; options: a `SaolOptions`; changes: single fields of
    it, by name.
    seed: backbone and SAOL are drawn from two streams of it, so that networks of one seed share their backbone's
    first weights whatever their heads are; None: torch's global generator.
    Raises ValueError for unknown names and options and for more blocks than there are.
    """
    with seeded(seed, "backbone"):
        network, nodes = build_backbone(backbone, num_classes, pretrained)
    if not 1 <= blocks <= len(nodes):
        raise ValueError(f"blocks={blocks}: {backbone} has {len(nodes)} stages; choose 1 to {len(nodes)}")
    if weights is not None:
        load_weights(network, weights, f"the {backbone} to start from")
    if tuple(heads) == ("abn",):
        with seeded(seed, "head"):
            return ABN(network, nodes, num_classes)
    return attach_saol(network, nodes[-blocks:], num_classes, heads=heads, seed=seed, options=options, **changes)
