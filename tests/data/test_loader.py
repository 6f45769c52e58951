import random

import numpy as np
import pytest
import torch

from lav2.data.loader import ResumableLoader, epoch_batches
from lav2.errors import UserError


class Numbers(torch.utils.data.Dataset):
    def __init__(self, count):
        self.lengths = np.random.default_rng(0).integers(5, 100, count)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return index


def loader(count=23, batch_size=3, **options):
    return ResumableLoader(Numbers(count), list, batch_size, seed=7, **options)


def stream(loader, count):
    """The next ``count`` batches, re-iterating as a CombinedLoader does."""
    batches = []
    while len(batches) < count:
        for batch in loader:
            batches.append(batch)
            if len(batches) == count:
                break
    return batches


def test_an_epoch_has_every_sample_once_and_epochs_differ():
    first, second = list(loader()), list(loader(drop_last=True))
    assert sorted(sum(first, [])) == list(range(23)) and len(first) == 8
    assert len(second) == 7 and second == first[:7]
    stream_of_two = stream(loader(), 16)
    assert sorted(sum(stream_of_two[8:], [])) == list(range(23)) and stream_of_two[8:] != first
    assert list(loader()) == first
    assert list(ResumableLoader(Numbers(23), list, 3, seed=8)) != first


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("rank, world_size", [(0, 1), (0, 2), (1, 2)])
def test_resumes_from_every_position_over_two_epochs(num_workers, rank, world_size):
    def fresh():
        return loader(count=14, num_workers=num_workers, rank=rank, world_size=world_size)

    whole = stream(fresh(), 3 * len(fresh()))
    for position in range(2 * len(fresh()) + 1):
        first = fresh()
        assert stream(first, position) == whole[:position]
        second = fresh()
        second.load_state_dict(first.state_dict())
        assert stream(second, len(whole) - position) == whole[position:], position


def test_left_half_way_and_re_iterated_it_goes_on():
    whole = stream(loader(), 30)
    stopped = loader()
    batches = []
    rng = random.Random(0)
    while len(batches) < 30:
        batches += [batch for _, batch in zip(range(rng.randint(1, 8)), stopped, strict=False)][: 30 - len(batches)]
    assert batches == whole


def test_a_pass_has_the_length_of_an_epoch_wherever_it_starts():
    half_way = loader()
    stream(half_way, 5)
    assert len(list(half_way)) == len(half_way)
    assert half_way.state_dict() == {"epoch": 1, "done": 5, "samples": 23, "step": 3}


def test_ranks_share_equally_what_one_process_would_take():
    one = list(loader(count=50, batch_size=6))
    ranks = [list(loader(count=50, batch_size=3, rank=rank, world_size=2)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == 8
    for whole, *parts in zip(one[:8], *ranks, strict=True):
        assert all(len(part) == 3 for part in parts)
        assert sorted(sum(parts, [])) == sorted(whole)
    assert loader(count=50, batch_size=3, rank=0, world_size=2).left_over == 2
    assert loader(count=50, batch_size=6).left_over == 0


def test_left_over_samples_change_every_epoch():
    two = loader(count=50, batch_size=3, rank=0, world_size=2), loader(count=50, batch_size=3, rank=1, world_size=2)
    left = []
    for _ in range(10):
        seen = {index for each in two for batch in each for index in batch}
        left.append(frozenset(range(50)) - seen)
    assert len(set(left)) > 5 and all(len(indices) == 2 for indices in left)


def test_similar_lengths_stand_together():
    lengths = np.random.default_rng(0).integers(5, 500, 4000)

    def padding(batches):
        return 1 - lengths.sum() / sum(lengths[batch].max() * len(batch) for batch in batches)

    grouped = epoch_batches(lengths, 16, seed=0, epoch=0)
    shuffled = np.split(np.random.default_rng(0).permutation(4000), 250)
    assert padding(grouped) < 0.03 < 0.4 < padding(shuffled)
    means = np.array([lengths[batch].mean() for batch in grouped])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2  # short and long batches come mixed


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_global_random_state_is_read_or_moved(num_workers):
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state()
    first = list(loader(num_workers=num_workers))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    np.random.seed(1)
    assert list(loader(num_workers=num_workers)) == first


@pytest.mark.parametrize("done", [4, 8, 9])
def test_a_position_serves_any_number_of_ranks(done):
    """After the ragged rest, which one rank alone takes, as well; and back."""
    one = loader(count=50, batch_size=6)
    stream(one, done)
    ranks = [loader(count=50, batch_size=3, rank=rank, world_size=2) for rank in range(2)]
    for each in ranks:
        each.load_state_dict(one.state_dict())
    rest = stream(one, 1) if done == 8 else []  # two ranks go on with the next epoch
    assert len(rest) < 2 and all(len(batch) == 2 for batch in rest)
    for whole, *parts in zip(stream(one, 3), *(stream(each, 3) for each in ranks), strict=True):
        assert sorted(sum(parts, [])) == sorted(whole)
    again = loader(count=50, batch_size=6)
    again.load_state_dict(ranks[0].state_dict())
    assert again.state_dict() == one.state_dict() and stream(again, 1) == stream(one, 1)


def test_a_position_among_other_batches_is_refused():
    with pytest.raises(UserError, match="23 samples, 3 a step, now there are 23, 4 a step"):
        loader(batch_size=4).load_state_dict(loader().state_dict())


def test_fewer_samples_than_a_step():
    assert len(loader(count=2)) == 1
    with pytest.raises(UserError, match="2 x 3"):
        loader(count=5, rank=0, world_size=2)
