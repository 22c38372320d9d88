"""What all tests share: the data folder, the implementations that this process can run, emulated CUDA kernels"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from smoothloss import backends
from smoothloss.backends import native, unavailable


def pytest_configure(config: pytest.Config) -> None:
    """Let threads that wait sleep where several processes share the cores: by default they keep them busy."""
    if getattr(config.option, "numprocesses", None):
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read by the processes that are started from now on


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count what needs the CUDA emulation among the slow ones: compiling it takes a minute of two cores."""
    for item in items:
        if "emulated_cuda" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of real data sets, or skip where there is none."""
    folder = os.environ.get("SMOOTHLOSS_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no real data here: SMOOTHLOSS_DATA names no folder")
    return Path(folder)


@pytest.fixture(params=["reference", "native", "triton"])
def impl(request: pytest.FixtureRequest) -> str:
    """Return each implementation that runs on the CPU in this process (Triton does in its interpreter)."""
    reason = unavailable(request.param, "cpu", torch.float32)
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture
def poison() -> Iterator[None]:
    """Fill uninitialised memory with NaN, so that an element that nobody wrote is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def emulated_cuda(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Return ``_C_cuda`` compiled for the host, see `backends/cuda_emulation`; once for all processes of a run."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the CUDA kernels are tried in the process without Triton's interpreter")
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler here")
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cuda_emulation"
    folder.mkdir(exist_ok=True)
    library = folder / "_C_cuda.so"
    with FileLock(folder / "lock"):
        if not library.exists():
            _compile_emulation(compiler, folder, library)
    spec = importlib.util.spec_from_file_location("_C_cuda", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile_emulation(compiler: str, folder: Path, library: Path) -> None:
    csrc = Path(__file__).resolve().parents[1] / "csrc"
    emulation = Path(__file__).parent / "backends" / "cuda_emulation"
    includes = (emulation, csrc, sysconfig.get_paths()["include"], Path(torch.__file__).parent / "include")
    flags = ["-std=c++17", "-O1", "-fPIC", "-pthread", "-ffp-contract=off", "-fvisibility=hidden", "-w"]
    if "SMOOTHLOSS_SANITIZED" in os.environ:
        flags += ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined"]
    flags += ["-DSMOOTHLOSS_HAS_CLUSTERS", *itertools.chain(*(("-I", str(path)) for path in includes))]
    sources = [*(csrc / "cuda").glob("*.cu"), *csrc.glob("bindings_cuda*.cpp"), emulation / "emulation.cpp"]

    def run(*arguments: str | Path) -> None:
        environment = {**os.environ, "LD_PRELOAD": ""}  # a sanitizer's runtime is for the tests, not for the compiler
        subprocess.run([compiler, *flags, *arguments], check=True, capture_output=True, env=environment)

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.name}.o"
        run("-x", "c++", "-c", source, "-o", target)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    whole = folder / "_C_cuda.part.so"
    run("-shared", *objects, "-o", whole)
    whole.rename(library)


@pytest.fixture
def native_on_emulated_cuda(emulated_cuda: ModuleType) -> Iterator[EmulatedCuda]:
    """Let the native implementation take CPU tensors for CUDA tensors, float16 too, and the emulation for ``_C_cuda``.

    What can run where is remembered, and must be asked again before and after.
    """
    emulated = EmulatedCuda(emulated_cuda)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_is_cpu", lambda tensor: False)
        patch.setattr(native, "_launch", emulated.launch)
        patch.setattr(native, "_CPU_DTYPES", tuple(native._FLOAT_CODES))
        _forget_choices()
        yield emulated
    _forget_choices()


def _forget_choices() -> None:
    backends.unavailable.cache_clear()
    backends._choose.cache_clear()


class EmulatedCuda:
    """Runs kernels in the emulation, as one of its `device`s, and remembers which."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.device, self.launched = module, 0, []
        self._num_launches = ctypes.CDLL(module.__file__).emulated_launches
        self._num_launches.restype = ctypes.c_int64

    @property
    def num_launches(self) -> int:
        """How many kernels were launched so far: a crossing may launch several."""
        return int(self._num_launches())

    def launch(self, name: str, like: torch.Tensor, *arguments: object) -> None:
        del like
        self.launched.append(name)
        getattr(self.module, name)(*arguments, self.device, 0)


@pytest.fixture(params=["forward", "reverse", "shuffled"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the threads of a block in several orders: what lacks a barrier fails in one of them."""
    monkeypatch.setenv("EMULATION_ORDER", request.param)
    return str(request.param)


@pytest.fixture
def no_host_sync() -> Iterator[Callable[[], None]]:
    """Return the function from whose call on a host sync raises, until the end of the test."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def launched() -> Callable[[Callable[[], object]], list[str]]:
    """Return the function that tells the names of everything that a step runs on the device."""

    def names(step: Callable[[], object]) -> list[str]:
        step()  # compiles
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as recorded:
            step()
            torch.cuda.synchronize()
        return [event.name for event in recorded.events() if event.device_type == torch.autograd.DeviceType.CUDA]

    return names


@pytest.fixture(autouse=True, scope="session")
def fast_bits_in_the_interpreter() -> None:
    """Let NumPy do what Triton's interpreter does number by number in Python: to put bits together."""
    if not os.environ.get("TRITON_INTERPRET"):
        return
    from triton.runtime.interpreter import ReduceOps

    from smoothloss.backends.triton.rest import either

    slow = ReduceOps.apply_impl

    def apply_impl(self: Any, operands: Any) -> Any:
        if self.combine_fn is not either:
            return slow(self, operands)
        return self.to_tensor(np.bitwise_or.reduce(operands[0].handle.data, axis=self.axis), operands[0].dtype)

    ReduceOps.apply_impl = apply_impl


@pytest.fixture(autouse=True, scope="session")
def rounded_functions_in_the_interpreter() -> None:
    """Let Triton's interpreter compute exponentials and logarithms in float64, and round them to the operand's dtype.

    It computes them with NumPy, whose float32 ones err by up to 1.6 units on processors without AVX-512, three times as
    much as PyTorch's: an error of the interpreter alone, which would count against the kernels' budget.
    """
    if not os.environ.get("TRITON_INTERPRET"):
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def rounded(function: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
        def apply(_: Any, operand: Any) -> Any:
            exact = np.asarray(function(operand.data.astype(np.float64)))
            return TensorHandle(exact.astype(operand.data.dtype), operand.dtype.scalar)

        return apply

    for name in ("exp", "exp2", "log", "log2"):
        setattr(InterpreterBuilder, f"create_{name}", rounded(getattr(np, name)))
