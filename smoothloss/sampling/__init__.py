"""Sampling sequences around a ground truth, and the weights that turn the samples into another distribution's."""

from smoothloss.sampling.hamming import HammingSampler
from smoothloss.sampling.importance import effective_sample_size, importance_weights
from smoothloss.sampling.pools import BatchPool, Pool, ReferencePool, Substitutes, UniformPool, VocabularyPool
from smoothloss.sampling.samples import Samples

__all__ = [
    "BatchPool",
    "HammingSampler",
    "Pool",
    "ReferencePool",
    "Samples",
    "Substitutes",
    "UniformPool",
    "VocabularyPool",
    "effective_sample_size",
    "importance_weights",
]
