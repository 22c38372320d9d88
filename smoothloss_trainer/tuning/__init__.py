"""``smoothloss tune RECIPE``: settings chosen by what they score on the validation part.

A recipe says what may vary in a section of its own (:class:`~smoothloss_trainer.tuning.space.TuneConfig`). Optuna draws
settings, each is trained as a run of its own beside the others, those that fall behind are stopped, and what is best
becomes a recipe. Of the test part nothing is read.
"""

from smoothloss_trainer.tuning.study import tune

__all__ = ["tune"]
