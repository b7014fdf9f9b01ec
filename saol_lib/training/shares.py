"""Who computes what of a batch: shares for several processes, and parts one after the other (`accumulate`).

Every process draws what happens to the whole batch, which is cheap, and takes its own rows before any image is read.
A mixed sample and its source in the batch stay together. Losses are weighted so that the mean of the shares' gradients
is the gradient of the whole batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from saol_lib.cutmix import Mixed, Patches, mixed_rows, paste


class Share(NamedTuple):
    """The rows that one process trains on in one pass, with the sources of what is pasted into them. All on the CPU."""

    rows: Tensor | None  # (N,) int64, of the images that were read: own rows, then sources; None: all, as they are
    own: int  # how many of them are own rows
    boxes: Tensor  # (N, 4) as `cutmix.paste` takes them; empty for sources
    partners: Tensor  # (N,) places among the N
    clean_sources: bool
    mixed_weight: float  # the weight of the mean over this share's mixed samples in the whole batch's
    any_mixed: bool  # some process has a mixed sample in this pass


class Plan(NamedTuple):
    """One step of one process."""

    needed: Tensor  # (M,) the rows of the whole batch that this process has to read
    shares: list[Share]  # one a pass


def no_patches(batch: int) -> Patches:
    """Nothing is pasted: a batch without CutMix."""
    return Patches(torch.zeros(batch, 4, dtype=torch.int64), torch.arange(batch), clean_sources=True)


def plan_step(patches: Patches, processes: int = 1, rank: int = 0, accumulate: int = 1) -> Plan:
    """What process `rank` does in a step on a batch with these patches, in `accumulate` passes."""
    batch = len(patches.boxes)
    if processes * accumulate == 1:
        whole = Share(None, batch, *patches, mixed_weight=1.0, any_mixed=bool(patches.boxes.any()))
        return Plan(torch.arange(batch), [whole])

    passes = _order(patches).chunk(accumulate)
    own = [rows.chunk(processes)[rank] for rows in passes]
    read = [_with_sources(rows, patches) for rows in own]
    needed = torch.cat(read).unique()

    place = torch.full((batch,), -1)
    place[needed] = torch.arange(len(needed))
    shares = []
    for everyone, mine, rows in zip(passes, own, read, strict=True):
        weight = processes * accumulate * _mixed(patches, mine) / max(_mixed(patches), 1)
        shares.append(
            Share(
                rows=place[rows],
                own=len(mine),
                boxes=patches.boxes[rows] * (torch.arange(len(rows)) < len(mine))[:, None],
                partners=_places(patches.partners[mine], rows),
                clean_sources=patches.clean_sources,
                mixed_weight=weight,
                any_mixed=_mixed(patches, everyone) > 0,
            )
        )
    return Plan(needed, shares)


def _order(patches: Patches) -> Tensor:
    """The rows of a batch, so that cutting them into even parts parts no mixed sample from its source."""
    rows = torch.arange(len(patches.boxes))
    if not patches.clean_sources:
        return rows

    chosen = mixed_rows(patches.boxes)
    pairs = torch.stack([chosen, patches.partners[chosen]], dim=1).flatten()
    single = torch.ones(len(rows), dtype=torch.bool)
    single[pairs] = False
    return torch.cat([pairs, rows[single]])


def _with_sources(rows: Tensor, patches: Patches) -> Tensor:
    """The rows, then the sources of those that are mixed, where they are not among them."""
    sources = patches.partners[rows].unique()
    others = sources[~torch.isin(sources, rows)]
    return torch.cat([rows, others])


def _mixed(patches: Patches, rows: Tensor | None = None) -> int:
    """How many samples are mixed, of all rows or of these."""
    boxes = patches.boxes if rows is None else patches.boxes[rows]
    return len(mixed_rows(boxes))


def _places(partners: Tensor, rows: Tensor) -> Tensor:
    """Where the partners (R,) of the first R rows lie among the rows (N,); each of the others is its own partner."""
    sorted_rows, order = rows.sort()
    found = order[torch.searchsorted(sorted_rows, partners)]
    rest = torch.arange(len(partners), len(rows))
    return torch.cat([found, rest])


def mix_share(images: Tensor, labels: Tensor, num_classes: int, share: Share) -> tuple[Mixed, Tensor]:
    """A share of the images (M, C, H, W) and labels (M,) that were read: mixed, and its rows as they were (N, ...)."""
    if share.rows is not None:
        rows = share.rows.to(images.device, non_blocking=True)
        images = images[rows]
        labels = labels[rows]

    mixed = paste(images, labels, num_classes, share.boxes, share.partners)
    own = [value[: share.own] for value in mixed[:-1]]
    return Mixed(*own, clean_sources=share.clean_sources), images


def sources_of(mixed: Mixed, images: Tensor) -> Tensor:
    """The clean sources of the mixed samples, in order, from the images that `mix_share` gave beside them."""
    partners = mixed.partners[mixed_rows(mixed.boxes)]
    return images[partners.to(images.device, non_blocking=True)]
