"""The papers' own numbers, to be printed beside measured ones. All are of the papers' own data, none of ours.

P1: Zheng et al., SR-CycleGAN, J Med Imaging 9(2), 2022. P0: Zheng et al., two-stage super-resolution by a synthesize
network. P2: Zheng et al., SR-UNIT, SPIE 2020 (pictures only, no numbers). P3: Bayesian CycleGAN of the inner ear.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from CTMicroSRLib.card import ModelCard


@dataclass(frozen=True)
class Published:
    """One number of a paper.

    Attributes:
        paper: P0, P1 or P3; see the module.
        table: its number there.
        protocol: the protocol of ours that does what the paper did.
        method: a method's name, as ``ctmicrosr train`` has it.
        variant: the preset that trains it, where the number is not of the method as proposed.
        metric: the key of the number in our tables.
        value: the number.
        note: what differs from what ours measures.
        changed: settings of ours that are not those of the preset that the number is for, separated by commas.
    """

    paper: str
    table: int
    protocol: str
    method: str
    variant: str
    metric: str
    value: float
    note: str = ""
    changed: str = ""


MICRO_SELF_NOTE = "micro-CT of lung specimens, shrunk by point sampling, 8x; one global SSIM window, peak 1"
UP_BLOCKS_NOTE = "with up-blocks on the coarse grid, not on interpolated input"
CT_SELF_NOTE = "COVID-19-20 scans, shrunk 4x"
SYNTHESIZED_NOTE = "images made from micro-CT of lung specimens, 8x; the SSIM's constants are not told"
INNER_EAR_NOTE = "inner ear, unpaired; which moment distance is not told"

# Preset of sr-cyclegan ("" for the method as proposed), PSNR in dB, SSIM. "CycleGAN" there is the one with up-blocks.
_TABLE_2 = (
    ("cyclegan-upblocks", 13.64, 0.05),
    ("no-mmsr", 15.39, 0.37),
    ("down-blocks", 16.48, 0.44),
    ("", 17.71, 0.54),
)
# Conditions A to M, by the presets that train them; J has what B has.
_TABLE_3 = (
    ("cyclegan-upblocks", 13.64, 0.05),
    ("down-blocks", 16.48, 0.44),
    ("no-mmsr", 15.39, 0.37),
    ("only-upsample", 15.83, 0.40),
    ("only-downsample", 16.53, 0.42),
    ("only-ssim-clinical", 15.13, 0.27),
    ("only-ssim-micro", 14.18, 0.25),
    ("no-ssim", 15.92, 0.40),
    ("only-ssim", 16.92, 0.49),
    ("no-upsample", 15.78, 0.46),
    ("no-downsample", 17.70, 0.50),
    ("", 17.71, 0.54),
)
_TABLE_4 = (("esrgan", 15.32, 0.02), ("pseudo-sr", 11.08, 0.04), ("cincgan", 9.99, 0.31))
# Minutes of training per epoch, seconds of inference, parameters.
_TABLE_5 = (
    ("esrgan", 221.0, 299.0, 24_383_820.0),
    ("pseudo-sr", 587.0, 512.0, 32_995_229.0),
    ("cincgan", 733.0, 221.0, 27_030_790.0),
    ("sr-cyclegan", 40.0, 267.0, 19_264_369.0),
)
_TABLE_6 = (
    ("esrgan", 7.47, 0.22),
    ("pseudo-sr", 17.68, 0.88),
    ("cincgan", 23.26, 0.97),
    ("sr-cyclegan", 26.10, 0.98),
)
_TABLE_7 = (
    ("blocks-6", 17.49, 0.44),
    ("blocks-12", 15.36, 0.45),
    ("kernels-7-7", 16.73, 0.41),
    ("kernels-3-3", 15.20, 0.43),
    ("patch-24", 16.04, 0.36),
    ("patch-48", 17.52, 0.53),
)


def _both(
    table: int, protocol: str, method: str, variant: str, psnr_db: float, ssim: float, note: str
) -> tuple[Published, Published]:
    common = ("P1", table, protocol, method, variant)
    return Published(*common, "paper_psnr_db", psnr_db, note), Published(*common, "paper_ssim", ssim, note)


def _all() -> Iterable[Published]:
    for table, rows in ((2, _TABLE_2), (3, _TABLE_3), (7, _TABLE_7)):
        for variant, psnr_db, ssim in rows:
            yield from _both(table, "micro-self", "sr-cyclegan", variant, psnr_db, ssim, MICRO_SELF_NOTE)
    # P1 calls its network with up-blocks the conventional CycleGAN; it has no number of one on interpolated input.
    yield from _both(2, "micro-self", "cyclegan", "", 13.64, 0.05, f"{MICRO_SELF_NOTE}; {UP_BLOCKS_NOTE}")
    for method, psnr_db, ssim in _TABLE_4:
        yield from _both(4, "micro-self", method, "", psnr_db, ssim, MICRO_SELF_NOTE)
    for method, minutes, seconds, parameters in _TABLE_5:
        common = ("P1", 5, "micro-self", method, "")
        yield Published(*common, "training_minutes_per_epoch", minutes, "one V100; 10,000 patches")
        yield Published(*common, "inference_seconds", seconds, "of what is not told")
        yield Published(*common, "parameters", parameters, "all networks of the training together")
    for method, psnr_db, ssim in _TABLE_6:
        yield from _both(6, "ct-self", method, "", psnr_db, ssim, CT_SELF_NOTE)
    for method, ssim in (("sr-cyclegan", 0.40), ("two-stage", 0.51)):
        yield Published("P0", 1, "synthesized", method, "", "paper_ssim", ssim, SYNTHESIZED_NOTE)
    for method, distance in (("unet", 3.12), ("srgan", 1.29), ("bayesian-cyclegan", 0.28)):
        yield Published("P3", 2, "inner ear", method, "", "m_hum_mean_of_minima", distance, INNER_EAR_NOTE)


PUBLISHED: tuple[Published, ...] = tuple(_all())
"""Every number of the papers' tables: P1 tables 2 to 7, P0 table 1, P3 table 2."""

_PREFERRED = ("micro-self", "synthesized", "ct-self", "inner ear")
"""Where a protocol of ours has no number of its own, one of these is shown, the first that has."""


def method_name(card: ModelCard) -> str:
    """The method that trained a model: the first word of its card's ``method``; empty where it tells none."""
    words = card.method.split()
    return words[0].strip(",;:()") if words else ""


def preset_name(card: ModelCard) -> str:
    """The preset that the card's ``method`` names, as in ``sr-cyclegan (preset small)``; empty where none."""
    found = re.search(r"preset ([\w.-]+)", card.method)
    return found.group(1) if found else ""


def changed_settings(card: ModelCard) -> str:
    """The settings that the card's ``method`` tells to be changed, as in ``unet (preset paper, changed: depth)``."""
    found = re.search(r"changed: ([^)]*)", card.method)
    return found.group(1) if found else ""


def published_for(card: ModelCard, protocol: str) -> dict[str, Published]:
    """What the papers say of a model's method, by metric: of the same protocol if they did it, else of the nearest.

    A preset that has the name of a variant takes the variant's numbers.
    """
    own = [p for p in PUBLISHED if p.method == method_name(card)]
    variant = preset_name(card) if any(p.variant == preset_name(card) for p in own) else ""
    order = (protocol, *_PREFERRED)
    numbers: dict[str, Published] = {}
    for number in sorted((p for p in own if p.variant == variant), key=lambda p: order.index(p.protocol)):
        numbers.setdefault(number.metric, replace(number, changed=changed_settings(card)))
    return numbers
