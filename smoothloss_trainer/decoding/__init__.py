"""Turning a model into text: beam search, greedy search, sampling, and ensembles of models to do it with."""

from smoothloss_trainer.decoding.beam_search import beam_search, greedy_search
from smoothloss_trainer.decoding.ensemble import Ensemble
from smoothloss_trainer.decoding.hypothesis import Hypothesis, Stepper
from smoothloss_trainer.decoding.sampling import sample

__all__ = ["Ensemble", "Hypothesis", "Stepper", "beam_search", "greedy_search", "sample"]
