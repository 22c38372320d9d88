"""Cross-entropy against sparse soft targets: token-level and sequence-level loss smoothing for PyTorch."""

from __future__ import annotations

TYPE_CHECKING = False  # to type checkers it is true; typing itself takes longer to read than all of this
if TYPE_CHECKING:
    from typing import Any

    from smoothloss import distillation, embeddings, functional, nn, rewards, sampling, targets
    from smoothloss.backends.common import TokenStatistics
    from smoothloss.ops.checks import debug
    from smoothloss.similarity import SimilarityTable

__all__ = [
    "SimilarityTable",
    "TokenStatistics",
    "__version__",
    "debug",
    "distillation",
    "embeddings",
    "functional",
    "nn",
    "rewards",
    "sampling",
    "targets",
]
__version__ = "0.1.0"

# Read when first asked for: torch takes seconds, in which the command line could not be interrupted in good order.
_MODULES = ("distillation", "embeddings", "functional", "nn", "ops", "rewards", "sampling", "similarity", "targets")
_NAMES = {
    "SimilarityTable": "smoothloss.similarity",
    "TokenStatistics": "smoothloss.backends.common",
    "debug": "smoothloss.ops.checks",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"smoothloss.{name}")
    if name in _NAMES:
        globals()[name] = getattr(import_module(_NAMES[name]), name)
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_NAMES})
