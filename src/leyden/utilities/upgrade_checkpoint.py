"""The upgrade of old checkpoint files, where Lightning's users look for it: not built yet."""

from leyden.utils.lazy import NotBuiltImportError

raise NotBuiltImportError(
    "leyden.utilities.upgrade_checkpoint",
    "Files of Lightning 1.2 and later need none: load_from_checkpoint and fit(ckpt_path=...) read them as they are.",
)
