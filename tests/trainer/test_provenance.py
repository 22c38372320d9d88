from __future__ import annotations

from collections.abc import Callable

from smoothloss_trainer.config import Recipe
from smoothloss_trainer.provenance import loss_settings, settings_note

Make = Callable[..., Recipe]


def test_a_note_says_what_runs_had_and_where_they_differ(make_recipe: Make) -> None:
    long, short = (make_recipe(training={"epochs": epochs}) for epochs in (20, 6))
    assert "training.epochs 20, " in settings_note({"MLE": [long, long], "Tok": [long]})
    differing = settings_note({"MLE": [long], "Tok": [short, long]})
    assert 'They differ in training.epochs: 20 for "MLE", 6 and 20 for "Tok".' in differing
    assert "training.max_steps" not in differing and settings_note({"MLE": []}) == ""


def test_a_note_says_once_what_most_rows_have(make_recipe: Make) -> None:
    usual, other = (make_recipe(model={"dropout": dropout}) for dropout in (0.2, 0.1))
    assert 'They differ in model.dropout: 0.2, but 0.1 for "Tok".' in settings_note(
        {"MLE": [usual], "Seq": [usual, usual], "Tok": [other, other]}
    )
    mixed = settings_note({"MLE": [usual], "Seq": [usual, other], "Label smoothing": [usual]})
    assert 'They differ in model.dropout: 0.2, but 0.2 and 0.1 for "Seq".' in mixed
    assert 'model.dropout: 0.2 for "MLE", 0.1 for "Tok".' in settings_note({"MLE": [usual], "Tok": [other]})


def test_what_a_loss_says_beyond_the_defaults(make_recipe: Make) -> None:
    recipe = make_recipe(loss={"name": "seq", "alpha": 0.3, "reward": {"name": "constant"}, "embeddings": {}})
    assert loss_settings(recipe) == {"name": "seq", "alpha": 0.3, "reward.name": "constant"}
