"""``smoothloss tune RECIPE``: the settings of a loss, searched for on the validation part.

A space is a YAML file that maps keys of the recipe to what they may be (:mod:`.space`). Trials are training runs beside
each other (:mod:`.search`), chosen and pruned by Optuna, whose storage is a file in the output folder. The test part is
not read: trials are trained with ``training.tests: false``.
"""
