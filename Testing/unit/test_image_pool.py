"""The image pool: what goes in, what comes out, and that slots don't know how they are spread over processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from CTMicroSRLib.training.image_pool import ImagePools, PoolSettings

CPU = torch.device("cpu")


def numbered(step, first, slots):
    """Images whose pixels all are ``100 * step + slot``."""
    values = 100.0 * step + torch.arange(first, first + slots, dtype=torch.float32)
    return values[:, None, None, None].expand(-1, 1, 2, 3)


def swaps(pools, steps, *, name="fake", start=0):
    settings = pools.settings
    return torch.stack(
        [
            pools.swap(name, step, numbered(step, settings.first_slot, settings.slots))[:, 0, 0, 0]
            for step in range(start, start + steps)
        ]
    )


def test_a_pool_passes_images_until_it_is_full():
    pools = ImagePools(PoolSettings(seed=1, first_slot=0, slots=3, images=4))
    shown = swaps(pools, 4)
    assert torch.equal(shown, torch.stack([numbered(step, 0, 3)[:, 0, 0, 0] for step in range(4)]))
    assert pools.state()["fake"]["counts"].tolist() == [4, 4, 4]


def test_a_full_pool_gives_earlier_images_half_of_the_time_each_at_most_once_again():
    pools = ImagePools(PoolSettings(seed=1, first_slot=0, slots=8, images=5))
    shown = swaps(pools, 400).numpy()
    steps, slots = np.divmod(shown, 100)
    assert (slots == np.arange(8)).all()  # a lane's images stay in it
    earlier = steps < np.arange(400)[:, None]
    share = earlier[5:].mean()
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(395 * 8)
    for lane in shown.T:  # an image goes out once fresh or into the pool, and leaves the pool once
        _, times = np.unique(lane, return_counts=True)
        assert times.max() <= 2
        assert (times == 2).sum() <= 5  # only those of the filling went through and were kept


@given(st.integers(0, 20), st.integers(1, 4), st.integers(1, 6), st.integers(1, 25))
def test_a_lane_holds_what_went_in_and_did_not_come_out(seed, slots, images, steps):
    """Against a list for each lane, with the same random numbers drawn in a plain loop."""
    import zlib

    pools = ImagePools(PoolSettings(seed, 0, slots, images))
    lanes = [[] for _ in range(slots)]
    for step in range(steps):
        shown = pools.swap("x", step, numbered(step, 0, slots))[:, 0, 0, 0].tolist()
        for slot, lane in enumerate(lanes):
            fresh = 100.0 * step + slot
            rng = np.random.default_rng([seed, step, zlib.crc32(b"x"), slot])
            if len(lane) < images:
                lane.append(fresh)
                assert shown[slot] == fresh
                continue
            place = int(rng.integers(images))
            if rng.random() < 0.5:
                assert shown[slot] == lane[place]
                lane[place] = fresh
            else:
                assert shown[slot] == fresh
    held = pools.state()["x"]["images"][:, :, 0, 0, 0]
    assert [row[: len(lane)].tolist() for row, lane in zip(held, lanes, strict=True)] == lanes


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_do_what_one_does(processes):
    alone = swaps(ImagePools(PoolSettings(3, 0, 4, 2)), 40)
    own = 4 // processes
    shared = [swaps(ImagePools(PoolSettings(3, n * own, own, 2)), 40) for n in range(processes)]
    assert torch.equal(torch.cat(shared, dim=1), alone)


def test_pools_of_other_names_seeds_and_slots_decide_otherwise():
    reference = swaps(ImagePools(PoolSettings(3, 0, 4, 2)), 40)
    assert torch.equal(swaps(ImagePools(PoolSettings(3, 0, 4, 2)), 40), reference)
    assert not torch.equal(swaps(ImagePools(PoolSettings(4, 0, 4, 2)), 40), reference)
    assert not torch.equal(swaps(ImagePools(PoolSettings(3, 0, 4, 2)), 40, name="other"), reference)
    assert len({tuple((lane - slot).tolist()) for slot, lane in enumerate(reference.T)}) == 4


def test_a_restored_pool_goes_on_where_it_stopped_and_on_more_processes():
    whole = swaps(ImagePools(PoolSettings(3, 0, 4, 2)), 20)
    first = ImagePools(PoolSettings(3, 0, 4, 2))
    swaps(first, 11)
    state = first.state()
    for process in range(2):
        second = ImagePools(PoolSettings(3, 2 * process, 2, 2))
        second.restore(state, CPU)
        rest = swaps(second, 9, start=11)
        assert torch.equal(rest, whole[11:, 2 * process : 2 * process + 2])
    assert torch.equal(first.state()["fake"]["images"], state["fake"]["images"])


@pytest.mark.parametrize(("slots", "images"), [(4, 3), (6, 2)])
def test_a_pool_of_another_size_is_not_restored(slots, images):
    pools = ImagePools(PoolSettings(3, 0, 4, 2))
    swaps(pools, 2)
    with pytest.raises(ValueError, match="the pool fake has the shape"):
        ImagePools(PoolSettings(3, 0, slots, images)).restore(pools.state(), CPU)


def test_what_a_pool_gives_has_no_gradient_and_is_not_the_pools_memory():
    for images in (0, 2):
        pools = ImagePools(PoolSettings(1, 0, 2, images))
        given_images = torch.zeros((2, 1, 2, 2), requires_grad=True) * 1.0
        shown = pools.swap("fake", 0, given_images)
        assert not shown.requires_grad
    shown.fill_(9.0)
    assert pools.state()["fake"]["images"][:, 0].max() == 0.0


def test_a_pool_of_nothing_passes_everything():
    pools = ImagePools(PoolSettings(1, 0, 2, 0))
    assert torch.equal(swaps(pools, 3)[2], torch.tensor([200.0, 201.0]))
    assert pools.state() == {}


def test_bfloat16_images_come_back_as_they_went_in():
    pools = ImagePools(PoolSettings(1, 0, 2, 1))
    first = torch.randn((2, 1, 3, 3)).to(torch.bfloat16)
    pools.swap("fake", 0, first)
    for step in range(1, 30):
        shown = pools.swap("fake", step, torch.zeros_like(first))
        assert shown.dtype == torch.bfloat16
        if shown[0].abs().max() > 0:
            assert torch.equal(shown[0], first[0])
            return
    pytest.fail("never swapped")


def test_other_images_than_slots_are_a_mistake_of_the_method():
    with pytest.raises(ValueError, match="3 images for the 2 slots of the pool 'fake'"):
        ImagePools(PoolSettings(1, 0, 2, 4)).swap("fake", 0, torch.zeros((3, 1, 2, 2)))
