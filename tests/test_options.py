"""The options are declared once: what every signature shows, what is checked, what the kernels take."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import pytest
import torch

import smoothloss.functional as F
from smoothloss import distillation, nn, options
from smoothloss.ops import cross_entropy, linear_cross_entropy
from smoothloss.row_options import RowKeywords, RowOptions

ON_LOGITS = {name for name in F.__all__ if name.endswith("cross_entropy") and not name.startswith("linear_")}
ON_HIDDEN = {name for name in F.__all__ if name.endswith("cross_entropy")} - ON_LOGITS
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(F, name) for name in sorted(ON_LOGITS | ON_HIDDEN)},
    "distillation_loss": distillation.loss,
    "linear_distillation_loss": distillation.linear_loss,
}
MODULES: dict[str, Callable[..., Any]] = {name: getattr(nn, name) for name in nn.__all__}


def room(name: str) -> Any:
    """Return the module that declares the options of a loss."""
    return distillation.options if "distillation" in name.lower() else options


def declared(name: str) -> tuple[str, ...]:
    return room(name).LINEAR if name.lower().startswith("linear") else room(name).LOGITS


@pytest.mark.parametrize("name", [*FUNCTIONS, *MODULES])
def test_every_signature_shows_every_option_with_its_default(name: str) -> None:
    loss = {**FUNCTIONS, **MODULES}[name]
    for shown in (loss, functools.wraps(loss)(lambda *args, **keywords: loss(*args, **keywords))):
        parameters = inspect.signature(shown).parameters
        assert all(each.kind is not each.VAR_KEYWORD for each in parameters.values())
        given = {option: parameters[option] for option in declared(name)}
        assert all(each.kind is each.KEYWORD_ONLY for each in given.values())
        assert {option: each.default for option, each in given.items()} == {
            option: room(name).DEFAULTS[option] for option in declared(name)
        }
    types = typing.get_type_hints(loss if name in FUNCTIONS else loss.__init__)
    assert set(declared(name)) < set(types)
    assert "given" not in types


@pytest.mark.parametrize("name", [*FUNCTIONS, *MODULES])
def test_an_unknown_option_is_named_with_what_is_expected(name: str) -> None:
    loss, other = {**FUNCTIONS, **MODULES}[name], "memory" if declared(name) is room(name).LOGITS else "inplace"
    required = {key: torch.ones(1, 2, 3) for key, each in inspect.signature(loss).parameters.items()
                if each.default is each.empty}  # fmt: skip
    for wrong in ("label_smooting", "names", other):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{wrong}', expected .*{declared(name)[0]}"):
            loss(**required, **{wrong: 0.1})


def test_the_defaults_are_those_that_nothing_given_means() -> None:
    divergences = distillation.options
    for names in (divergences.LOGITS, divergences.LINEAR):
        everything = {name: divergences.DEFAULTS[name] for name in names}
        assert divergences.check({}, names) == divergences.check(everything, names)
    assert options.check({}, options.LOGITS) == options.check(
        {name: options.DEFAULTS[name] for name in options.LOGITS}, options.LOGITS
    )
    assert options.check({}, options.LINEAR).row == RowOptions()


def test_users_and_kernels_know_the_same_options_of_a_row() -> None:
    assert tuple(RowKeywords.__annotations__) == RowOptions._fields


@pytest.mark.parametrize("operators", [cross_entropy, linear_cross_entropy])
def test_the_operators_name_no_option(operators: Any) -> None:
    for operator in (operators.backward_op, getattr(operators, "forward_op", None) or operators.fused_op):
        names = {argument.name for argument in operator.overload._schema.arguments}
        assert "options" in names
        assert not names & set(RowOptions._fields)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_options_that_change_from_call_to_call_compile() -> None:
    torch.compiler.reset()
    logits, target = torch.randn(4, 9), torch.arange(4)

    def loss(logits: torch.Tensor, **given: Any) -> torch.Tensor:
        return F.cross_entropy(logits, target, **given)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for given in (
        {},
        {"z_loss": 0.1},
        {"z_loss": 0.2},
        {"z_loss": 0.3, "softcap": 3.0},
        {"logit_scale": 0.5, "kl": True},
    ):
        torch.testing.assert_close(compiled(logits, **given), loss(logits, **given))
