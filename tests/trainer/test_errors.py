from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smoothloss_trainer.errors import RecipeError, RunError


@pytest.mark.parametrize("kind", [RecipeError, RunError])
@given(text=st.text())
def test_a_message_is_one_line_whatever_it_quotes(kind: type[Exception], text: str) -> None:
    message = str(kind(f"no such file: {text}."))
    assert len(message.splitlines()) == 1
    assert all(letter in message for letter in text if letter.isprintable())
    assert str(pickle.loads(pickle.dumps(kind(text)))) == str(kind(text))  # as a worker process hands it on
