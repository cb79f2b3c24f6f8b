"""The ``ctmicrosr`` command: options, exit statuses and one-line errors."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from CTMicroSRLib import __version__, commands
from CTMicroSRLib.errors import CTMicroSRError, UsageError, user_error
from CTMicroSRLib.models import DEFAULT_MODEL
from CTMicroSRLib.signals import cancel_on_signals
from CTMicroSRLib.terminal import JsonProgress

STATUS_HELP = """\
exit status: 0 done, 1 unforeseen error, 2 wrong use, 3 refused input, 4 not enough memory or disk (or a missing
device), 5 model problem, 130 cancelled. Research use, not for diagnosis."""


class _Parser(argparse.ArgumentParser):
    """Reports wrong use as one line; an option is given in full, so that new ones never change what old ones mean."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - ArgumentParser's own
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[0].upper()}{message[1:]}; see '{self.prog} --help'.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    _prepare_streams()
    try:
        return _run(sys.argv[1:] if arguments is None else list(arguments), process_ends=arguments is None)
    except BrokenPipeError:
        # Nobody listens any more, so that flushing standard output on exit would fail again.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(arguments: Sequence[str], *, process_ends: bool) -> int:
    debug = "--debug" in arguments
    try:
        options = build_parser().parse_args(arguments)
        level = logging.DEBUG if debug else logging.WARNING
        logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr)
        with cancel_on_signals(process_ends=process_ends):
            status = int(options.function(options) or 0)
            sys.stdout.flush()
            return status
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        return _fail(user_error(error), debug, _wants_json(arguments))


def _fail(error: CTMicroSRError, debug: bool, as_json: bool) -> int:
    message = " ".join(str(error).split())
    if debug:
        traceback.print_exc()
    sys.stderr.write(f"ctmicrosr: {message}\n")
    if as_json:
        JsonProgress(sys.stdout).event("error", status=error.exit_status, message=message)
    return error.exit_status


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether ``--progress json`` is among arguments that may not have been understood."""
    joined = " ".join(arguments).replace("--progress=", "--progress ")
    return "--progress json" in joined


def _prepare_streams() -> None:
    """Let a missing stream swallow what is printed, and one that lacks a file name's characters show their codes."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def build_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = _Parser(
        prog="ctmicrosr",
        description="Super-resolve a chest CT to micro-CT scale, consistent with the scanner.",
        epilog=STATUS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ctmicrosr {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for add in (
        _add_superres,
        _add_batch,
        _add_segment,
        _add_info,
        _add_models,
        _add_simulate,
        _add_train,
        _add_evaluate,
        _add_doctor,
    ):
        add(subparsers)
    return parser


Subparsers: TypeAlias = "argparse._SubParsersAction[Any]"


def _command(subparsers: Subparsers, name: str, text: str, function: object) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(name, help=text, description=text, epilog=STATUS_HELP)
    parser.set_defaults(function=function)
    parser.add_argument("--debug", action="store_true", help="log everything and show tracebacks")
    return parser


def _add_progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--progress", choices=("auto", "json", "none"), default="auto", help="bar, JSON lines or nothing"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def _add_region(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--region",
        default="lungs",
        help="lungs (default), whole, or half-open input voxels I0:I1,J0:J1,K0:K1 (columns, rows, slices)",
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="installed model's name, or a model folder")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--tile", type=int, metavar="N", help="edge of the largest tile in voxels, a multiple of 32")


def _add_superres(subparsers: Subparsers) -> None:
    parser = _command(subparsers, "superres", "super-resolve a scan", commands.superres)
    parser.add_argument("input", type=Path, help="image file, DICOM folder, or one file of a DICOM series")
    parser.add_argument("output", type=Path, help=".nrrd, .mha, .nii or .nii.gz")
    _add_mask(parser)
    _add_region(parser)
    parser.add_argument("--uncertainty", type=Path, metavar="FILE", help="also write the standard deviation in HU")
    _add_run(parser)
    parser.add_argument("--report", type=Path, metavar="FILE.json")
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="picture of input, interpolation and result")
    _add_progress(parser)


def _add_mask(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mask", type=Path, help="mask of where the network runs, on the scan's grid")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--passes", type=int, default=20, metavar="T", help="passes under dropout (20)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--consistency", choices=("scan", "block", "off"), default="scan")
    parser.add_argument(
        "--psf-fwhm-mm", type=float, metavar="X", help="the scanner's in-plane blur (default: estimated)"
    )
    parser.add_argument("--noise-hu", type=float, metavar="X", help="the scan's noise (default: estimated)")


def _add_batch(subparsers: Subparsers) -> None:
    parser = _command(
        subparsers, "batch", "super-resolve many scans, each in a process of its own; resumable", commands.batch
    )
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="image files or DICOM folders")
    parser.add_argument(
        "--output-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="for NAME-sr, NAME-report.json and so on of every scan, and batch.json, which says what became of each",
    )
    parser.add_argument("--resume", action="store_true", help="go on: scans that are done and unchanged are left out")
    parser.add_argument("--workers", type=int, metavar="N", help="scans at a time on this machine (1)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster that sees the same files")
    parser.add_argument("--tries", type=int, default=2, metavar="N", help="of a scan whose process crashed (2)")
    parser.add_argument("--uncertainty", action="store_true", help="also write the standard deviations in HU")
    parser.add_argument("--figure", action="store_true", help="also draw a picture of each")
    parser.add_argument("--format", default=".nrrd", metavar="SUFFIX", help=".nrrd (default), .mha, .nii or .nii.gz")
    _add_region(parser)
    _add_run(parser)
    _add_progress(parser)


def _add_segment(subparsers: Subparsers) -> None:
    parser = _command(subparsers, "segment", "segment the lungs by region growing", commands.segment)
    parser.add_argument("input", type=Path)
    parser.add_argument("mask", type=Path, help="label map to write (1 = lung)")
    parser.add_argument("--airways", action="store_true", help="keep trachea and main bronchi")
    _add_progress(parser)


def _add_info(subparsers: Subparsers) -> None:
    parser = _command(subparsers, "info", "what a scan is, and what super-resolving it would cost", commands.info)
    parser.description = (
        "What a scan is, and what super-resolving it would cost. The seconds are those of the network, measured on a "
        "small tile; reading, segmenting and starting up come on top."
    )
    parser.add_argument("input", type=Path)
    _add_mask(parser)
    _add_region(parser)
    parser.add_argument("--passes", type=int, metavar="T", help="with an uncertainty of T passes, its time and disk")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _add_models(subparsers: Subparsers) -> None:
    parser = _command(subparsers, "models", "list, show, verify, import and remove models", commands.models_list)
    actions = parser.add_subparsers(required=True, metavar="ACTION", parser_class=_Parser)
    _command(actions, "list", "list the models", commands.models_list)
    for name, text, function in (
        ("show", "print a model's card", commands.models_show),
        ("verify", "check a model's weights against its card", commands.models_verify),
        ("import", "copy a model folder into the user's models", commands.models_import),
        ("remove", "delete an imported model", commands.models_remove),
    ):
        _command(actions, name, text, function).add_argument("model", help="name or folder")


def _add_simulate(subparsers: Subparsers) -> None:
    parser = _command(
        subparsers,
        "simulate",
        "make simulated specimens, their clinical CT, micro-CT, labels and description",
        commands.simulate,
    )
    parser.add_argument("folder", type=Path, help="where to write; manifest.json in it lists all files and settings")
    parser.add_argument("--verify", action="store_true", help="compare the folder's files with its manifest instead")
    parser.add_argument(
        "--set", metavar="NAME", help="the cases of a set: training-1, validation-1, test-1 or shifted-1"
    )
    parser.add_argument("--count", type=int, metavar="N", help="number of cases (1; of a set, all of it)")
    parser.add_argument("--arrays", action="store_true", help="also write .npy arrays, which can be memory-mapped")
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="picture of the first case")
    own = parser.add_argument_group("cases of your own", "instead of --set")
    own.add_argument("--seed", type=int, metavar="S", help="seed of the first case; the others count up (0)")
    own.add_argument("--pixel-mm", type=float, metavar="X", help="clinical pixel, 8 voxels of the truth (0.625)")
    own.add_argument("--psf-fwhm-mm", type=float, metavar="X", help="width of the Gaussian in-plane blur (1.0)")
    own.add_argument(
        "--kernel",
        metavar="NAME",
        help="instead of the Gaussian: smooth, soft, standard, body, medium, detail or bone",
    )
    own.add_argument("--slice-mm", type=float, metavar="X", help="slice thickness, 0.5 to 5 (1.0)")
    own.add_argument("--slice-spacing-mm", type=float, metavar="X", help="distance of the slices (the thickness)")
    own.add_argument("--noise-hu", type=float, metavar="X", help="noise's standard deviation (15)")
    own.add_argument("--size-voxels", type=int, metavar="N", help="clinical pixels along an edge, 8 to 256 (64)")
    own.add_argument("--depth-mm", type=float, metavar="X", help="extent of the slices together, up to 100 (8)")
    own.add_argument(
        "--disease",
        metavar="NAME",
        help="usual (some specimens have some), healthy, or diseased: nodules, emphysema, ground glass, thick walls",
    )
    own.add_argument(
        "--without",
        action="append",
        metavar="STRUCTURE",
        help="leave out airways, arteries, veins, septa, texture, emphysema, ground-glass, fissure, nodules or wall, "
        "all else being the same; may be given again",
    )
    _add_progress(parser)


def _add_train(subparsers: Subparsers) -> None:
    from CTMicroSRLib.training.methods import METHODS

    parser = _command(
        subparsers, "train", "train a method of the papers, or compact, which made the shipped model", commands.train
    )
    parser.add_argument(
        "method", type=_present_method, choices=METHODS, metavar="METHOD", help=f"one of {', '.join(METHODS)}"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="RUN", help="run folder")
    parser.add_argument("--preset", metavar="NAME", help="one of the method's presets, or a .json file of settings")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="one setting; may be given again")
    parser.add_argument(
        "--scale", type=int, metavar="N", help="2, 4 or 8; some methods also 16, compact any of 2 to 16"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="training steps (default: the preset's)")
    parser.add_argument("--batch", type=int, metavar="N", help="patches per step, over all devices")
    parser.add_argument("--seed", type=int, metavar="N", help="of everything that is drawn (1)")
    parser.add_argument(
        "--initial",
        type=Path,
        metavar="FILE",
        help="weights (.safetensors) that the generator starts from; given again with --resume, but not read then",
    )
    parser.add_argument("--stop-at", type=int, metavar="STEP", help="stop early, on the schedule of --steps")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint, on the CPU bit by bit as if never stopped",
    )
    parser.add_argument("--progress", choices=("auto", "json", "none"), default="auto", help="bar, JSON or nothing")
    _add_scans(parser.add_argument_group("scans", "without them, specimens are simulated"))
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    machine.add_argument(
        "--devices", type=int, default=1, metavar="N", help="devices of this machine; the batch is a multiple of it"
    )
    machine.add_argument("--precision", choices=("32-true", "bf16-mixed"))
    machine.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    card = parser.add_argument_group("the model's card")
    card.add_argument("--name", help="the model's name (default: METHOD-8x-RUN)")
    card.add_argument("--licence", metavar="TEXT", default="", help="of its weights, for those who get the model")
    card.add_argument("--calibrate", action="store_true", help="fit the uncertainty to simulated validation cases")
    card.add_argument("--measure", action="store_true", help="measure the model on the simulated test set (takes long)")


def _present_method(name: str) -> str:
    """The method's name; one that was there once is refused with what does the same today."""
    if name == "supervised":
        raise argparse.ArgumentTypeError(
            "supervised is now a preset of the method compact, use 'ctmicrosr train compact --preset shipped'"
        )
    return name


def _add_scans(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--clinical", type=Path, nargs="+", metavar="SCAN", help="clinical CTs: files or DICOM folders")
    group.add_argument("--micro", type=Path, nargs="+", metavar="SCAN", help="micro-CTs of other specimens")
    group.add_argument("--clinical-mask", type=Path, nargs="+", metavar="FILE", help="lung masks (default: segmented)")
    group.add_argument("--micro-mask", type=Path, nargs="+", metavar="FILE", help="masks of the specimens")
    group.add_argument("--clinical-window", type=float, nargs=2, metavar=("LOW", "HIGH"), help="HU (-1000 2500)")
    group.add_argument("--micro-window", type=float, nargs=2, metavar=("LOW", "HIGH"), help="grey values (0 15000)")
    group.add_argument("--patch", type=int, metavar="N", help="coarse patch's edge in voxels (32)")
    group.add_argument("--patches-per-case", type=int, metavar="N", help="patches from each scan (2000)")
    group.add_argument("--patches", type=Path, metavar="FOLDER", help="patches of an earlier run instead of scans")
    group.add_argument("--specimens", type=int, metavar="N", help="simulated specimens, without scans")


def _add_evaluate(subparsers: Subparsers) -> None:
    parser = _command(subparsers, "evaluate", "compare models: one table, one figure", commands.evaluate)
    parser.add_argument(
        "models", nargs="+", metavar="RUN_OR_MODEL", help="training runs, model folders or installed models' names"
    )
    parser.add_argument(
        "--protocol",
        choices=("simulated", "micro-self", "ct-self", "synthesized"),
        default="simulated",
        help="simulated: simulated scans and their truth (default); micro-self: micro-CT shrunk, compared with itself; "
        "ct-self: clinical CT shrunk, compared with itself; synthesized: clinical-like images made from micro-CT",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="TABLE",
        help="table: .md, .html, .csv or .json; a name without suffix, or a folder (FOLDER/), writes all four",
    )
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="one case's crops through every method")
    parser.add_argument(
        "--variants",
        choices=("all", "default", "papers"),
        default="all",
        help="runs of each model: all with every consistency and misjudged point spreads (default), default without "
        "and with consistency, papers the network alone",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    simulated = parser.add_argument_group("simulated specimens")
    simulated.add_argument("--set", metavar="NAME", help="named set of cases (test-1)")
    simulated.add_argument("--cases", type=int, metavar="N", help="only the set's first N cases")
    simulated.add_argument("--quick", action="store_true", help="image quality only, no other yardsticks")
    simulated.add_argument("--processes", type=int, metavar="N", help="that share the cases (as many as processors)")
    files = parser.add_argument_group("files of your own")
    files.add_argument("--clinical", type=Path, nargs="+", default=(), metavar="FILE", help="scans for ct-self")
    files.add_argument(
        "--micro", type=Path, nargs="+", default=(), metavar="FILE", help="micro-CT instead of simulated ones"
    )
    files.add_argument(
        "--micro-window",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="micro-CT grey values that stand for -1000 and 2500 HU",
    )
    files.add_argument("--slices", type=int, metavar="N", help="of each volume, evenly spaced (8)")
    files.add_argument("--synthesizer", metavar="MODEL", help="a two-stage run, or its synthesize network")
    _add_progress(parser)


def _add_doctor(subparsers: Subparsers) -> None:
    _command(subparsers, "doctor", "what is installed, devices, memory, and what is wrong", commands.doctor)
