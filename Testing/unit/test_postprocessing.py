"""Post-processing: histograms by cell and median against scikit-image and scipy, on the card, and in the engine."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.exposure import match_histograms

from CTMicroSRLib import Region, super_resolve
from CTMicroSRLib.card import ModelCard, Postprocess, read_card
from CTMicroSRLib.errors import ModelError
from CTMicroSRLib.intensity import IntensityWindow
from CTMicroSRLib.postprocessing import match_histogram, match_histograms_by_cell, median_filter

KNOWN = {"psf_fwhm_mm": 1.2, "noise_hu": 12.0, "device": "cpu", "precision": "fp32"}
P3 = Postprocess(histogram_cells=True, median_voxels=3)


def image(rows, columns, seed=0, smooth=1.0):
    values = np.random.default_rng(seed).normal(size=(rows, columns))
    return (-600.0 + 900.0 * ndimage.gaussian_filter(values, smooth)).astype(np.float32)


# --- histograms ------------------------------------------------------------------------------------


def test_a_matched_histogram_is_scikit_images():
    fine, coarse = image(128, 128, smooth=2.0), np.rint(image(32, 32, seed=1, smooth=0.7) * 1.5 - 100)
    difference = match_histogram(fine, coarse) - match_histograms(fine, coarse)
    assert np.abs(difference).mean() < 0.01 * coarse.std()
    assert np.quantile(np.abs(difference), 0.99) < 0.03 * coarse.std()


def test_a_matched_histogram_keeps_the_order_and_the_others_range():
    fine, coarse = image(64, 64), image(32, 32, seed=1)
    matched = match_histogram(fine, coarse)
    order = np.argsort(fine, axis=None)
    assert (np.diff(matched.ravel()[order]) >= 0).all()
    assert coarse.min() <= matched.min()
    assert matched.max() <= coarse.max()


def test_matching_with_its_own_histogram_changes_next_to_nothing():
    coarse = image(32, 32)
    assert np.abs(match_histogram(coarse, coarse) - coarse).mean() < 0.01 * coarse.std()


def test_matching_undoes_another_gain_and_offset():
    fine = image(64, 64)
    assert np.abs(match_histogram(3.0 * fine + 500.0, fine) - fine).mean() < 0.01 * fine.std()


def test_a_plateau_gets_the_middle_of_its_share():
    wanted = np.arange(1000, dtype=np.float32)
    matched = match_histogram(np.full((8, 8), -1000.0, np.float32), wanted)
    np.testing.assert_allclose(matched, 500, atol=2)


@pytest.mark.parametrize("seed", range(3))
def test_rounding_errors_of_the_network_stay_rounding_errors(seed):
    """Half of the values saturate: as ranks they would be one share, or spread over it, as the last bit falls."""
    rng = np.random.default_rng(seed)
    fine, coarse = image(128, 128, seed=seed), np.rint(image(32, 32, seed=seed + 10))
    fine = np.maximum(fine, np.median(fine))
    noisy = fine + rng.normal(0, 1e-4, fine.shape).astype(np.float32)
    assert np.abs(match_histogram(noisy, coarse) - match_histogram(fine, coarse)).max() < 0.5
    assert np.abs(match_histograms(noisy, coarse) - match_histograms(fine, coarse)).max() > 100.0


def test_every_cell_gets_the_histogram_of_its_own_part_of_the_scan():
    fine, coarse = image(70 * 2, 40 * 2), np.rint(image(70, 40, seed=1))
    matched = match_histograms_by_cell(fine, coarse, 2)
    for rows, columns in [((0, 32), (0, 32)), ((32, 64), (32, 40)), ((64, 70), (0, 32))]:
        part = np.s_[2 * rows[0] : 2 * rows[1], 2 * columns[0] : 2 * columns[1]]
        np.testing.assert_array_equal(matched[part], match_histogram(fine[part], coarse[slice(*rows), slice(*columns)]))


def test_cells_lie_on_the_whole_slices_grid_wherever_the_arrays_start():
    fine, coarse = image(96 * 4, 96 * 4), np.rint(image(96, 96, seed=1))
    whole = match_histograms_by_cell(fine, coarse, 4)
    part = match_histograms_by_cell(fine[20 * 4 :, 32 * 4 : 90 * 4], coarse[20:, 32:90], 4, start_ji=(20, 32))
    complete = np.s_[32 * 4 : 96 * 4, 32 * 4 : 64 * 4]
    np.testing.assert_array_equal(part[12 * 4 :, : 32 * 4], whole[complete])
    assert (part[: 12 * 4] != whole[20 * 4 : 32 * 4, 32 * 4 : 90 * 4]).any()


def test_cells_that_are_not_asked_for_stay():
    fine, coarse = image(64 * 2, 64 * 2), np.rint(image(64, 64, seed=1))
    cells = np.array([[True, False], [False, False]])
    matched = match_histograms_by_cell(fine, coarse, 2, cells=cells)
    assert (matched[:64, :64] != fine[:64, :64]).mean() > 0.9
    np.testing.assert_array_equal(matched[64:], fine[64:])
    np.testing.assert_array_equal(matched[:, 64:], fine[:, 64:])


# --- median ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("shape", [(40, 31), (3, 2), (1, 9)])
def test_the_median_is_scipys(size, shape):
    fine = image(*shape)
    before = fine.copy()
    np.testing.assert_array_equal(median_filter(fine, size), ndimage.median_filter(fine, size, mode="nearest"))
    np.testing.assert_array_equal(fine, before)


def test_the_median_takes_a_part_of_an_array():
    fine = image(40, 40)
    np.testing.assert_array_equal(median_filter(fine[::2, 3:], 3), median_filter(fine[::2, 3:].copy(), 3))


# --- card ------------------------------------------------------------------------------------------


def card(**fields):
    return ModelCard(
        name="tiny",
        architecture="compact",
        parameters={},
        scale=8,
        halo=3,
        window=IntensityWindow(-1000.0, 2500.0),
        sha256="0" * 64,
        **fields,
    )


@pytest.mark.parametrize("postprocess", [Postprocess(), P3, Postprocess(median_voxels=5)])
def test_a_card_comes_back_with_its_postprocessing(tmp_path, postprocess):
    (tmp_path / "card.json").write_text(card(postprocess=postprocess).to_json())
    assert replace(read_card(tmp_path), card_sha256="") == card(postprocess=postprocess)


def test_a_card_without_the_field_has_none_and_one_that_has_none_is_without_the_field(tmp_path):
    text = card().to_json()
    assert "postprocess" not in json.loads(text)
    (tmp_path / "card.json").write_text(text)
    assert not read_card(tmp_path).postprocess.needed


@pytest.mark.parametrize("width", [-1, 2, 4, 33])
def test_an_impossible_median_is_refused(width):
    with pytest.raises(ModelError, match=r"median of .* export it again\.$"):
        card(postprocess=Postprocess(median_voxels=width))


@pytest.mark.parametrize(
    "value", [{"histogram_cells": 1}, {"median_voxels": 3.0}, {"median_voxels": True}, {"blur": 3}, [], "P3", None]
)
def test_a_damaged_postprocessing_is_refused(tmp_path, value):
    content = {**json.loads(card().to_json()), "postprocess": value}
    (tmp_path / "card.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="damaged"):
        read_card(tmp_path)


# --- engine ----------------------------------------------------------------------------------------


def resolved(scan, model, **options):
    return super_resolve(scan, model=model, **{"region": "whole", **KNOWN, **options})


def assert_equal_but_for_rounding(one, other):
    """At most 1 HU apart, where float32 sums in another order fall on another side of a half."""
    difference = np.abs(one.astype(int) - other.astype(int))
    assert difference.max() <= 1
    assert np.mean(difference > 0) < 0.005


@pytest.mark.parametrize("architecture", ["compact", "sr-cyclegan"])
@pytest.mark.parametrize("consistency", ["off", "scan"])
def test_the_postprocessed_result_does_not_depend_on_the_tiling(make_model, make_scan, architecture, consistency):
    folder = make_model(architecture=architecture, postprocess=P3)
    scan = make_scan((1, 100, 140))
    results = [resolved(scan, folder, consistency=consistency, tile=tile) for tile in (32, 64, None)]
    assert len({result.report["tiles"]["rectangles"] for result in results}) > 1
    for other in results[1:]:
        assert_equal_but_for_rounding(results[0].volume.array_kji, other.volume.array_kji)


@pytest.mark.parametrize("consistency", ["off", "scan"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_a_postprocessed_region_is_the_same_region_of_the_whole(make_model, make_scan, consistency, with_mask):
    folder = make_model(postprocess=P3)
    scan = make_scan((2, 150, 170))
    mask = None
    if with_mask:
        mask = np.zeros(scan.array_kji.shape, bool)
        mask[:, 20:60, 30:117] = mask[1, 80:110, 60:85] = True
    whole = resolved(scan, folder, consistency=consistency, mask=mask)
    for region in (
        Region((40, 75), (37, 90), (1, 2)),
        Region((64, 96), (64, 96), (1, 2)),
        Region((0, 1), (149, 150), (0, 1)),
    ):
        part = resolved(scan, folder, consistency=consistency, mask=mask, region=region)
        fine = Region(*(tuple(8 * n for n in ends) for ends in (region.i, region.j)), region.k)
        assert_equal_but_for_rounding(part.volume.array_kji, whole.volume.crop(fine).array_kji)


def test_the_postprocessed_result_is_the_plain_result_matched_and_filtered(make_model, make_scan):
    scan = make_scan((1, 70, 90))
    plain = resolved(scan, make_model("plain"), consistency="off").volume.array_kji[0].astype(np.float32)
    result = resolved(scan, make_model("post", postprocess=P3), consistency="off").volume.array_kji[0]
    coarse = scan.array_kji[0].astype(np.float32)
    expected = median_filter(match_histograms_by_cell(plain, coarse, 8), 3)
    assert np.abs(plain - expected).mean() > 20.0
    assert np.abs(result - expected).mean() < 1.0


def test_far_from_the_mask_the_interpolation_stays_as_it_is(make_model, make_scan):
    scan = make_scan((1, 90, 100))
    mask = np.zeros(scan.array_kji.shape, bool)
    mask[0, 30:45, 40:70] = True
    plain = resolved(scan, make_model("plain"), consistency="off", mask=mask).volume.array_kji[0]
    result = resolved(scan, make_model("post", postprocess=P3), consistency="off", mask=mask).volume.array_kji[0]
    distance = ndimage.distance_transform_cdt(~mask[0], metric="chessboard").repeat(8, 0).repeat(8, 1)
    np.testing.assert_array_equal(result[distance > 12], plain[distance > 12])
    assert (result != plain)[distance == 0].mean() > 0.9


def test_the_mean_of_the_passes_is_postprocessed_and_their_deviation_is_not(make_model, make_scan):
    scan = make_scan((1, 40, 50))
    options = {"consistency": "off", "uncertainty": True, "passes": 4}
    plain = resolved(scan, make_model("plain", result="mean"), **options)
    result = resolved(scan, make_model("post", result="mean", postprocess=P3), **options)
    np.testing.assert_array_equal(result.uncertainty.array_kji, plain.uncertainty.array_kji)
    assert (result.volume.array_kji != plain.volume.array_kji).mean() > 0.9
    assert result.report["seconds"]["postprocess"] > 0
    assert "postprocess" not in plain.report["seconds"]


def test_consistency_comes_after_it(make_model, make_scan):
    """Whatever the post-processing does, the scan comes back from the result."""
    scan = make_scan((1, 64, 64))
    result = resolved(scan, make_model(postprocess=P3), consistency="block").volume.array_kji[0]
    blocks = result.astype(float).reshape(64, 8, 64, 8).mean(axis=(1, 3))
    assert np.abs(blocks - scan.array_kji[0]).max() < 0.5


def test_an_unchanged_card_runs_as_before(make_model, make_scan):
    scan = make_scan((1, 40, 50))
    one = resolved(scan, make_model("one")).volume.array_kji
    other = resolved(scan, make_model("other", postprocess=replace(P3, histogram_cells=False, median_voxels=1)))
    np.testing.assert_array_equal(one, other.volume.array_kji)
    assert torch.is_grad_enabled()
