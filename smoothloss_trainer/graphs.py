"""A training step on a CUDA device as CUDA graphs: its work is recorded once for each shape of batch, then replayed.

A step of a recurrent model is hundreds of small kernels, and the device waits for each to be launched. A replay is one
launch. What is recorded reads and writes the same memory each time, so that inputs are copied to where the recording
expects them, gradients stay where they are, and nothing may depend on a value that the host would have to read.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from smoothloss_trainer.errors import RecipeError, RunError
from smoothloss_trainer.tasks import State, map_tensors

MOST_SHAPES = 64  # further ones run as they come: a recording holds memory for all that is between input and gradient

Work = Callable[..., None]
Timer = Callable[[str], AbstractContextManager[object]]


class Recorder(Protocol):
    """What runs work, and what records it."""

    def running(self) -> AbstractContextManager[object]:
        """In it, work runs that may be recorded later."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what ``work`` does, without doing it; returns what does it."""


class CudaRecorder:
    """CUDA graphs of one device, which share their memory: nothing of one is needed once another has begun.

    Args:
        device: A CUDA device.
        generators: What the work draws from besides torch's own generator of the device.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator]) -> None:
        self.device, self.generators = device, generators
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def running(self) -> AbstractContextManager[object]:
        """The stream that is recorded later: what libraries set up for a stream is there then."""
        return _OnStream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph.

        Raises:
            RunError: when the work cannot be recorded.
        """
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.device(self.device), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                work()
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:200]
            without = "training.graphs false does without"
            raise RunError(f"a step could not be recorded as a CUDA graph, {without}: {reason}") from None
        return graph.replay


class _OnStream:
    """Work on a stream that begins after what was asked for before it, and ends before what is asked for after it."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream, self._context = stream, torch.cuda.stream(stream)

    def __enter__(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self._context.__enter__()

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)


def recorder(device: torch.device, generators: Sequence[torch.Generator]) -> Recorder:
    """What records on this device.

    Raises:
        RecipeError: when it is no CUDA device.
    """
    if device.type != "cuda":
        raise RecipeError(f"training.graphs needs a CUDA device, got {str(device)!r}")
    return CudaRecorder(device, generators)


class Replayed:
    """``work(*inputs)``, run for the first inputs of a shape, recorded for the second and replayed from then on.

    The first run gets what must not be got in a recording: compiled kernels, workspaces, an optimizer's moments.

    Args:
        work: Reads tensors, and writes where it always writes.
        recorder: Records it.
        device: Where it works.
        timed: ``with timed("replay"): ...`` around each replay.
    """

    def __init__(self, work: Work, recorder: Recorder, device: torch.device, timed: Timer = nullcontext) -> None:
        self.work, self.recorder, self.device, self.timed = work, recorder, device, timed
        self._recorded: dict[object, tuple[State, Callable[[], None]]] = {}
        self._seen: set[object] = set()

    def __call__(self, *inputs: State) -> None:
        """Do the work for tensors, nestings of tuples of them, or None."""
        shape = _shape(inputs)
        if shape not in self._recorded and (shape not in self._seen or len(self._recorded) == MOST_SHAPES):
            self._seen.add(shape)
            here = self._moved(inputs)
            with self.recorder.running():
                self.work(*here)
            return
        if shape not in self._recorded:
            own = self._moved(inputs)
            self._recorded[shape] = own, self.recorder.record(lambda: self.work(*own))
        own, replay = self._recorded[shape]
        for mine, given in zip(_tensors(own), _tensors(inputs), strict=True):
            mine.copy_(given, non_blocking=True)
        with self.timed("replay"):
            replay()

    def _moved(self, inputs: State) -> State:
        return map_tensors(lambda tensor: tensor.to(self.device, non_blocking=True, copy=True), inputs)


def _tensors(state: State) -> list[Tensor]:
    """The tensors of a nesting of tuples in order."""
    found: list[Tensor] = []
    map_tensors(found.append, state)
    return found


def _shape(state: State) -> object:
    """What two inputs have in common that one recording does for."""
    if isinstance(state, Tensor):
        return (state.dtype, *state.shape)
    return None if state is None else tuple(_shape(part) for part in state)
