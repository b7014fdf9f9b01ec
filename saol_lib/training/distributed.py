"""Data-parallel training by accelerate on torch.distributed, with the batches and CutMix pairs of a single process.

Every process draws the same global batch (that is cheap) and takes its own rows; a mixed sample and its source stay
together. Losses are weighted so that averaging the processes' gradients gives the gradient of the global batch.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from saol_lib.cutmix import Mixed


class Processes:
    """This process among those that train one run; alone unless torchrun or `launch` started several."""

    def __init__(self, device: str = "auto") -> None:
        best = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(best if device == "auto" else device)
        self.count, self.rank, self.accelerator = int(os.environ.get("WORLD_SIZE", 1)), 0, None
        if self.count > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator(cpu=self.device.type == "cpu")
            self.rank, self.device = self.accelerator.process_index, self.accelerator.device
            if (seen := self.accelerator.num_processes) != self.count:  # it can silently train independent copies
                raise RuntimeError(f"accelerate sees {seen} processes instead of {self.count}; start with torchrun")

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        return self.accelerator.prepare_model(model) if self.accelerator else model

    def sum(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, "sum") if self.accelerator else value

    def align(self, model: nn.Module) -> None:
        """Give every process the first one's buffers: each has running statistics of its own rows alone."""
        for buffer in model.buffers() if self.accelerator else ():
            torch.distributed.broadcast(buffer, 0)

    def wait(self) -> None:
        if self.accelerator:
            self.accelerator.wait_for_everyone()

    def rows(self, mixed: Mixed, paired: bool) -> Tensor:
        """The rows of the global batch that are this process's: as many for each, pairs together."""
        chosen = (mixed.boxes[:, 2] > 0).nonzero()[:, 0]
        order = torch.arange(len(mixed.boxes))
        if paired:
            pairs = torch.stack([chosen, mixed.partners[chosen]], dim=1).flatten()
            single = torch.ones(len(order), dtype=torch.bool).index_fill(0, pairs, False)
            order = torch.cat([pairs, order[single]])
        return order.chunk(self.count)[self.rank]

    def share(self, mixed: Mixed, paired: bool) -> tuple[Mixed, float]:
        """This process's part of a mixed batch, and the weight of its mean over mixed samples in the global one.

        The partners of the paired schedule count within the part; those of the others still within the whole batch.
        """
        if self.count == 1:
            return mixed, 1.0
        rows = self.rows(mixed, paired)
        parts = [value if isinstance(value, bool) else value[rows.to(value.device)] for value in mixed]
        part = Mixed(*parts)
        if paired:
            where = torch.zeros(len(mixed.boxes), dtype=torch.int64).index_copy(0, rows, torch.arange(len(rows)))
            part = part._replace(partners=where[part.partners])
        counts = [int((boxes[:, 2] > 0).sum()) for boxes in (part.boxes, mixed.boxes)]
        return part, self.count * counts[0] / max(counts[1], 1)


def launch(function: Callable, arguments: tuple, processes: int) -> None:
    """Call `function` in `processes` processes of this machine (spawned; from a notebook too) and wait for them."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise RuntimeError("this process is one of several already; processes above 1 would start more")
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    where = {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0", "run_id": str(os.getpid())}
    elastic_launch(LaunchConfig(1, 1, processes, start_method="spawn", max_restarts=0, **where), function)(*arguments)
