"""Definition of the library's torch operators: one schema, one fake, one implementation for every device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("smoothloss", "DEF")
# `similarity` and `temperature` are what `SimilarityMixture.pack` returns, or empty.
TARGET_SCHEMA = "Tensor indices, Tensor weights, Tensor? uniform, Tensor[] similarity, float[] temperature"
OPTIONS_SCHEMA = "float label_smoothing, float entropy, float z_loss, float logit_scale, float softcap"


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define ``smoothloss::schema`` with its implementation and fake, and return the callable overload.

    The implementations choose the kernels themselves, so that one serves every backend.
    """
    name = schema[: schema.index("(")]
    LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, implementation, key)
    torch.library.register_fake(f"smoothloss::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.smoothloss, name).default
