"""Plugins that write checkpoints, where Lightning's users look for them."""

from leyden.fabric.async_checkpoint_io import AsyncCheckpointIO as AsyncCheckpointIO
from leyden.fabric.checkpoint_io import CheckpointIO as CheckpointIO
from leyden.fabric.checkpoint_io import TorchCheckpointIO as TorchCheckpointIO
