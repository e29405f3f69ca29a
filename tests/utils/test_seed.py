"""Seeds and random number generators: everything is seeded, captured and put back."""

import os
import random

import numpy
import pytest
import torch

import leyden
from leyden.utils import seed as seeds
from leyden.utils.errors import LeydenWarning
from leyden.utils.seed import Lane, isolate_rng, rng_state, seed_everything, set_rng_state


def draw():
    """One number of every generator."""
    return random.random(), random.gauss(0, 1), numpy.random.rand(), numpy.random.randn(), torch.rand(()).item()


def test_the_same_seed_gives_the_same_numbers_everywhere():
    assert seed_everything(7, verbose=False) == 7
    first = draw()
    assert draw() != first
    seed_everything(7, verbose=False)
    assert draw() == first
    seed_everything(8, verbose=False)
    assert not set(draw()) & set(first)


def test_what_a_seed_means_is_what_python_numpy_and_torch_say():
    seed_everything(7, verbose=False)
    drawn = random.random(), numpy.random.rand(), torch.rand(()).item()
    random.seed(7)
    numpy.random.seed(7)
    torch.manual_seed(7)
    assert drawn == (random.random(), numpy.random.rand(), torch.rand(()).item())


def test_the_seed_is_said_and_not_when_not_wanted(caplog):
    caplog.set_level("INFO", "leyden")
    seed_everything(7)
    seed_everything(8, verbose=False)
    assert caplog.messages == ["Seed set to 7"]


def test_processes_that_are_started_take_the_same_seed():
    seed_everything(7, verbose=False)
    assert os.environ["LEYDEN_GLOBAL_SEED"] == "7"
    assert seed_everything(verbose=False) == 7


def test_without_a_seed_it_is_0_with_a_warning():
    os.environ.pop("LEYDEN_GLOBAL_SEED", None)
    with pytest.warns(LeydenWarning, match=r"0 is used.*LD001"):
        assert seed_everything(verbose=False) == 0


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 3.0, numpy.int64(3)])
def test_whole_numbers_of_the_range_are_seeds(seed):
    assert seed_everything(seed, verbose=False) == seed


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True])
def test_other_numbers_are_refused(seed):
    with pytest.raises(ValueError, match=rf"seed={seed!r} is not a whole number from 0 to 4294967295"):
        seed_everything(seed)


def test_workers_draw_the_same_numbers_with_and_without_the_argument():
    class Drawing(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.tensor([random.random(), numpy.random.rand(), torch.rand(()).item()], dtype=torch.float64)

    def drawn(**options):
        seed_everything(7, verbose=False, **options)
        return torch.cat(list(torch.utils.data.DataLoader(Drawing(), num_workers=1)))

    first = drawn()
    assert torch.equal(first, drawn(workers=True))
    assert len(first.unique()) == 12


def test_it_is_a_public_name():
    assert leyden.seed_everything is seed_everything


# States.


def test_a_state_put_back_gives_the_same_numbers_again():
    draw()  # so that a second gaussian of a pair is waiting
    state = rng_state()
    first = draw()
    set_rng_state(state)
    assert draw() == first


def test_a_state_survives_a_file_of_plain_values(tmp_path):
    state = rng_state()
    torch.save(state, tmp_path / "rng.pt")
    first = draw()
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert draw() == first


def test_taking_the_state_changes_none():
    seed_everything(7, verbose=False)
    first = draw()
    seed_everything(7, verbose=False)
    rng_state()
    assert draw() == first


def test_a_state_is_not_changed_by_drawing():
    state = rng_state()
    copied = state["torch"].clone(), state["numpy"][1].clone()
    draw()
    numpy.random.rand(2000)
    assert torch.equal(state["torch"], copied[0]) and torch.equal(state["numpy"][1], copied[1])


def test_isolated_drawing_leaves_no_trace_not_even_after_an_error():
    seed_everything(7, verbose=False)
    first = draw()
    seed_everything(7, verbose=False)
    with isolate_rng():
        draw()
    with pytest.raises(KeyError), isolate_rng():
        draw()
        raise KeyError
    assert draw() == first


def test_a_state_of_devices_that_are_not_here_is_put_back_as_far_as_it_goes():
    set_rng_state({**rng_state(), "cuda": [torch.get_rng_state()] * 64})


@pytest.mark.gpu
def test_the_generators_of_gpus_belong_to_the_state():
    torch.rand((), device="cuda")
    state = rng_state()
    first = torch.rand((), device="cuda")
    set_rng_state(state)
    assert torch.equal(torch.rand((), device="cuda"), first)


def outside(seed):
    """What a generator draws that was seeded by hand."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    return [draw() for _ in range(700)]  # more than NumPy's generator makes at a time


def test_a_lane_draws_what_its_seed_says_and_goes_on_where_it_was():
    expected, lane = outside(7), Lane(7)
    seed_everything(1, verbose=False)
    before = draw()
    seed_everything(1, verbose=False)
    with lane:
        first = [draw() for _ in range(300)]
    assert draw() == before
    with lane:
        rest = [draw() for _ in range(400)]
    assert first + rest == expected


def test_a_lane_draws_the_same_under_a_numpy_that_wants_an_array_to_begin_with(monkeypatch):
    expected = outside(7)[:5]

    def array_wanted(self, n_words, dtype=None):
        raise TypeError("Cannot convert list to numpy.ndarray")

    monkeypatch.setattr(seeds._Zeros, "generate_state", array_wanted)
    with Lane(7):
        assert [draw() for _ in range(5)] == expected
    monkeypatch.undo()
    with Lane(7):
        assert [draw() for _ in range(5)] == expected
