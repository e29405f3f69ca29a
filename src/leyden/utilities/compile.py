"""Compiled modules, where Lightning's users look for them."""

from leyden.core.compiled_module import from_compiled as from_compiled
from leyden.core.compiled_module import to_uncompiled as to_uncompiled
