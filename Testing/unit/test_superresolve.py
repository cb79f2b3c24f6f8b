"""The pipeline: positions, tiles, regions, consistency of what is handed over, options, cancelling, the report."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from CTMicroSRLib import CancelledError, Geometry, Region, ResourceError, UsageError, Volume, super_resolve
from CTMicroSRLib.consistency import interpolation_matrix
from CTMicroSRLib.networks.generator import WHOLE
from CTMicroSRLib.plan import LARGEST_TILE_VOXELS
from CTMicroSRLib.report import Stopwatch, peak_memory_mb, write_report
from CTMicroSRLib.session import ScanConditions, load_model
from CTMicroSRLib.simulation.cases import CaseSettings, make_case
from CTMicroSRLib.tiles import fade_weights

KNOWN = {"psf_fwhm_mm": 1.2, "noise_hu": 12.0, "device": "cpu", "precision": "fp32"}


def resolved(scan, model, **options):
    """Super-resolve with the acquisition given, everywhere unless said otherwise."""
    return super_resolve(scan, model=model, **{"region": "whole", **KNOWN, **options})


def untiled(scan, folder, k=0):
    """The network on one whole slice, HU."""
    model = load_model(folder, precision="fp32")
    coarse = torch.from_numpy(np.maximum(scan.array_kji[k], -1024).astype(np.float32))
    spacing = np.mean(scan.geometry.spacing_mm[:2])
    return model.run(coarse, WHOLE, ScanConditions(KNOWN["psf_fwhm_mm"] / spacing, KNOWN["noise_hu"])).numpy()


def bicubic(coarse_ji, scale):
    rows, columns = (interpolation_matrix(n, scale).astype(np.float64) for n in coarse_ji.shape)
    return rows @ coarse_ji @ columns.T


def assert_equal_but_for_rounding(one, other):
    """Equal within 1 HU, where float32 sums in another order fall on another side of a half."""
    difference = np.abs(one.astype(int) - other.astype(int))
    assert difference.max() <= 1
    assert np.mean(difference > 0) < 0.005


class Recorder:
    """Keeps what it hears; cancels after a number of questions."""

    def __init__(self, patience=math.inf):
        self.heard, self.patience = [], patience

    def update(self, stage, done, total):
        self.heard.append((stage, done, total))

    def cancelled(self):
        self.patience -= 1
        return self.patience < 0


@pytest.mark.parametrize("seed", range(3))
def test_a_bright_marker_stays_where_it_is_in_the_patient(make_model, make_scan, seed):
    """The marker's centre of mass by ITK's arithmetic, in a scan of any orientation, and of its region."""
    rng = np.random.default_rng(seed)
    directions, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    scan = make_scan(
        (3, 40, 50), spacing_mm=(0.6, 0.8, 2.0), origin_mm=(-80.0, 30.0, 512.5), directions=tuple(directions.ravel())
    )
    array = np.full_like(scan.array_kji, -900)
    array[1, 17:20, 21:24] = 900
    scan = Volume(array, scan.geometry, scan.metadata)
    folder = make_model(parameters={"channels": 4, "blocks": 1, "dropout_rate": 0.1}, gain=0.003)
    for region in ("whole", Region((12, 40), (9, 33), (1, 2))):
        result = resolved(scan, folder, region=region).volume
        image = sitk.GetImageFromArray(result.array_kji)
        image.SetSpacing(result.geometry.spacing_mm)
        image.SetOrigin(result.geometry.origin_mm)
        image.SetDirection(result.geometry.directions)
        bright = np.argwhere(result.array_kji > 0)[:, ::-1].astype(float)
        points = [image.TransformContinuousIndexToPhysicalPoint(index.tolist()) for index in bright]
        before = sitk.Image(1, 1, 1, sitk.sitkUInt8)
        before.SetSpacing(scan.geometry.spacing_mm)
        before.SetOrigin(scan.geometry.origin_mm)
        before.SetDirection(scan.geometry.directions)
        expected = before.TransformContinuousIndexToPhysicalPoint((22.0, 18.0, 1.0))
        assert np.linalg.norm(np.mean(points, axis=0) - expected) < 0.3 * 0.6


@pytest.mark.parametrize("architecture", ["compact", "sr-cyclegan"])
@pytest.mark.parametrize("shape", [(70, 90), (33, 129), (6, 11)])
@pytest.mark.parametrize("tile", [32, 64, None])
def test_the_tiled_result_is_the_untiled_pass(make_model, make_scan, architecture, shape, tile):
    folder = make_model(architecture=architecture)
    scan = make_scan((1, *shape))
    result = resolved(scan, folder, consistency="off", tile=tile).volume.array_kji[0]
    assert_equal_but_for_rounding(result, np.rint(untiled(scan, folder)))


@pytest.mark.parametrize("architecture", ["compact", "sr-cyclegan"])
def test_any_mask_gives_the_same_result_at_any_tile_size(make_model, make_scan, architecture):
    folder = make_model(architecture=architecture)
    scan = make_scan((6, 100, 130))
    rng = np.random.default_rng(0)
    mask = np.zeros(scan.array_kji.shape, bool)
    mask[0, 0:20, 0:117] = mask[0, 40:52, 0:125] = mask[0, 70:90, 0:117] = True  # fades end on a cell's edge
    for k in range(1, 5):
        for _ in range(4):
            row, column = rng.integers(0, 100), rng.integers(0, 130)
            mask[k, row : row + rng.integers(1, 40), column : column + rng.integers(1, 40)] = True
    results = [resolved(scan, folder, mask=mask, tile=tile) for tile in (32, 64, None)]
    assert len({result.report["tiles"]["rectangles"] for result in results}) == 3
    for other in results[1:]:
        assert_equal_but_for_rounding(results[0].volume.array_kji, other.volume.array_kji)


def test_on_the_mask_the_network_holds_and_far_from_it_interpolation(make_model, make_scan):
    folder = make_model()
    scan = make_scan((1, 90, 100))
    mask = np.zeros(scan.array_kji.shape, bool)
    mask[0, 30:45, 40:70] = True
    found = resolved(scan, folder, mask=mask, consistency="off").volume.array_kji[0]
    distance = ndimage.distance_transform_cdt(~mask[0], metric="chessboard").repeat(8, 0).repeat(8, 1)
    network, smooth = untiled(scan, folder), bicubic(scan.array_kji[0].astype(float), 8)
    assert np.abs(network - smooth).mean() > 50.0
    assert np.abs(found - network)[distance <= 2].max() <= 1.0
    assert np.abs(found - smooth)[distance > 12].max() <= 1.0
    between = (distance > 3) & (distance <= 11)
    low, high = np.minimum(network, smooth), np.maximum(network, smooth)
    assert ((found >= low - 1) & (found <= high + 1))[between].all()


@pytest.mark.parametrize("consistency", ["scan", "block", "off"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_a_region_is_the_same_region_of_the_whole(make_model, make_scan, consistency, with_mask):
    folder = make_model()
    scan = make_scan((3, 120, 140))
    mask = None
    if with_mask:
        mask = np.zeros(scan.array_kji.shape, bool)
        mask[:, 20:60, 30:117] = mask[1, 80:110, 60:85] = True
    whole = resolved(scan, folder, consistency=consistency, mask=mask, uncertainty=True, passes=3)
    for region in (
        Region((40, 75), (37, 90), (1, 3)),
        Region((0, 1), (119, 120), (0, 1)),
        Region((130, 140), (0, 64), (2, 3)),
    ):
        part = resolved(scan, folder, consistency=consistency, mask=mask, region=region, uncertainty=True, passes=3)
        fine = Region(*(tuple(8 * n for n in ends) for ends in (region.i, region.j)), region.k)
        for one, other in ((part.volume, whole.volume), (part.uncertainty, whole.uncertainty)):
            same = other.crop(fine)
            np.testing.assert_allclose(one.geometry.origin_mm, same.geometry.origin_mm, rtol=0, atol=1e-9)
            assert_equal_but_for_rounding(one.array_kji, same.array_kji)


def test_a_region_is_the_whole_ones_where_other_places_take_far_more_steps(tiny_model, make_scan):
    """Lung beside a pattern that no scanner shows, at a noise so low that it is never within it."""
    scan = make_scan((1, 96, 120))
    array = scan.array_kji.copy()
    array[0, :, 80:] += (400 * (np.indices((96, 40)).sum(axis=0) % 2)).astype(np.int16)
    scan = Volume(array, scan.geometry, scan.metadata)
    whole = resolved(scan, tiny_model, noise_hu=4.0)
    assert whole.report["consistency"]["beyond_noise_share"] > 0.01
    for columns in ((4, 28), (12, 36), (20, 44)):
        region = Region(columns, (30, 60), (0, 1))
        part = resolved(scan, tiny_model, noise_hu=4.0, region=region).volume
        fine = Region(*(tuple(8 * n for n in ends) for ends in (region.i, region.j)), region.k)
        assert_equal_but_for_rounding(part.array_kji, whole.volume.crop(fine).array_kji)


@pytest.mark.parametrize(("noise_hu", "warned"), [(15.0, False), (1.0, True)])
def test_a_result_that_stays_beyond_the_noise_is_told(tiny_model, noise_hu, warned):
    """A point spread too wide can't be met at a noise of 1 HU."""
    scan = make_case(CaseSettings(pixel_mm=0.7, size_voxels=40, depth_mm=2.0, slice_mm=2.0), 1).clinical
    report = resolved(scan, tiny_model, psf_fwhm_mm=1.4, noise_hu=noise_hu).report
    share = report["consistency"]["beyond_noise_share"]
    texts = [text for text in report["warnings"] if "differ from the scan" in text]
    assert (share > 0.01) == warned == (report["consistency"]["residual_max_hu"] > 2.2 * noise_hu) == bool(texts)
    if warned:
        assert f"{share:.0%} of the voxels" in texts[0]
        off = resolved(scan, tiny_model, psf_fwhm_mm=1.4, noise_hu=noise_hu, consistency="off").report
        assert not any("differ from the scan" in text for text in off["warnings"])


@pytest.mark.parametrize(
    ("spacing_mm", "words"),
    [
        ((0.7, 0.9, 2.0), None),
        ((1.2, 1.2, 2.0), "1.20 mm wide"),
        ((0.86, 2.5, 0.86), "0.86 x 2.50 mm: the slices seem to be stored along another axis"),
        ((0.7, 0.4, 0.5), "0.70 x 0.40 mm"),
    ],
)
def test_pixels_that_are_wide_or_far_from_square_are_told(tiny_model, make_scan, spacing_mm, words):
    warnings = resolved(make_scan((1, 40, 40), spacing_mm=spacing_mm), tiny_model).report["warnings"]
    about = [text for text in warnings if "pixels are" in text]
    assert len(about) == (words is not None)
    assert words is None or words in about[0]


def test_the_region_lungs_is_the_masks_box_and_what_fades_around_it(tiny_model, make_scan):
    scan = make_scan((4, 70, 90))
    mask = np.zeros(scan.array_kji.shape, bool)
    mask[1:3, 30:40, 20:60] = True
    result = resolved(scan, tiny_model, region="lungs", mask=mask)
    assert result.report["region"] == "9:71,19:51,1:3"
    assert result.volume.geometry == scan.geometry.crop(Region((9, 71), (19, 51), (1, 3))).refine((8, 8, 1))


def test_scanning_the_result_again_gives_the_scan(make_model):
    """Whatever a network invents: two noise deviations, in the int16 result, by scipy's Gaussian."""
    scan = make_case(CaseSettings(pixel_mm=0.7, size_voxels=40, depth_mm=2.0, slice_mm=2.0), 1).clinical
    result = resolved(scan, make_model(), psf_fwhm_mm=1.0, noise_hu=15.0)
    sigma = 1.0 / 2.354820045 / (0.7 / 8)
    blurred = ndimage.gaussian_filter(result.volume.array_kji[0].astype(float), sigma, mode="nearest", truncate=6)
    residual = scan.array_kji[0] - blurred.reshape(40, 8, 40, 8).mean(axis=(1, 3))
    assert np.abs(residual).max() <= 2.1 * 15.0
    measured = result.report["consistency"]
    assert measured["residual_max_hu"] == pytest.approx(np.abs(residual).max(), abs=0.3)
    assert measured["residual_rms_hu"] == pytest.approx(np.sqrt(np.mean(residual**2)), abs=0.1)


def test_in_block_mode_the_int16_results_block_means_are_the_scan(make_model, make_scan):
    scan = make_scan((2, 50, 60))
    result = resolved(scan, make_model(), consistency="block").volume.array_kji.astype(np.float64)
    means = result.reshape(2, 50, 8, 60, 8).mean(axis=(2, 4))
    assert np.abs(means - scan.array_kji).max() <= 0.5


@pytest.mark.parametrize("architecture", ["compact", "sr-cyclegan"])
@pytest.mark.parametrize("power", [1, 2])
def test_other_scales_come_from_the_card(make_model, make_scan, architecture, power):
    own = {"scale": 2**power} if architecture == "compact" else {"doublings": power, "norm": "frozen"}
    folder = make_model(architecture=architecture, parameters={"channels": 8, "blocks": 1, **own})
    scan = make_scan((2, 40, 50))
    result = resolved(scan, folder, consistency="off", tile=32).volume
    assert result.geometry == scan.geometry.refine((2**power, 2**power, 1))
    assert_equal_but_for_rounding(result.array_kji[1], np.rint(untiled(scan, folder, 1)))


def test_an_instance_normed_network_sees_the_whole_slice_once_whatever_the_mask(make_model, make_scan):
    folder = make_model(architecture="sr-cyclegan", parameters={"channels": 8, "blocks": 1, "norm": "instance"})
    scan = make_scan((1, 100, 140))
    mask = np.zeros(scan.array_kji.shape, bool)
    mask[0, 5:15, 5:15] = mask[0, 80:95, 120:135] = True
    network = untiled(scan, folder)
    whole = resolved(scan, folder, consistency="off", tile=32)
    assert_equal_but_for_rounding(whole.volume.array_kji[0], np.rint(network))
    part = resolved(scan, folder, consistency="off", mask=mask)
    assert part.report["tiles"] == {
        "rectangles": 1,
        "voxels": 14_000,
        "largest": LARGEST_TILE_VOXELS,
        "halo": folder_halo(folder),
    }
    smooth = bicubic(scan.array_kji[0].astype(float), 8)
    weights = torch.from_numpy(fade_weights(mask[0]))[None, None]
    weights = torch.nn.functional.interpolate(weights, scale_factor=8, mode="bilinear")[0, 0].numpy()
    expected = smooth + weights * (network - smooth)
    assert np.abs(part.volume.array_kji[0] - expected).max() <= 1.0


def folder_halo(folder):
    return json.loads((folder / "card.json").read_text())["halo"]


def test_scanner_padding_is_air(tiny_model, make_scan):
    scan = make_scan((1, 40, 40))
    padded, air = scan.array_kji.copy(), scan.array_kji.copy()
    padded[0, :6], air[0, :6] = -3024, -1024
    one, other = (resolved(Volume(array, scan.geometry), tiny_model) for array in (padded, air))
    assert np.array_equal(one.volume.array_kji, other.volume.array_kji)


def test_the_input_is_left_as_it_was(tiny_model, make_scan):
    scan = make_scan((1, 40, 40))
    scan.array_kji.setflags(write=False)
    before = scan.array_kji.copy()
    resolved(scan, tiny_model)
    assert np.array_equal(scan.array_kji, before)


def test_float_and_int_scans_of_the_same_values_give_the_same_result(tiny_model, make_scan):
    scan = make_scan((1, 40, 40))
    results = [
        resolved(Volume(scan.array_kji.astype(dtype), scan.geometry), tiny_model).volume.array_kji
        for dtype in (np.int16, np.float32, np.float64)
    ]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_a_loaded_model_gives_what_its_folder_gives_again_and_again(tiny_model, make_scan):
    scan = make_scan((1, 40, 40))
    model = load_model(tiny_model, precision="fp32")
    first, second, third = (resolved(scan, given).volume.array_kji for given in (model, model, str(tiny_model)))
    assert np.array_equal(first, second)
    assert np.array_equal(first, third)


def test_the_report_says_what_was_done(tiny_model, make_scan):
    scan = make_scan((2, 40, 50))
    report = resolved(scan, tiny_model, uncertainty=True, passes=3, seed=5, tile=64).report
    json.dumps(report, allow_nan=False)
    assert report["region"] == "0:50,0:40,0:2"
    assert report["input"]["size_ijk"] == [50, 40, 2]
    assert report["output"]["size_ijk"] == [400, 320, 2]
    assert report["model"]["name"] == "tiny"
    assert len(report["model"]["sha256"]) == 64
    assert report["tiles"] == {"rectangles": 2, "voxels": 2 * 40 * 50, "largest": 64, "halo": 6}
    assert (report["device"], report["precision"], report["seed"]) == ("cpu", "fp32", 5)
    assert report["uncertainty"] == {"passes": 3}
    assert report["consistency"].items() >= {"mode": "scan", "psf_fwhm_mm": 1.2, "noise_hu": 12.0}.items()
    assert report["peak_memory_mb"] > 50
    assert report["seconds"]["total"] >= report["seconds"]["network"] > 0
    assert {"python", "torch", "numpy"} <= report["software"].keys()
    assert "not for diagnosis" in report["notice"]


def test_the_results_metadata_says_where_it_comes_from(tiny_model, make_scan):
    result = resolved(make_scan((1, 40, 40)), tiny_model, uncertainty=True, passes=2)
    for volume in (result.volume, result.uncertainty):
        assert volume.metadata["CTMicroSR.model"].startswith("tiny ")
        assert "not for diagnosis" in volume.metadata["CTMicroSR.notice"]
        assert volume.array_kji.dtype == np.int16


def test_progress_goes_from_nothing_to_all_slices(tiny_model, make_scan):
    recorder = Recorder()
    resolved(make_scan((3, 40, 40)), tiny_model, progress=recorder)
    assert [heard[1:] for heard in recorder.heard if heard[0] == "super-resolving"] == [(n, 3) for n in range(4)]


@pytest.mark.parametrize("patience", [0, 2])
def test_cancelling_stops_between_tiles(tiny_model, make_scan, patience):
    recorder = Recorder(patience)
    with pytest.raises(CancelledError):
        resolved(make_scan((3, 70, 70)), tiny_model, progress=recorder, tile=32)
    assert max((done for stage, done, _ in recorder.heard if stage == "super-resolving"), default=0) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"region": "heart"},
        {"region": "0:1,0:1,0:1"},
        {"region": Region((0, 41), (0, 40), (0, 1))},
        {"consistency": "total"},
        {"passes": 1},
        {"passes": 1001},
        {"seed": -1},
        {"psf_fwhm_mm": 0.0},
        {"psf_fwhm_mm": float("nan")},
        {"psf_fwhm_mm": 11.0},
        {"noise_hu": -1.0},
        {"noise_hu": float("inf")},
        {"tile": 50},
        {"device": "abacus"},
        {"precision": "fp8"},
        {"colour": "blue"},
        {"mask": np.ones((1, 40, 41), bool)},
    ],
    ids=str,
)
def test_a_wrong_option_is_refused_in_one_sentence(tiny_model, make_scan, wrong):
    with pytest.raises(UsageError) as refused:
        resolved(make_scan((1, 40, 40)), tiny_model, **wrong)
    assert str(refused.value).endswith(".")
    assert "\n" not in str(refused.value)


def test_a_result_that_does_not_fit_into_memory_is_refused_before_any_work(tiny_model, make_scan, monkeypatch):
    monkeypatch.setattr("CTMicroSRLib.devices.free_memory_bytes", lambda: 100_000)
    recorder = Recorder()
    with pytest.raises(ResourceError, match="memory"):
        resolved(make_scan((1, 40, 40)), tiny_model, progress=recorder)
    assert not any(stage == "super-resolving" for stage, _, _ in recorder.heard)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 5 bytes")])
def test_running_out_of_memory_is_one_sentence(tiny_model, make_scan, monkeypatch, error):
    model = load_model(tiny_model, precision="fp32")

    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr(model, "run", fail)
    with pytest.raises(ResourceError, match="memory"):
        resolved(make_scan((1, 40, 40)), model)


def test_another_failure_is_not_called_one_of_memory(tiny_model, make_scan, monkeypatch):
    model = load_model(tiny_model, precision="fp32")

    def fail(*_arguments, **_options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(model, "run", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        resolved(make_scan((1, 40, 40)), model)


def test_a_report_is_written_whole(tmp_path):
    path = tmp_path / "report.json"
    write_report({"seed": 1}, path)
    assert json.loads(path.read_text()) == {"seed": 1}
    with pytest.raises(TypeError):
        write_report({"seed": object()}, path)
    assert json.loads(path.read_text()) == {"seed": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]


def test_a_stopwatch_adds_up_its_stages():
    watch = Stopwatch()
    for _ in range(2):
        with watch.stage("a"):
            pass
    with pytest.raises(ValueError, match="inside"), watch.stage("b"):
        raise ValueError("inside")
    assert watch.by_stage().keys() == {"a", "b", "total"}
    assert peak_memory_mb() > 10


def test_the_grid_of_a_single_pixel_is_a_scan_too(make_model):
    array = np.full((1, 12, 12), -1000, np.int16)
    array[0, 4:8, 4:8] = 50
    volume = Volume(array, Geometry((12, 12, 1), (0.7, 0.7, 1.0)))
    result = resolved(volume, make_model(), region=Region((5, 6), (5, 6), (0, 1)))
    assert result.volume.array_kji.shape == (1, 8, 8)
