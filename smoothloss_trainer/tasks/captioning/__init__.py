"""Captioning: image features, an LSTM without or with top-down attention, CIDEr and BLEU."""

from smoothloss_trainer.tasks.captioning.task import CaptioningTask

__all__ = ["CaptioningTask"]
