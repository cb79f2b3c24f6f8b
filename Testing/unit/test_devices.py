"""Devices: which one is chosen, that it computes what the processor does, in full float32, by settled vector maths."""

from __future__ import annotations

import pytest
import torch
from tiny_method import KIND, Settings, tiny_batches
from torch.utils._python_dispatch import TorchDispatchMode

from CTMicroSRLib import ResourceError, load_model, super_resolve
from CTMicroSRLib.devices import choose_device, exact_float32, has_fast_bf16, settle_vector_math
from CTMicroSRLib.session import Model
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


def test_auto_takes_cuda_and_never_mps_which_nobody_has_tried(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for there, wanted in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device("auto").type == wanted
    assert choose_device("mps").type == "mps"


def test_a_torch_that_cannot_tell_its_instructions_has_no_fast_bf16(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not has_fast_bf16(torch.device("cpu"))


# cpu:0 is the processor by another name, which takes the way of every other device
OTHER = torch.device("cpu:0")


def test_a_device_that_computes_the_same_is_taken(tiny_model):
    model = load_model(tiny_model)
    assert Model(model.card, model.network, OTHER, "auto").device == OTHER


@pytest.mark.parametrize("spoil", [lambda image: image + 2e-3, lambda image: image * torch.nan])
def test_a_device_that_computes_something_else_is_refused(tiny_model, monkeypatch, spoil):
    model = load_model(tiny_model)
    to_image = model.network.to_image
    monkeypatch.setattr(Model, "_move_to", _moved_and(spoil, Model._move_to, to_image))
    with pytest.raises(ResourceError, match="The device cpu:0 computes another result than the processor"):
        Model(model.card, model.network, OTHER, "auto")


def _moved_and(spoil, move_to, to_image):
    """Moving, after which the network's images are spoilt."""

    def move(model, device):
        to = model.network.to

        def spoilt(*args):
            model.network.to_image = lambda output: spoil(to_image(output))
            return to(*args)

        model.network.to = spoilt
        move_to(model, device)

    return move


def asked(question):
    try:
        return question()
    except RuntimeError:
        return "torch refuses to say"


def precisions():
    """What torch says of its float32, by its older way and by its newer one."""
    backends = torch.backends
    older = (
        torch.get_float32_matmul_precision,
        lambda: backends.cuda.matmul.allow_tf32,
        lambda: backends.cudnn.allow_tf32,
    )
    return [asked(question) for question in older] + [place.fp32_precision for place in places()]


def places():
    backends = torch.backends
    return backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul


newer_torch = pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch has the older way only")


@pytest.fixture
def restored():
    """Torch's own precisions again, whatever a test has chosen."""
    before, newer = precisions(), [place.fp32_precision for place in places()]
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[2]
    for place, precision in zip(places(), newer, strict=True):
        place.fp32_precision = precision
    assert precisions() == before


@newer_torch
@pytest.mark.parametrize(
    "choose",
    [
        lambda: None,
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
        lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
        lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
        lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
        lambda: setattr(torch.backends.mkldnn.conv, "fp32_precision", "bf16"),
        lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    ],
)
def test_float32_is_exact_inside_and_the_programs_own_choice_is_back_after(restored, choose):
    choose()
    before = precisions()
    with exact_float32():
        inside = precisions()
    assert inside == ["highest", False, False, *["ieee"] * 5]
    assert precisions() == before


@newer_torch
def test_slices_are_computed_in_exact_float32(restored, tiny_model, make_scan, monkeypatch):
    heard = []
    run = Model.run

    def listening(model, *args):
        heard.append(torch.get_float32_matmul_precision())
        return run(model, *args)

    monkeypatch.setattr(Model, "run", listening)
    torch.set_float32_matmul_precision("high")
    super_resolve(make_scan(), model=tiny_model)
    assert torch.get_float32_matmul_precision() == "high"
    assert set(heard) == {"highest"}
