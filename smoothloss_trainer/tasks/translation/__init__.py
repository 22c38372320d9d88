"""Translation: tokenised parallel text, an attentive encoder-decoder, BLEU."""

from smoothloss_trainer.tasks.translation.task import TranslationTask

__all__ = ["TranslationTask"]
