"""Splits that are too large for memory: files decoded, cropped and resized by worker processes while training goes on.

Every image of a pass draws its crop from a seed of its own, so the pictures of an epoch are the same whatever the
number of workers or of training processes is, and an interrupted pass goes on at any batch without decoding what came
before. Workers put their pictures, a chunk of few rows at a time, into slots of shared memory that are made once and
used again and again: new memory for each chunk would cost more than a tenth of the decoding.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import crop, resize

from saol_lib.data.batches import Batch, Rows, Scaling
from saol_lib.data.images import middle, read_pixels
from saol_lib.data.splits import Files
from saol_lib.streams import stream, stream_seed

SCALING = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # ImageNet's own, as torchvision's pretrained networks expect
PREFETCH = 2  # chunks that each worker has ready or under way
MOST_ROWS = 64  # of a chunk
MOST_BYTES = 256 * 2**20  # of shared memory for all chunks together
PATIENCE = 300.0  # seconds without an image after which the workers are given up
LOOK = 1.0  # seconds between two looks at whether to go on waiting
log = logging.getLogger("saol_lib")


class Chunk(NamedTuple):
    """Rows of one batch that one worker decodes."""

    index: list[int]  # of the files
    seeds: list[int] | None  # of their random crops; None: the middle
    ends: bool  # the batch is complete with it
    slot: int = 0  # of the shared memory, where a worker decodes it


class Decoded(NamedTuple):
    """What a worker made of a chunk."""

    images: Tensor | None  # (n, side, side, 3) uint8, as they lie in a decoded picture; None: in the chunk's slot
    index: Tensor  # (n,) int64: the files that were read
    ends: bool
    damaged: list[str]  # files that could not be read, on the way
    unread: list[int]  # of the chunk's files those that no other one took the place of
    slot: int = 0
    error: Exception | None = None  # why there are no images


class Stream:
    """`Files` decoded by `workers` processes: randomly cropped, resized and mirrored (`epoch`), or the middle (`all`).

    workers: 0 decodes in this process. Workers stay for the next pass. scaling: mean and deviation of the channels in
    0..1, for `normalise`; the network's own, where it was trained before. `damaged` holds the files that could not be
    read; each raises ValueError unless `skip_damaged`: then the next file takes its place in `epoch`, and `all` leaves
    it out, see `kept`. `stop`: asked while waiting for the workers; where it answers True, the pass ends.
    """

    def __init__(
        self,
        files: Files,
        device: torch.device,
        workers: int = 0,
        skip_damaged: bool = False,
        *,
        scaling: tuple = SCALING,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        mean, std = (torch.as_tensor(value, dtype=torch.float64) for value in scaling)
        self.files, self.device, self.workers = files, device, workers
        self.size, self.source_size = files.size, files.source_size
        self.labels = files.labels.to(device)
        self.scaling = Scaling(mean, std, files.size, device, dtype)
        self.damaged: set[str] = set(files.damaged)
        self.stop: Callable[[], bool] = lambda: False
        self._unread: set[int] = set()
        self._reader = Reader(files, skip_damaged)
        self._plan = _Plan()
        self._loader = None
        self._passes = 0

    def __len__(self) -> int:
        return len(self.files.labels)

    @property
    def kept(self) -> Tensor:
        """Indices (n,) of the images that `all` gives, as far as it has read them; boxes[kept] are their boxes."""
        readable = torch.ones(len(self), dtype=torch.bool)
        readable[list(self._unread)] = False
        return readable.nonzero()[:, 0]

    def epoch(
        self, batch_size: int, seed: int, epoch: int, first: int = 0, rows: Rows | None = None
    ) -> Iterator[Batch]:
        """Yield uint8 images (B, 3, H, W) and labels (B,) of a shuffled pass from batch `first` on, full ones only.

        rows: step -> which rows of the global batch are wanted, in that order; no other one is decoded. None: all.
        """
        order = torch.randperm(len(self), generator=stream(seed, "order", epoch))

        def batches() -> Iterator[tuple[list[int], list[int]]]:
            for step in range(first, len(self) // batch_size):
                wanted = torch.arange(batch_size) if rows is None else rows(step)
                places = wanted + step * batch_size
                seeds = [stream_seed(seed, "augment", epoch, place) for place in places.tolist()]
                yield order[places].tolist(), seeds

        yield from self._decoded(batches(), batch_size)

    def all(self, batch_size: int, part: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Yield (images as `normalise` gives them, labels) of the whole split in order; damaged images are left out.

        part: (n, count): batches n, n + count, n + 2 count, ... alone; no other one is decoded.
        """
        number, count = part
        starts = range(number * batch_size, len(self), count * batch_size)

        def batches() -> Iterator[tuple[list[int], None]]:
            for start in starts:
                end = min(start + batch_size, len(self))
                yield list(range(start, end)), None

        for images, labels in self._decoded(batches(), batch_size):
            if len(labels):
                yield self.normalise(images), labels

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to floats with mean 0 and deviation 1 over ImageNet (or as `scaling` says)."""
        return self.scaling(images)

    def _decoded(self, batches: Iterable[tuple[list[int], list[int] | None]], batch_size: int) -> Iterator[Batch]:
        if self.workers and self._loader is None:
            self._loader = self._start(batch_size)
        slots, rows = 1, MOST_ROWS
        if self.workers:
            slots, rows = self._reader.slots.shape[:2]
        parts: list[Decoded] = []
        for decoded in self._results(_chunks(batches, rows, slots)):
            self._note(decoded)
            parts.append(decoded)
            if decoded.ends:
                yield self._joined(parts)
                parts = []

    def _results(self, chunks: Iterator[Chunk]) -> Iterator[Decoded]:
        """The chunks' pictures in order, from this process or from the workers."""
        if not self.workers:
            for chunk in chunks:
                yield self._reader[chunk]
            return

        self._plan.chunks = chunks
        found = iter(self._loader)  # the workers' one iterator, begun anew
        self._passes += 1
        number = self._passes
        while True:
            if number != self._passes:
                raise RuntimeError("a pass cannot go on after another one by the same workers has begun")
            decoded = self._wait(found)
            if decoded is None:
                return
            images = self._reader.slots[decoded.slot, : len(decoded.index)]
            yield decoded._replace(images=images.clone())  # the slot is free for another chunk

    def _start(self, batch_size: int) -> DataLoader:
        self._reader.slots = self._new_slots(batch_size)
        return DataLoader(
            self._reader,
            batch_size=None,  # a chunk is asked for as it is
            sampler=self._plan,
            collate_fn=_unchanged,
            num_workers=self.workers,
            prefetch_factor=PREFETCH,
            persistent_workers=True,
            timeout=LOOK,
            generator=torch.Generator(),  # workers get their seeds from it; without it from the global one
        )

    def _wait(self, found: Iterator[Decoded]) -> Decoded | None:
        """The next chunk; None at the end. RuntimeError where a worker died, or none answers for PATIENCE seconds."""
        waited = 0.0
        while True:
            try:
                return next(found, None)
            except RuntimeError as error:
                if "timed out" not in str(error):
                    self._loader = None
                    raise RuntimeError(
                        f"a process that decodes images ended ({_first_line(error)}): there may be too little memory; "
                        f"start again with fewer than workers={self.workers}, or with workers=0"
                    ) from None
            if self.stop():
                return None
            waited += LOOK
            if waited >= PATIENCE:
                self._loader = None
                raise RuntimeError(
                    f"the {self.workers} processes that decode images gave none for {PATIENCE:.0f} seconds; look at "
                    f"{self.files.root}, then start again, perhaps with workers=0"
                )

    def _note(self, decoded: Decoded) -> None:
        if decoded.error:
            raise decoded.error
        self._unread.update(decoded.unread)
        for path in decoded.damaged:
            if path not in self.damaged:
                self.damaged.add(path)
                log.warning("%s cannot be read and was skipped, %d so far", path, len(self.damaged))

    def _joined(self, parts: list[Decoded]) -> Batch:
        """One batch on the device, through pinned memory where that is a GPU."""
        on_gpu = self.device.type == "cuda"
        index = torch.cat([part.index for part in parts])
        if len(parts) == 1 and not on_gpu:
            images = parts[0].images  # nobody else's: a chunk is decoded into memory of its own, or was copied
        else:
            images = torch.empty((len(index), *self.size, 3), dtype=torch.uint8, pin_memory=on_gpu)
            torch.cat([part.images for part in parts], out=images)
        if on_gpu:
            index = index.pin_memory()
        chosen = index.to(self.device, non_blocking=True)
        images = images.to(self.device, non_blocking=True)
        return images.permute(0, 3, 1, 2), self.labels[chosen]

    def _new_slots(self, batch_size: int) -> Tensor:
        """Shared memory (slots, rows, side, side, 3): a slot for each chunk under way, and one for the chunk in hand.

        A DataLoader asks for one more chunk only when the next is fetched. By then the pictures in hand were copied, so
        that their slot may be filled again.
        """
        count = self.workers * PREFETCH + 1
        images = torch.empty(count, self._rows_a_chunk(batch_size, count), *self.size, 3, dtype=torch.uint8)
        try:
            return images.share_memory_()
        except RuntimeError as error:
            raise RuntimeError(
                f"images could not be handed over ({_first_line(error)}); give more shared memory, or workers=0"
            ) from None

    def _rows_a_chunk(self, batch_size: int, slots: int) -> int:
        """So many that all slots together fit a quarter of the shared memory that is free."""
        one = 3 * self.size[0] * self.size[1]
        room = min(MOST_BYTES, _free_shared_memory() // 4)
        return max(1, min(room // (slots * one), batch_size, MOST_ROWS))


def _free_shared_memory() -> int:
    """Bytes; where there is no such folder, tensors travel in other ways without this limit."""
    try:
        found = os.statvfs("/dev/shm")
    except (OSError, AttributeError):
        return 4 * MOST_BYTES
    return found.f_bavail * found.f_frsize


def _chunks(batches: Iterable[tuple[list[int], list[int] | None]], rows: int, slots: int) -> Iterator[Chunk]:
    slot = cycle(range(slots))
    for index, seeds in batches:
        for start in range(0, max(len(index), 1), rows):
            end = start + rows
            part = None if seeds is None else seeds[start:end]
            yield Chunk(index[start:end], part, ends=end >= len(index), slot=next(slot))


class _Plan:
    """What a DataLoader asks for its next indices: the chunks of the pass that has just begun."""

    chunks: Iterable[Chunk] = ()

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self.chunks)


def _unchanged(decoded: Decoded) -> Decoded:
    return decoded


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


class Reader:
    """What a worker does with a chunk: each file decoded, then cropped and resized.

    slots: shared memory (slots, rows, side, side, 3) into which workers decode; None: each chunk has its own memory.
    """

    slots: Tensor | None = None

    def __init__(self, files: Files, skip_damaged: bool = False) -> None:
        self.files, self.skip_damaged = files, skip_damaged
        self._anywhere = v2.RandomResizedCrop(files.side)

    def __getitem__(self, chunk: Chunk) -> Decoded:
        """The chunk's pictures, or why there are none; torch's global generator stays as it was."""
        before = torch.get_rng_state()
        damaged: list[str] = []
        try:
            images, index = self._decode(chunk, damaged)
        except (ValueError, RuntimeError) as error:
            return Decoded(None, torch.empty(0), chunk.ends, damaged, [], chunk.slot, error)
        finally:
            torch.set_rng_state(before)
        unread = [] if chunk.seeds is not None else sorted(set(chunk.index) - set(index))
        if self.slots is not None:
            images = None
        return Decoded(images, torch.tensor(index, dtype=torch.int64), chunk.ends, damaged, unread, chunk.slot)

    def _decode(self, chunk: Chunk, damaged: list[str]) -> tuple[Tensor, list[int]]:
        side = self.files.side
        if self.slots is None:
            images = torch.empty(len(chunk.index), side, side, 3, dtype=torch.uint8)
        else:
            images = self.slots[chunk.slot]
        index = []
        for row, wanted in enumerate(chunk.index):
            pixels, found = self._read(wanted, damaged)
            if chunk.seeds is not None:
                image = self._crop(pixels, chunk.seeds[row])
            elif found == wanted:
                image = middle(pixels, side)
            else:
                continue  # evaluation sees each image once, beside its own boxes
            images[len(index)] = image.permute(1, 2, 0)
            index.append(found)
        return images[: len(index)], index

    def _read(self, index: int, damaged: list[str]) -> tuple[Tensor, int]:
        """The file's pixels (3, H, W) and its number; where damaged ones may be skipped, those of the next good one."""
        count = len(self.files.labels)
        for number in range(index, index + count):
            number %= count
            try:
                return read_pixels(self.files.path(number)), number
            except ValueError as error:
                if not self.skip_damaged:
                    raise ValueError(f"{error}; or set skip_damaged to go on without") from None
                damaged.append(str(self.files.path(number)))
        raise ValueError(f"none of the {count} images below {self.files.root} can be read; look at the folder")

    def _crop(self, pixels: Tensor, seed: int) -> Tensor:
        """A random crop, resized, and mirrored half of the time."""
        torch.default_generator.manual_seed(seed)
        place = self._anywhere.make_params([pixels])
        cut = crop(pixels, **place)
        packed = cut.permute(1, 2, 0).contiguous()  # as pictures lie: resized so, and put so, without repacking
        image = resize(packed.permute(2, 0, 1), [self.files.side] * 2, antialias=True)
        return image.flip(2) if torch.rand(1) < 0.5 else image
