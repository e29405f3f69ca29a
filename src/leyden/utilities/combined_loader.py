"""CombinedLoader, where Lightning's users look for it."""

from leyden.core.combined import CombinedLoader as CombinedLoader
