"""Networks by name: a backbone with its output layers."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from saol_lib.attach import HEADS, Plan, SAOLNet, attach_saol, attached, find_nodes, read_network
from saol_lib.layers import SaolOptions
from saol_lib.networks.abn import ABN
from saol_lib.networks.backbones import Backbone, build_backbone
from saol_lib.networks.weights import read_weights, start_from
from saol_lib.streams import seeded


def build_model(
    backbone: str,
    num_classes: int,
    *,
    heads: Sequence[str] = HEADS,
    blocks: int = 3,
    pretrained: bool = False,
    fetch: bool = True,
    weights: str | Path | Mapping[str, Tensor] | None = None,
    rows: Sequence[int] | None = None,
    seed: int | None = None,
    options: SaolOptions | None = None,
    **changes,
) -> SAOLNet | ABN:
    """A backbone by name (see `backbones`) with the output layers `heads` ("gap", "saol"); ("abn",): an ABN.

    pretrained  torchvision's or timm's own ImageNet weights; not fetched without `fetch`: others will replace them
    weights     those to start from: a file, the name of packaged ones ("efficientnet-lite0"), or tensors by name; see
                `weights.start_from` for what fits. With another number of classes the classifier alone is a new one
    rows        with pretrained or weights: which rows of their classifier belong to the `num_classes` classes, in their
                order, so that the classifier is kept, without its other rows
    blocks      how many of the last stages feed the spatial logits
    seed        backbone and SAOL are drawn from two streams of it, so that networks of one seed share their backbone's
                first weights whatever their heads are; None: torch's global generator
    options     a `SaolOptions`; changes: single fields of it, by name
    Raises ValueError for unknown names and options, for more blocks than there are, and for weights that do not fit.
    """
    if rows is not None and not pretrained and weights is None:
        raise ValueError("rows are those of a trained classifier; give pretrained=True or weights as well")
    if pretrained and weights is not None:
        raise ValueError("pretrained=True and weights are two things to start from; give one of them")

    with seeded(seed, "backbone"):
        made = build_backbone(backbone, num_classes, pretrained, fetch)
        if pretrained and rows is not None:
            made = _with_rows(made, backbone, num_classes, rows)
    network = made.network
    if weights is not None:
        tensors = weights if isinstance(weights, Mapping) else read_weights(weights)
        origin = f"the {backbone} to start from" if isinstance(weights, Mapping) else Path(weights).name
        start_from(network, tensors, origin, rows)

    nodes = _last_nodes(made, backbone, blocks)
    if tuple(heads) == ("abn",):
        with seeded(seed, "head"):
            return ABN(network, nodes, num_classes)
    if made.nodes is None:
        return attach_saol(network, nodes, num_classes, heads=heads, seed=seed, options=options, **changes)

    own_classes = pretrained and rows is None
    heads = heads if isinstance(heads, str) else tuple(heads)
    plan = _plan(backbone, num_classes, own_classes, nodes, heads)
    weight = next(network.parameters())
    plan = plan._replace(device=weight.device, dtype=weight.dtype)
    return attached(network, plan, seed, options, **changes)


@lru_cache(maxsize=64)
def _plan(name: str, num_classes: int, own_classes: bool, nodes: tuple[str, ...], heads: tuple[str, ...]) -> Plan:
    """How output layers go on a backbone of a named family: read once, on a copy without numbers, as names say all.

    own_classes: the backbone has the classes of its public weights.
    """
    with torch.device("meta"):
        twin = build_backbone(name, num_classes, own_classes, fetch=False).network
    return read_network(twin, nodes, num_classes, heads)[0]


def _with_rows(made: Backbone, name: str, num_classes: int, rows: Sequence[int]) -> Backbone:
    """The same trained backbone for fewer classes: its classifier has these rows alone."""
    smaller = build_backbone(name, num_classes)
    start_from(smaller.network, made.network.state_dict(), f"the pretrained {name}", rows)
    return smaller


def _last_nodes(made: Backbone, name: str, blocks: int) -> tuple[str, ...]:
    """The last `blocks` stages of a backbone, looked for where its family does not name them."""
    nodes = made.nodes or find_nodes(made.network)
    if not 1 <= blocks <= len(nodes):
        raise ValueError(f"blocks={blocks}: {name} has {len(nodes)} stages; choose 1 to {len(nodes)}")
    return nodes[-blocks:]
