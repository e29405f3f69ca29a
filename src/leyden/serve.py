"""ServableModule, where Lightning's users look for it: not built yet."""

from leyden.utils.lazy import NotBuiltImportError

raise NotBuiltImportError("leyden.serve", "Serve what module.to_exported_program(path) writes.")
