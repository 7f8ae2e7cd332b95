"""Comparison of catalogs."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from yt8m.dataset.catalog import Catalog


def assert_same(one: Catalog, other: Catalog) -> None:
    """Require that two catalogs are equal in every field, and that their columns are read-only."""
    for field in fields(Catalog):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right, err_msg=field.name)
            assert left.dtype == right.dtype, field.name
            assert not left.flags.writeable
            assert not right.flags.writeable
        else:
            assert left == right, field.name
