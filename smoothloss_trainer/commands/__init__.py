"""What each command of the command line does: ``run(options)``, in a module of the command's name.

A module imports at its top what it needs: :mod:`smoothloss_trainer.cli` reads the module of the command that was asked
for, and nothing is begun before that is done. ``advice(options)``, where there is one, says how to go on after an
interruption; an empty string: there is nothing to go on with.
"""
