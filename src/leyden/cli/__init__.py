"""The leyden command."""
