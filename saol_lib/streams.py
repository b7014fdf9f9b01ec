"""Named random streams: every draw of a run comes from a seed of its own, so nothing has to be saved or replayed."""

import hashlib
from contextlib import contextmanager

import torch


def stream_seed(seed: int, *stream: str | int) -> int:
    """A seed for one random stream: stream_seed(3, "order", 7) has nothing in common with any other stream's."""
    text = "/".join(map(str, (seed, *stream)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def stream(seed: int, *name: str | int) -> torch.Generator:
    """A CPU generator for one random stream of a run."""
    return torch.Generator().manual_seed(stream_seed(seed, *name))


@contextmanager
def seeded(seed: int | None, stream: str):
    """Draw from stream `stream` of `seed`, and leave torch's global generator as it was; None: from that one."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, stream))
        yield
