"""What a bug report should open with: versions, devices, and which implementation can run where."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

from smoothloss import _compiled as compiled
from smoothloss import backends
from smoothloss.backends import native
from smoothloss.backends.native import linear as native_linear
from smoothloss.ops.linear_layer import has_fast_gemm

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def report() -> str:
    """Return versions, devices, the CPU kernels' instruction set and the available implementations, line by line."""
    lines = [*_versions(), "", *_devices(), "", *_instruction_set(), "", "implementations"]
    for device_type in ("cpu", "cuda"):
        for name in backends.IMPLEMENTATIONS[1:]:
            lines.append(f"  {device_type:4} {name:9} {_availability(name, device_type)}")
    if torch.cuda.is_available():
        chosen = ", ".join(f"{_short(d)}: {backends.choose('auto', 'cuda', d)}" for d in _DTYPES)
        lines.append(f"  cuda auto      {chosen}")
    chosen = ", ".join(f"{_short(d)}: {backends.choose('auto', 'cpu', d)}" for d in _DTYPES)
    lines.append(f"  cpu  auto      {chosen}")
    return "\n".join([*lines, "", *_rewards()])


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _versions() -> list[str]:
    names = ("smoothloss", "torch", "triton", "numpy", "safetensors")
    python = f"{'python':12} {platform.python_version()} on {platform.platform()}"
    return [*(f"{name:12} {_version(name)}" for name in names), python]


def _devices() -> list[str]:
    lines = [f"cpu          {platform.machine()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"]
    if not torch.cuda.is_available():
        why = "torch is a CPU build" if torch.version.cuda is None else f"torch (CUDA {torch.version.cuda}) sees none"
        return [*lines, f"cuda         none: {why}"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"sm_{properties.major}{properties.minor}"
        lines.append(f"cuda:{index}       {properties.name}, {capability}, {properties.total_memory / 2**30:.0f} GiB")
    return [*lines, f"cuda runtime {torch.version.cuda} (torch's)"]


def _instruction_set() -> list[str]:
    available = native.instruction_sets()
    if not available:
        return [f"instruction set of the CPU kernels: none ({native.unavailable('cpu', torch.float32)})"]
    chosen = os.environ.get("SMOOTHLOSS_ISA") or available[0]
    products = native_linear.matmul_isas()
    how = products[0] if products else "torch's" if has_fast_gemm("cpu", torch.bfloat16) else "made in float32"
    return [
        f"instruction set of the CPU kernels: {chosen} (this machine runs {', '.join(available)})",
        f"products of bfloat16 on the CPU: {how}",
    ]


def _rewards() -> list[str]:
    """Return where BLEU, CIDEr and the other rewards are computed."""
    cpu, why = compiled.load("_C")
    lines = [f"rewards on the cpu   {'_C' if cpu is not None else f'no: {why}'}"]
    if torch.cuda.is_available():
        cuda, why = compiled.load("_C_cuda")
        lines.append(f"rewards on cuda      {'_C_cuda' if cuda is not None else f'on the cpu, by copies: {why}'}")
    return lines


def _availability(name: str, device_type: str) -> str:
    """Return the dtypes that an implementation computes on a kind of device, and why not the others."""
    if device_type == "cuda" and not torch.cuda.is_available():
        reason = backends.unavailable(name, device_type, torch.float32)
        return f"no: {reason or 'torch sees no CUDA device'}"
    reasons = {dtype: backends.unavailable(name, device_type, dtype) for dtype in _DTYPES}
    able = [_short(dtype) for dtype, reason in reasons.items() if reason is None]
    unable = dict.fromkeys(reason for reason in reasons.values() if reason is not None)
    if not able:
        return f"no: {'; '.join(unable)}"
    return f"yes: {', '.join(able)}" + (f" ({'; '.join(unable)})" if unable else "")
