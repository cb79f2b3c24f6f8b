"""Devices: the vector maths of the CPU is settled before several threads use it for the first time."""

from __future__ import annotations

import pytest
from tiny_method import KIND, Settings, tiny_batches
from torch.utils._python_dispatch import TorchDispatchMode

from CTMicroSRLib import super_resolve
from CTMicroSRLib.devices import settle_vector_math
from CTMicroSRLib.training.settings import TrainerSettings
from CTMicroSRLib.training.trainer import train

# what torch hands to the vector maths of the CPU, with the foreach forms of the optimisers
VECTOR_MATH = ("sqrt", "exp", "log", "tanh", "sin", "cos", "erf", "pow")


class VectorMathSizes(TorchDispatchMode):
    """Elements of every operation on floats that may run in the vector maths, in order."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.removeprefix("_foreach_").rstrip("_")
        if name in VECTOR_MATH:
            first = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
            self.sizes.append(first.numel())
        return func(*args, **(kwargs or {}))


@pytest.fixture
def sizes():
    with VectorMathSizes() as mode:
        yield mode.sizes


def test_the_first_vector_maths_is_of_one_number_which_one_thread_computes(sizes):
    settle_vector_math()
    assert sizes == [1]


def test_it_comes_before_that_of_the_passes(tiny_model, make_scan, sizes):
    super_resolve(make_scan(), model=tiny_model, uncertainty=True, passes=2)
    assert sizes[0] == 1
    assert max(sizes) > 1000


def test_it_comes_before_that_of_a_training(tmp_path, sizes):
    train(KIND, Settings(), TrainerSettings(steps=1, batch=4, pool_size=8), tiny_batches(), tmp_path, device="cpu")
    assert sizes[0] == 1
    assert max(sizes) > 1
