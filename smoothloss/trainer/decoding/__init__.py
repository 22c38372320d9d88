"""Turning a model into text: beam search, greedy search, sampling, and ensembles of models to do it with."""

from smoothloss.trainer.decoding.beam_search import beam_search, greedy_search
from smoothloss.trainer.decoding.ensemble import Ensemble
from smoothloss.trainer.decoding.hypothesis import Hypothesis, Stepper
from smoothloss.trainer.decoding.sampling import sample

__all__ = ["Ensemble", "Hypothesis", "Stepper", "beam_search", "greedy_search", "sample"]
