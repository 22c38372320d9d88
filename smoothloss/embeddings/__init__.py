"""Word vectors for a vocabulary: read from a file, or trained on the task's own text."""

from smoothloss.embeddings.files import load_vectors
from smoothloss.embeddings.glove import train_glove
from smoothloss.embeddings.vectors import WordVectors

__all__ = ["WordVectors", "load_vectors", "train_glove"]
