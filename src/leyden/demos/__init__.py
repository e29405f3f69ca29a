"""Small models and data to try things out with."""

from typing import TYPE_CHECKING

from leyden.utils.lazy import lazy_names

if TYPE_CHECKING:
    from leyden.demos.boring_classes import BoringDataModule as BoringDataModule
    from leyden.demos.boring_classes import BoringModel as BoringModel
    from leyden.demos.boring_classes import DemoModel as DemoModel
    from leyden.demos.lstm import LightningLSTM as LightningLSTM
    from leyden.demos.lstm import SequenceSampler as SequenceSampler
    from leyden.demos.lstm import SimpleLSTM as SimpleLSTM
    from leyden.demos.text import LibraryText as LibraryText
    from leyden.demos.transformer import LightningTransformer as LightningTransformer
    from leyden.demos.transformer import Transformer as Transformer

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "BoringDataModule": "leyden.demos.boring_classes",
        "BoringModel": "leyden.demos.boring_classes",
        "DemoModel": "leyden.demos.boring_classes",
        "LibraryText": "leyden.demos.text",
        "LightningLSTM": "leyden.demos.lstm",
        "LightningTransformer": "leyden.demos.transformer",
        "SequenceSampler": "leyden.demos.lstm",
        "SimpleLSTM": "leyden.demos.lstm",
        "Transformer": "leyden.demos.transformer",
        "boring_classes": "leyden.demos.boring_classes",
        "lstm": "leyden.demos.lstm",
        "text": "leyden.demos.text",
        "transformer": "leyden.demos.transformer",
    },
    not_built={"WikiText2": "Use leyden.demos.LibraryText, which needs no download."},
)
