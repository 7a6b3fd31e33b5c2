"""Properties that are computed once and kept in the object, without a lock."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from functools import cached_property as cached_property  # noqa: TID251
else:

    class cached_property(functools.cached_property):  # noqa: N801, TID251 (the name in functools)
        """A `functools.cached_property` that holds no lock.

        On Python 3.11 the original locks all objects of a class while it computes the value of one.
        If another thread forks meanwhile, nothing in the child process frees the lock. Without a
        lock two threads may both compute a value.
        """

        def __get__(self, instance, owner=None):
            if instance is None:
                return self
            value = instance.__dict__[self.attrname] = self.func(instance)
            return value
