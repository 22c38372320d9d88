"""Cross-entropy against sparse soft targets: token-level and sequence-level loss smoothing for PyTorch."""

# torch comes first: the compiled parts share its OpenMP runtime.
import torch  # noqa: F401

from smoothloss import embeddings, functional, nn, rewards, sampling, targets
from smoothloss.ops.checks import debug
from smoothloss.similarity import SimilarityTable

__all__ = [
    "SimilarityTable",
    "__version__",
    "debug",
    "embeddings",
    "functional",
    "nn",
    "rewards",
    "sampling",
    "targets",
]
__version__ = "0.1.0"
