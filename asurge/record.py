"""Small objects that are made for every token."""

from __future__ import annotations

import dataclasses
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, eq_default=False)
def hot_dataclass(kind: type[T]) -> type[T]:
    """Make a dataclass with slots whose fields must not be assigned to.

    Type checkers see to that, Python does not: a frozen dataclass sets each field through a function call, and one of a dozen
    fields takes three times as long to make.
    """
    return dataclasses.dataclass(slots=True, eq=False)(kind)
