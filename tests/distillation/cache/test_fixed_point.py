from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smoothloss.distillation.cache.fixed_point import LOWEST, decode, encode


def test_a_probability_errs_by_less_than_a_quarter_of_a_thousandth() -> None:
    for dtype in (np.float32, np.float64):
        log_probs = np.linspace(LOWEST, 0, 3_000_001).astype(dtype)
        error = np.expm1(decode(encode(log_probs)).astype(np.float64) - log_probs)
        assert 2.4e-4 < np.abs(error).max() < 2.5e-4


def test_every_code_is_a_fixed_point() -> None:
    codes = np.arange(65536).astype(np.uint16)
    assert np.array_equal(encode(decode(codes)), codes)


@given(st.floats(max_value=2.0**-10, allow_infinity=False, width=32))
def test_out_of_range_is_the_end_of_the_range(log_prob: float) -> None:
    got = float(decode(encode(np.array([log_prob], np.float32)))[0])
    assert abs(got - min(max(log_prob, -32.0), 0.0)) <= 2.45e-4


def test_nothing_stays_nothing() -> None:
    got = decode(encode(np.array([-np.inf, -32.0, -1e9, 0.0], np.float32)))
    assert got.tolist() == [-math.inf, -32.0, -32.0, 0.0]
