"""The processes that train one network together, as torchrun starts them; usually there is one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn

from denoizarr.errors import BadRequest, ClusterLost, DenoizarrError

T = TypeVar("T")
# Longer than any pause for a checkpoint or a slow store; a process that is frozen for longer is lost.
_TIMEOUT = timedelta(minutes=10)
# What gloo, NCCL and torch's own store say when a peer is gone or silent; they raise plain RuntimeErrors.
_LOST = re.compile(r"gloo|nccl|connection|timed? ?out|peer|socket|broken pipe", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Processes:
    """Those that train together, and which of them this is. All make the same calls in the same order.

    Attributes
    ----------
    device : torch.device
        That this process computes on.
    rank, count : int
        Its number, from 0, and how many there are. Only the first one writes and reports.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes checkpoints, log and samples."""
        return self.rank == 0

    def parallel(self, network: nn.Module, *, may_skip_parameters: bool = False) -> nn.Module:
        """Return the network with its gradients averaged over all processes whenever they are computed.

        One that ``may_skip_parameters`` leaves some out of a step, and is waited for in vain unless told.
        """
        if self.count == 1:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            network, device_ids=devices, find_unused_parameters=may_skip_parameters
        )

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of every process's value: if one is not finite, all hear of it."""
        if self.count == 1:
            return value
        value = value.clone()
        distributed.all_reduce(value)
        return value / self.count

    def from_first(self, compute: Callable[[], T]) -> T:
        """Let the first process compute something, and give its answer, or its error, to all."""
        if self.count == 1:
            return compute()
        answer: list[Any] = [None, None]
        if self.is_first:
            try:
                answer[0] = compute()
            except DenoizarrError as error:
                answer[1] = error
        distributed.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise cast("DenoizarrError", answer[1])
        return cast("T", answer[0])

    def from_all(self, value: T) -> list[T]:
        """Give every process a list of what each one has, by its number."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def share_buffers(self, network: nn.Module) -> None:
        """Give all processes the first one's buffers: running statistics are each process's own else."""
        if self.count > 1:
            for buffer in network.buffers():
                distributed.broadcast(buffer, src=0)


@contextmanager
def together(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, if it did, for the time of the block.

    They are looked for in the environment (WORLD_SIZE, RANK, LOCAL_RANK) or in ``torch.distributed`` where
    that is set up already. On cuda each process of a machine takes the GPU of its local number.

    Parameters
    ----------
    device : str
        The option ``device``.

    Raises
    ------
    BadRequest
        There is no such device; the environment names no usable number of processes.
    ClusterLost
        Another process died, or did not answer for ten minutes.
    """
    was_set_up = distributed.is_available() and distributed.is_initialized()
    count = distributed.get_world_size() if was_set_up else _number("WORLD_SIZE", 1, lowest=1)
    if count == 1:
        yield Processes(device_named(device))
        return
    own = _own_device(device)
    try:
        if own.type == "cuda":
            torch.cuda.set_device(own)
        if not was_set_up:
            _number("RANK", None, lowest=0)
            backend = "nccl" if own.type == "cuda" else "gloo"
            distributed.init_process_group(backend, timeout=_TIMEOUT)
        yield Processes(own, distributed.get_rank(), count)
    except DenoizarrError:
        raise
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise ClusterLost(
            "another process of this training is gone or does not answer",
            where=f"torch.distributed, {count} processes",
            got=str(error).strip().split("\n")[0][:200],
            remedy="see what that process said, and run the same training again: it resumes",
        ) from error
    finally:
        if not was_set_up and distributed.is_initialized():
            distributed.destroy_process_group()


def device_named(name: str) -> torch.device:
    """Return the device of the option ``device``: "auto" is cuda where there is one.

    Raises
    ------
    BadRequest
        It is not present on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadRequest(
            "no such device", where="device", got=repr(name), expected="auto, cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        got = f"{name}, with {torch.cuda.device_count()} such devices here"
        raise BadRequest("the device is not present", where="device", got=got, remedy='use device="auto"')
    return device


def _own_device(name: str) -> torch.device:
    device = device_named(name)
    if device.type != "cuda" or name not in ("auto", "cuda"):
        return device
    return device_named(f"cuda:{_number('LOCAL_RANK', 0, lowest=0)}")


def _number(variable: str, default: int | None, *, lowest: int) -> int:
    """Return an environment variable that torchrun sets."""
    text = os.environ.get(variable, "" if default is None else str(default))
    if not text.isdecimal() or int(text) < lowest:
        raise BadRequest(
            "the environment does not say which processes train together",
            where=variable,
            got=repr(text),
            expected=f"an integer, {lowest} or more",
            remedy="start with torchrun, or unset WORLD_SIZE",
        )
    return int(text)
