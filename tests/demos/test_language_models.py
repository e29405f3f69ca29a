"""The demos that learn to say the next word: their text, their layers, and that they train."""

from __future__ import annotations

import math

import pytest
import torch

import leyden.demos
from leyden.core.module import LightningModule
from leyden.demos.lstm import LightningLSTM, SequenceSampler, SimpleLSTM
from leyden.demos.text import LibraryText
from leyden.demos.transformer import LightningTransformer, PositionalEncoding, Transformer
from leyden.trainer import Trainer

SMALL_TRANSFORMER = {"ninp": 16, "nhid": 16, "nlayers": 1}
SMALL_LSTM = {"ninp": 16, "nhid": 16, "nlayers": 2}


def trained(model: LightningModule, **options: object) -> float:
    """The last loss."""
    trainer = Trainer(accelerator="cpu", devices=1, enable_progress_bar=False, enable_model_summary=False, **options)
    trainer.fit(model)
    return trainer.callback_metrics["train_loss"].item()


@pytest.mark.parametrize(
    "model", [lambda: LightningTransformer(**SMALL_TRANSFORMER), lambda: LightningLSTM(**SMALL_LSTM)]
)
def test_it_trains(model):
    chance = math.log(LibraryText().vocab_size)
    assert trained(model(), fast_dev_run=True) == pytest.approx(chance, rel=0.1)
    short = {"max_epochs": 1, "limit_train_batches": 40, "logger": False, "enable_checkpointing": False}
    assert trained(model(), **short) < chance - 0.3


def test_a_sample_is_text_and_the_same_a_word_later():
    text = LibraryText(block_size=10)
    inputs, target = text[3]
    assert torch.equal(inputs[1:], target[:-1])
    assert torch.equal(text[4][0][:1], target[-1:])
    words = [text.vocabulary[number] for number in torch.cat([text[i][0] for i in range(20)])]
    assert words[:3] == ["the", '"', "assert"]


def test_all_samples_can_be_read_and_no_more():
    text = LibraryText()
    assert len(text) > 1000
    assert [len(part) for part in text[len(text) - 1]] == [35, 35]
    for index in (len(text), -1):
        with pytest.raises(IndexError, match=f"index={index} is not from 0 to"):
            text[index]


@pytest.mark.parametrize("block_size", [0, 10**9])
def test_blocks_that_cannot_be_cut_are_refused(block_size):
    with pytest.raises(ValueError, match=f"block_size={block_size} is not from 1 to"):
        LibraryText(block_size)


def test_the_transformer_sees_no_word_before_it_is_said():
    model = Transformer(50, **SMALL_TRANSFORMER).eval()
    text = torch.randint(50, (1, 9))
    other = text.clone()
    other[0, 5:] = (other[0, 5:] + 1) % 50
    first, second = (model(words[:, :-1], words[:, 1:]) for words in (text, other))
    assert first.shape == (8, 50)
    torch.testing.assert_close(first[:5], second[:5])  # places 0 to 4 say words 1 to 5
    assert not torch.allclose(first[5:], second[5:])
    torch.testing.assert_close(first.exp().sum(1), torch.ones(8))


def test_the_transformer_does_not_wait_for_the_device():
    with torch.device("meta"):  # reading a meta tensor's value would raise
        model, words = Transformer(50, **SMALL_TRANSFORMER), torch.zeros(2, 9, dtype=torch.long)
    assert model(words, words).shape == (18, 50)


def test_a_mask_can_be_given():
    model = Transformer(50, **SMALL_TRANSFORMER).eval()
    words = torch.randint(50, (2, 9))
    mask = torch.nn.Transformer.generate_square_subsequent_mask(9)
    torch.testing.assert_close(model(words, words, mask), model(words, words))
    assert not torch.allclose(model(words, words, torch.zeros(9, 9)), model(words, words))


@pytest.mark.parametrize("dim", [4, 5])
def test_positions_are_sines_and_cosines(dim):
    encoded = PositionalEncoding(dim, dropout=0.0)(torch.zeros(2, 3, dim))
    angle = 2 / 10000 ** (2 / dim)
    assert encoded.shape == (2, 3, dim)
    torch.testing.assert_close(
        encoded[1, 2, :4], torch.tensor([math.sin(2), math.cos(2), math.sin(angle), math.cos(angle)])
    )


def test_the_lstm_remembers_from_batch_to_batch():
    model = SimpleLSTM(50, **SMALL_LSTM).eval()
    text = torch.randint(50, (3, 8))
    at_once, _ = model(text, model.init_hidden(3))
    first, hidden = model(text[:, :4], model.init_hidden(3))
    second, _ = model(text[:, 4:], hidden)
    in_two = torch.cat([first.view(3, 4, 50), second.view(3, 4, 50)], dim=1)
    torch.testing.assert_close(in_two, at_once.view(3, 8, 50))


def test_every_place_of_a_batch_goes_on_where_it_was():
    assert list(SequenceSampler(range(11), 3)) == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert len(SequenceSampler(range(11), 3)) == 3
    inputs = [batch[0] for batch, _ in zip(LightningLSTM(50, **SMALL_LSTM).train_dataloader(), range(2), strict=False)]
    text = LibraryText()
    assert torch.equal(inputs[1][7], text[7 * (len(text) // 20) + 1][0])


def test_memory_ends_with_the_epoch():
    model = LightningLSTM(**SMALL_LSTM)
    trained(model, fast_dev_run=True)
    assert model.hidden is None


def test_the_download_is_said_to_be_replaced():
    with pytest.raises(ImportError, match=r"WikiText2 is not built yet.*LibraryText"):
        leyden.demos.WikiText2  # noqa: B018
