"""Sampling sequences around a ground truth, and the weights that turn the samples into another distribution's.

A sampler (:class:`HammingSampler`, :class:`EditSampler`) says how far a sample strays, its pool
(:class:`VocabularyPool`, :class:`BatchPool`, :class:`ReferencePool`, :class:`SimilarPool`) which tokens it finds there.
"""

from smoothloss.sampling.edit import EditSampler
from smoothloss.sampling.hamming import HammingSampler
from smoothloss.sampling.importance import effective_sample_size, importance_weights
from smoothloss.sampling.pools import BatchPool, Pool, ReferencePool, Substitutes, UniformPool, VocabularyPool
from smoothloss.sampling.samples import Sampler, Samples
from smoothloss.sampling.similar import SimilarPool

__all__ = [
    "BatchPool",
    "EditSampler",
    "HammingSampler",
    "Pool",
    "ReferencePool",
    "Sampler",
    "Samples",
    "SimilarPool",
    "Substitutes",
    "UniformPool",
    "VocabularyPool",
    "effective_sample_size",
    "importance_weights",
]
