"""A model's card: everything about a model but its weights, as JSON beside them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from CTMicroSRLib.errors import ModelError
from CTMicroSRLib.intensity import IntensityWindow

FORMAT = 1
CARD_FILE = "card.json"
WEIGHTS_FILE = "model.safetensors"

RUN_MODEL, RUN_SYNTHESIZER = "model", "synthesizer"
"""Model folders in a training run's: the generator, and a two-stage run's network that makes clinical CT."""

Quantity = Literal["psf_fwhm_voxels", "log_noise_hu"]
QUANTITIES: tuple[Quantity, ...] = ("psf_fwhm_voxels", "log_noise_hu")

CHANGES_RESULTS = (
    *("architecture", "parameters", "scale", "halo", "window", "sha256"),
    *("planes", "result", "calibration", "postprocess"),
)
"""Fields that a result depends on; the name and what is for people may be changed by hand."""

LARGEST_MEDIAN_VOXELS = 31

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Plane:
    """A constant input plane: a quantity of the scan, clipped to ``low``..``high``, as (value - mean) / std.

    ``psf_fwhm_voxels`` is the point spread's width in coarse voxels, ``log_noise_hu`` the natural logarithm
    of the noise's standard deviation. The limits are those of the training data.
    """

    quantity: Quantity
    mean: float
    std: float
    low: float
    high: float

    def value(self, psf_fwhm_voxels: float, noise_hu: float) -> float:
        """The plane's normalised value for a scan."""
        raw = psf_fwhm_voxels if self.quantity == "psf_fwhm_voxels" else math.log(max(noise_hu, 1e-3))
        return (min(max(raw, self.low), self.high) - self.mean) / self.std


@dataclass(frozen=True)
class Calibration:
    """Turns the standard deviation over passes into one that covers the error: sqrt((a s)^2 + b^2).

    ``scale`` is a and ``floor_hu`` b, fitted on simulated cases that were in neither training nor test.
    """

    scale: float = 1.0
    floor_hu: float = 0.0


@dataclass(frozen=True)
class Postprocess:
    """What is done to the network's result on the fine grid (P3), before it is made consistent with the scanner.

    Attributes:
        histogram_cells: every 32x32 cell gets the histogram of the scan there.
        median_voxels: width of a median filter, odd; 0 for none.
    """

    histogram_cells: bool = False
    median_voxels: int = 0

    @property
    def needed(self) -> bool:
        """Whether there is anything to do."""
        return self.histogram_cells or self.median_voxels > 1


@dataclass(frozen=True)
class ModelCard:
    """What a model is and how it is to be run.

    Attributes:
        name: identifier, lower case, as the command and the folder use it.
        architecture: a key of the network registry; ``parameters`` are its constructor's arguments.
        scale: fine voxels per coarse voxel, in-plane.
        halo: context in coarse voxels that exact tiles need.
        window: intensities the network was trained on.
        planes: constant input planes, in order.
        result: ``pass`` (dropout off) or ``mean`` (of the passes, as in the Bayesian CycleGAN).
        calibration: of the uncertainty.
        postprocess: of the result; the uncertainty stays that of the network.
        sha256: of the weights file.
        card_sha256: of what else changes results, as the card was written; empty on cards from before it.
        title, method, training_data, licence, command, metrics: for people.
    """

    name: str
    architecture: str
    parameters: Mapping[str, Any]
    scale: int
    halo: int
    window: IntensityWindow
    sha256: str
    planes: tuple[Plane, ...] = ()
    result: Literal["pass", "mean"] = "pass"
    calibration: Calibration = field(default_factory=Calibration)
    postprocess: Postprocess = field(default_factory=Postprocess)
    title: str = ""
    method: str = ""
    training_data: str = ""
    licence: str = ""
    command: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    card_sha256: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)
        if not _SHA256.fullmatch(self.sha256):
            raise ModelError(f"The card of {self.name} has no valid SHA-256 of its weights; export it again.")
        if not (1 <= self.scale <= 64 and 0 <= self.halo <= 512):
            raise ModelError(f"The card of {self.name} has an impossible scale or halo; export it again.")
        if self.result not in ("pass", "mean"):
            raise ModelError(f"The card of {self.name} has an unknown result kind; update CTMicroSR.")
        for plane in self.planes:
            if plane.quantity not in QUANTITIES:
                raise ModelError(
                    f"The card of {self.name} asks for {plane.quantity!r}, which this version does not know; "
                    "update CTMicroSR."
                )
            if not (0 < plane.std < math.inf and plane.low <= plane.high and math.isfinite(plane.mean)):
                raise ModelError(f"The card of {self.name} has an impossible input plane; export it again.")
        if not (0 <= self.calibration.scale < math.inf and 0 <= self.calibration.floor_hu < math.inf):
            raise ModelError(f"The card of {self.name} has an impossible calibration; export it again.")
        width = self.postprocess.median_voxels
        if width and not (0 < width <= LARGEST_MEDIAN_VOXELS and width % 2):
            raise ModelError(
                f"The card of {self.name} has a median of {width} voxels, not an odd number up to "
                f"{LARGEST_MEDIAN_VOXELS}; export it again."
            )

    def contents_sha256(self) -> str:
        """SHA-256 of everything on the card that changes results, as canonical JSON."""
        content = asdict(self)
        chosen = {key: _with_floats(content[key]) for key in CHANGES_RESULTS}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def as_written(self) -> bool:
        """Whether nothing that changes results was altered since the card was written, as far as it can be told."""
        return self.card_sha256 in ("", self.contents_sha256())

    def to_json(self) -> str:
        """The card as JSON text with its own checksum; without a post-processing, versions that know none read it."""
        content = asdict(self) | {"card_sha256": self.contents_sha256()}
        if self.postprocess == Postprocess():
            del content["postprocess"]
        return json.dumps({"format": FORMAT, **content}, indent=2) + "\n"


def _with_floats(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """JSON in which 1 and 1.0, which a card may be written with alike, are the same."""
    if isinstance(value, Mapping):
        return {key: _with_floats(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_with_floats(inner) for inner in value]
    return float(value) if type(value) is int else value


def check_name(name: str) -> None:
    """Refuse what is no model's name.

    Raises:
        ModelError: it is not.
    """
    if not _NAME.fullmatch(name):
        raise ModelError(f"The model name {name!r} is not allowed; use lower-case letters, digits, '.', '_' and '-'.")


def read_card(folder: Path) -> ModelCard:
    """Read ``card.json`` of a model folder.

    Raises:
        ModelError: no card, not JSON, fields missing, unknown or of the wrong kind, or another format.
    """
    path = folder / CARD_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ModelError(
            f"{folder} is not a model folder: it has no readable {CARD_FILE}; give a folder that has "
            f"{CARD_FILE} and {WEIGHTS_FILE}."
        ) from None
    try:
        content = json.loads(text)
        return _card_from(content)
    except ModelError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"The card {path} is damaged ({error}); get the model again from its source.") from None


def _card_from(content: dict[str, Any]) -> ModelCard:
    if content.pop("format") != FORMAT:
        raise ModelError("The card is of another format than this version reads; update CTMicroSR.")
    window = content.pop("window")
    planes = tuple(
        Plane(plane["quantity"], **{key: float(value) for key, value in plane.items() if key != "quantity"})
        for plane in content.pop("planes", ())
    )
    calibration = {key: float(value) for key, value in content.pop("calibration", {}).items()}
    postprocess = Postprocess(**content.pop("postprocess", {}))
    if type(postprocess.histogram_cells) is not bool or type(postprocess.median_voxels) is not int:
        raise TypeError("postprocess is not a yes or no and a whole number")
    for key in ("name", "architecture", "sha256", "card_sha256"):
        if not isinstance(content.get(key, "" if key == "card_sha256" else None), str):
            raise TypeError(f"{key} is not text")
    for key in ("scale", "halo"):
        if type(content[key]) is not int:
            raise TypeError(f"{key} is not a whole number")
    return ModelCard(
        window=IntensityWindow(float(window["low_hu"]), float(window["high_hu"])),
        planes=planes,
        calibration=Calibration(**calibration),
        postprocess=postprocess,
        **content,
    )
