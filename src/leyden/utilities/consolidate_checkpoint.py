"""One file made of a sharded checkpoint, where Lightning's users look for it: not built yet."""

from leyden.utils.lazy import NotBuiltImportError

raise NotBuiltImportError(
    "leyden.utilities.consolidate_checkpoint",
    "Write torch.distributed.checkpoint.format_utils.dcp_to_torch_save(folder, file).",
)
