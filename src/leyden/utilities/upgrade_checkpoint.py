"""The upgrade of old checkpoint files, where Lightning's users look for it: not built yet."""

from leyden.utils.lazy import NotBuiltImportError

raise NotBuiltImportError(
    "leyden.utilities.upgrade_checkpoint",
    "Files of Lightning 2 need none: load_from_checkpoint and fit(ckpt_path=...) read them as they are. Upgrade older "
    "ones with Lightning's own tool first.",
)
