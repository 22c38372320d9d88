"""Several ranks in one process, a thread each: collectives without the start of processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.testing._internal.distributed import multi_threaded_pg as threaded

Result = TypeVar("Result")


def in_threads(world: int, work: Callable[[int, Any], Result]) -> list[Result]:
    """Return ``work(rank, group)`` of every rank, in their order."""
    results: list[Any] = [None] * world
    store = dist.HashStore()

    def one(rank: int) -> None:
        dist.init_process_group("threaded", rank=rank, world_size=world, store=store)
        try:
            results[rank] = work(rank, dist.group.WORLD)
        except BaseException as error:  # the others wait for this one
            results[rank] = error
            threaded.ProcessLocalGroup.exception_handle(error)
        finally:
            dist.destroy_process_group()

    torch._C._distributed_c10d._set_thread_isolation_mode(True)
    threaded._install_threaded_pg()
    try:
        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threaded._uninstall_threaded_pg()
        threaded.ProcessLocalGroup.reset()
        torch._C._distributed_c10d._set_thread_isolation_mode(False)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
