"""The protocols by name: which options each takes, and how it is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from CTMicroSRLib.errors import UsageError
from CTMicroSRLib.evaluation.results import Shown, Table
from CTMicroSRLib.evaluation.said_once import warnings_said_once
from CTMicroSRLib.evaluation.variants import VARIANTS, Variants
from CTMicroSRLib.progress import Progress

Protocol = Literal["simulated", "micro-self", "ct-self", "synthesized"]
PROTOCOLS: tuple[Protocol, ...] = ("simulated", "micro-self", "ct-self", "synthesized")

_TAKES: dict[str, tuple[str, ...]] = {
    "set": ("simulated", "micro-self", "synthesized"),
    "cases": ("simulated", "micro-self", "synthesized"),
    "quick": ("simulated",),
    "processes": ("simulated",),
    "micro": ("micro-self", "synthesized"),
    "micro_window": ("micro-self", "synthesized"),
    "slices": ("micro-self", "ct-self", "synthesized"),
    "clinical": ("ct-self",),
    "synthesizer": ("synthesized",),
}

DEFAULT_SET = "test-1"
DEFAULT_SLICES = 8


@dataclass(frozen=True)
class ProtocolOptions:
    """What ``ctmicrosr evaluate`` was asked for; None (False, nothing) where an option was not given.

    Attributes:
        protocol: one of :data:`PROTOCOLS`.
        variants: of each model, one of :data:`~CTMicroSRLib.evaluation.variants.VARIANTS`.
        set: named set of simulated cases.
        cases: only its first ones.
        quick: image quality alone.
        processes: that share the simulated cases.
        micro: micro-CT volumes of a user.
        micro_window: grey values that lie at -1000 and 2500 HU.
        slices: of each volume.
        clinical: clinical scans.
        synthesizer: model folder of a synthesize network.
        device: as for ``superres``.

    Raises:
        UsageError: an option of another protocol, or one that is missing.
    """

    protocol: Protocol = "simulated"
    variants: Variants = "all"
    set: str | None = None
    cases: int | None = None
    quick: bool = False
    processes: int | None = None
    micro: tuple[Path, ...] = ()
    micro_window: tuple[float, float] | None = None
    slices: int | None = None
    clinical: tuple[Path, ...] = ()
    synthesizer: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UsageError(f"There is no protocol {self.protocol!r}; choose from: {', '.join(PROTOCOLS)}.")
        if self.variants not in VARIANTS:
            raise UsageError(f"There are no variants {self.variants!r}; choose from: {', '.join(VARIANTS)}.")
        for name, protocols in _TAKES.items():
            if getattr(self, name) not in (None, False, ()) and self.protocol not in protocols:
                raise UsageError(
                    f"The option --{name.replace('_', '-')} belongs to {' and '.join(protocols)}, not to "
                    f"{self.protocol}; leave it out."
                )
        if self.micro and (self.set is not None or self.cases is not None):
            raise UsageError("The options --set and --cases are of simulated micro-CT; leave them out beside --micro.")
        if self.protocol == "ct-self" and not self.clinical:
            raise UsageError("The protocol ct-self needs scans; give --clinical FILES.")
        if self.protocol == "synthesized" and self.synthesizer is None:
            raise UsageError("The protocol synthesized needs a synthesize network; give --synthesizer MODEL_FOLDER.")
        if self.processes is not None and self.processes < 1:
            raise UsageError(f"{self.processes} processes are none; give --processes 1 or more.")


def prepare_protocol(options: ProtocolOptions) -> Any:  # noqa: ANN401 - CaseSet or MicroSource, by protocol
    """The data that a protocol measures on, checked before any model is looked for; None for ``ct-self``.

    Raises:
        UsageError: no such set, a count that it does not have, or a window that is none.
    """
    if options.protocol == "ct-self":
        return None
    from CTMicroSRLib.evaluation.micro_slices import MicroSource
    from CTMicroSRLib.simulation.sets import case_set

    cases = case_set(options.set or DEFAULT_SET)
    cases = cases if options.cases is None else cases.first(options.cases)
    if options.protocol == "simulated":
        return cases
    slices = DEFAULT_SLICES if options.slices is None else options.slices
    return MicroSource(cases, options.micro, options.micro_window, slices)


def run_protocol(
    names: Sequence[str], options: ProtocolOptions, progress: Progress, *, processes: int = 1
) -> tuple[Table, Shown]:
    """Measure models by a protocol; a warning that would come for every slice or model is said once.

    Args:
        names: installed models, model folders or training runs.
        options: see :class:`ProtocolOptions`.
        progress: see :class:`Progress`.
        processes: that share the simulated cases, unless the options say.

    Raises:
        UsageError, ModelError, RefusedInputError: see the protocol's own file.
    """
    with warnings_said_once():
        return _run(names, options, progress, processes)


def _run(names: Sequence[str], options: ProtocolOptions, progress: Progress, processes: int) -> tuple[Table, Shown]:
    data = prepare_protocol(options)
    common: dict[str, Any] = {"variants": options.variants, "device": options.device}
    if options.protocol == "simulated":
        from CTMicroSRLib.evaluation.simulated import evaluate_models

        workers = options.processes or processes
        return evaluate_models(names, data, progress, yardsticks=not options.quick, workers=workers, **common)
    if options.protocol == "micro-self":
        from CTMicroSRLib.evaluation.micro_self import evaluate_micro_self

        return evaluate_micro_self(names, data, progress, **common)
    if options.protocol == "ct-self":
        from CTMicroSRLib.evaluation.ct_self import evaluate_ct_self

        slices = DEFAULT_SLICES if options.slices is None else options.slices
        return evaluate_ct_self(names, options.clinical, progress, slices=slices, **common)
    from CTMicroSRLib.evaluation.synthesized import evaluate_synthesized

    return evaluate_synthesized(names, str(options.synthesizer), data, progress, **common)
