"""How the row kernels are launched: blocks, warps, and the number of programs, from the size and layout of the rows."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor


class RowConfig(NamedTuple):
    """How rows up to `max_classes` wide are run: `block` classes at a time by `num_warps` warps of `max_registers`.

    The bound on the registers is what the register file holds or less. Without one, ptxas may spill a scalar or two in
    order to fit one more program on a multiprocessor. Of the kernel that reads a row twice, a multiprocessor runs at
    most `resident` programs at a time.
    """

    max_classes: int
    block: int
    num_warps: int
    max_registers: int
    resident: int


class Memory(NamedTuple):
    """What a device has to read rows with: multiprocessors, and bytes of L2 cache."""

    multiprocessors: int
    cache_bytes: int


# By accumulator dtype, narrowest rows first, the last takes the rest; these are all that ship. Very wide rows get one
# program a multiprocessor, so that all rows at work fit into the L2 cache, from which pass 2 reads them again.
CONFIGS: dict[torch.dtype, tuple[RowConfig, ...]] = {
    torch.float32: (
        RowConfig(1024, 1024, 4, 255, 12),
        RowConfig(32768, 4096, 8, 255, 4),
        RowConfig(2**31, 8192, 16, 128, 1),
    ),
    torch.float64: (RowConfig(2**31, 1024, 8, 255, 3),),  # two by Triton 3.7, three by 3.8 on sm_80
}
# The same for targets with dense rows: sums over their mixture, and loads of several of them at once, take registers.
DENSE_CONFIGS: dict[torch.dtype, tuple[RowConfig, ...]] = {
    torch.float32: (
        RowConfig(1024, 512, 4, 255, 12),
        RowConfig(32768, 2048, 8, 255, 4),
        RowConfig(2**31, 4096, 8, 255, 1),
    ),
    torch.float64: (RowConfig(2**31, 512, 8, 255, 3),),
}
# The same for the forward of the token statistics, which looks at four blocks at a time, and reads a row once: blocks
# small enough for two programs on a multiprocessor, of which one reads while the other sums up its rest.
STATISTICS_CONFIGS: dict[torch.dtype, tuple[RowConfig, ...]] = {
    torch.float32: (
        RowConfig(2048, 512, 2, 255, 4),
        RowConfig(32768, 1024, 4, 255, 2),
        RowConfig(2**31, 2048, 8, 255, 1),
    ),
    torch.float64: (RowConfig(2**31, 512, 8, 255, 1),),
}
# A loop over rows keeps more values alive: with an entropy or a softcap, larger blocks than this would spill there.
LOOP_BLOCK = 4096
# Entries that a kernel keeps in registers. Beyond the largest it walks through them, block against block.
ENTRY_BLOCKS: tuple[int, ...] = (1, 32, 128)
# V and the strides are passed in units of 8 where they allow it: rows of 9800 classes are not multiples of 16, which is
# what Triton looks for, and would be read by 2-byte loads.
UNITS: tuple[int, ...] = (8, 1)
# Slots that a program of the smoothed target fills at a time, and its warps; the last takes the rest. The registers are
# bounded for the reason given above.
TARGET_BLOCKS: tuple[tuple[int, int], ...] = ((32, 1), (128, 1), (512, 4))
TARGET_REGISTERS = 255
# One program averages everything: 8192 rows, a common number, in one step.
MEAN_BLOCK, MEAN_WARPS = 8192, 32
# Four loads of 16 bytes a thread.
SCALED_BLOCK, SCALED_WARPS = 4096, 8


def row_config(logits: Tensor, has_dense: bool = False) -> RowConfig:
    """Return the configuration for logits ``(N, V)``, and a target with or without dense rows."""
    configs = (DENSE_CONFIGS if has_dense else CONFIGS)[
        torch.float64 if logits.dtype == torch.float64 else torch.float32
    ]
    return next(config for config in configs if logits.shape[1] <= config.max_classes)


def statistics_config(logits: Tensor) -> RowConfig:
    """Return the configuration of the forward of the token statistics for logits ``(N, V)``."""
    configs = STATISTICS_CONFIGS[torch.float64 if logits.dtype == torch.float64 else torch.float32]
    return next(config for config in configs if logits.shape[1] <= config.max_classes)


def entry_block(num_entries: int) -> int:
    """Return how many entries of a row are looked at together."""
    return next((block for block in ENTRY_BLOCKS if num_entries <= block), ENTRY_BLOCKS[-1])


def unit(*tensors: Tensor) -> int:
    """Return the largest unit in which the widths and row strides of these matrices can be counted."""
    sizes = [size for tensor in tensors for size in (tensor.shape[1], tensor.stride(0))]
    return next(unit for unit in UNITS if all(size % unit == 0 for size in sizes))


@functools.cache
def memory(device: torch.device) -> Memory | None:
    """Return what `device` reads with; None where there is no such thing (the interpreter)."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    return Memory(properties.multi_processor_count, properties.L2_cache_size)


def bytes_between_reads(logits: Tensor, out: Tensor) -> int:
    """Return how much a program that reads a row twice touches between the two reads of a class, in bytes.

    The row itself and, unless it is written over, half of the gradient's row on average.
    """
    row = logits.shape[1] * logits.element_size()
    return row if out.data_ptr() == logits.data_ptr() else row + out.shape[1] * out.element_size() // 2


def row_programs(rows: int, row_bytes: int, resident: int, memory: Memory | None) -> int:
    """Return how many programs share the rows of a kernel that reads each row twice: `rows` for one program a row.

    Where the rows at work together exceed the cache, fewer programs are at work: as many as fit, and the same number
    on every multiprocessor that has any. Half of the multiprocessors alone would no longer keep the memory busy; rows
    so wide that not even theirs fit are read from memory twice.

    Args:
        rows: N.
        row_bytes: what a program touches between its two reads.
        resident: programs that a multiprocessor runs at a time.
        memory: of the device; None: one program a row.
    """
    if memory is None or row_bytes == 0:
        return rows
    fitting = memory.cache_bytes // row_bytes
    if fitting >= resident * memory.multiprocessors or fitting <= memory.multiprocessors // 2:
        return rows
    whole = fitting // memory.multiprocessors * memory.multiprocessors
    return min(rows, whole or fitting)
