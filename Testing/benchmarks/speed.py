"""`make benchmark`: speed and memory, one run, side by side, the same random weights of the faithful generator.

Every row runs in a process of its own, so that its peak memory is its own. Without real scans (see Testing/conftest.py)
the chest CT of the slicerio package stands in.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from CTMicroSRLib.card import ModelCard
from CTMicroSRLib.devices import has_fast_bf16
from CTMicroSRLib.files import read_volume
from CTMicroSRLib.intensity import IntensityWindow
from CTMicroSRLib.jobs import Job, run_job
from CTMicroSRLib.models import sha256_of
from CTMicroSRLib.networks.freezing import freeze_norms
from CTMicroSRLib.networks.generator import WHOLE, Border, Generator
from CTMicroSRLib.networks.sr_cyclegan import ClinicalToMicroGenerator
from CTMicroSRLib.options import Options
from CTMicroSRLib.progress import SilentProgress
from CTMicroSRLib.report import peak_memory_mb
from CTMicroSRLib.session import Model, ScanConditions, load_model
from CTMicroSRLib.tiles import Rectangle, merge_cells, tile_of
from CTMicroSRLib.volume import Volume

logger = logging.getLogger("benchmark")

WINDOW = IntensityWindow(-1000.0, 2500.0)
CONDITIONS = ScanConditions(psf_fwhm_voxels=1.7, noise_hu=15.0)
FAITHFUL_MACS_PER_VOXEL = 949_824
MONAI_SETTINGS = [(32, 0.125, "constant"), (64, 0.25, "constant"), (128, 0.125, "constant"), (256, 0.125, "constant")]
SLICE_VOXELS = 256
REPEATS = 2


def scan_path() -> Path:
    """A whole real scan of about 100 slices, or the one the slicerio package carries."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    path = Path(os.environ.get("CTMICROSR_TEST_DATA", default)) / "clinical" / "rider_0117.nrrd"
    return path if path.exists() else Path(str(resources.files("slicerio") / "data" / "CTChest4.nrrd"))


def middle_slice(volume: Volume, size: int) -> torch.Tensor:
    """The central part of the middle slice, HU."""
    plane = np.asarray(volume.array_kji[len(volume.array_kji) // 2], dtype=np.float32)
    rows, columns = ((n - min(n, size)) // 2 for n in plane.shape)
    return torch.from_numpy(np.ascontiguousarray(plane[rows : rows + size, columns : columns + size]))


def faithful(volume: Volume) -> tuple[ClinicalToMicroGenerator, Generator]:
    """The faithful generator with seeded random weights, as it is and with norms frozen on the scan."""
    torch.manual_seed(0)
    network = ClinicalToMicroGenerator().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.02)
    frozen = freeze_norms(network, {}, "sr-cyclegan", [WINDOW.normalise(middle_slice(volume, 128))[None, None]])
    return network, frozen


def faithful_folder(folder: Path, volume: Volume) -> Path:
    """The frozen generator as a model folder that the engine loads."""
    from safetensors.torch import save_file

    _, frozen = faithful(volume)
    target = folder / "faithful-random"
    target.mkdir(parents=True, exist_ok=True)
    save_file(frozen.state_dict(), target / "model.safetensors")
    card = ModelCard(
        name="faithful-random",
        architecture="sr-cyclegan",
        parameters={"norm": "frozen"},
        scale=8,
        halo=frozen.halo,
        window=WINDOW,
        sha256=sha256_of(target / "model.safetensors"),
        title="random weights, for the benchmark only",
    )
    (target / "card.json").write_text(card.to_json())
    return target


def papers_loop(network: ClinicalToMicroGenerator, image: torch.Tensor) -> torch.Tensor:
    """32 x 32 patches, half overlapping, one at a time, each averaged with what is there."""
    rows, columns = image.shape[-2:]
    result = torch.zeros(1, 1, rows * 8, columns * 8)
    seen = torch.zeros(rows * 8, columns * 8, dtype=torch.bool)
    for row in range(0, rows - 31, 16):
        for column in range(0, columns - 31, 16):
            patch = network(image[..., row : row + 32, column : column + 32])
            part = (slice(row * 8, (row + 32) * 8), slice(column * 8, (column + 32) * 8))
            old = result[0, 0][part]
            result[0, 0][part] = torch.where(seen[part], (old + patch[0, 0]) / 2, patch[0, 0])
            seen[part] = True
    return result


def monai_window(
    network: ClinicalToMicroGenerator, image: torch.Tensor, roi: int, overlap: float, mode: str
) -> torch.Tensor:
    """MONAI's sliding window; every setting is tried and the fastest reported."""
    from monai.inferers import sliding_window_inference

    return sliding_window_inference(image, (roi, roi), 1, network, overlap=overlap, mode=mode)


def our_tiles(model: Model, image_hu: torch.Tensor, largest: int) -> torch.Tensor:
    """The engine's tiles over a whole slice."""
    rows, columns = image_hu.shape
    cells = np.ones((-(-rows // 32), -(-columns // 32)), dtype=bool)
    result = torch.empty(rows * 8, columns * 8)
    for core in merge_cells(cells, (rows, columns), model.card.halo, largest):
        tile = tile_of(core, (rows, columns), model.card.halo)
        border = Border(tile.left, tile.right, tile.top, tile.bottom)
        fine = model.run(image_hu[slice(*tile.rows), slice(*tile.columns)], border, CONDITIONS)
        start = Rectangle((0 if tile.top else core.rows[0], 0), (0 if tile.left else core.columns[0], 0))
        source = tuple(
            slice((span[0] - first) * 8, (span[1] - first) * 8)
            for span, first in ((core.rows, start.rows[0]), (core.columns, start.columns[0]))
        )
        result[core.rows[0] * 8 : core.rows[1] * 8, core.columns[0] * 8 : core.columns[1] * 8] = fine[source]
    return result


def peak_gflops() -> float:
    """Float32 matrix product of 2048 x 2048, the best of five."""
    a, b = torch.randn(2, 2048, 2048)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * 2048**3 / (time.perf_counter() - start) / 1e9)
    return best


def timed(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Best wall and CPU seconds after one run to warm up."""
    with torch.inference_mode():
        work()
        walls, cpus = [], []
        for _ in range(repeats):
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    return {"wall_s": min(walls), "cpu_s": min(cpus), "peak_memory_mb": peak_memory_mb()}


def row(name: str, folder: Path, argument: str) -> dict[str, Any]:
    """One measurement; called in a process of its own."""
    volume = read_volume(scan_path())
    image_hu = middle_slice(volume, SLICE_VOXELS)
    image = WINDOW.normalise(image_hu)[None, None]
    instance, frozen = faithful(volume)
    if name == "peak":
        return {"gflops": peak_gflops()}
    if name == "loop":
        return timed(lambda: papers_loop(instance, image), 1)
    if name in ("monai", "monai-frozen"):
        roi, overlap, mode = json.loads(argument)
        network = instance if name == "monai" else frozen
        return timed(lambda: monai_window(network, image, roi, overlap, mode), REPEATS)
    if name == "untiled":
        return timed(lambda: instance(image, WHOLE), REPEATS)
    if name in ("ours", "ours-bf16", "compact"):
        source: str | Path = "compact-8x" if name == "compact" else faithful_folder(folder, volume)
        model = load_model(source, device="cpu", precision="bf16" if name == "ours-bf16" else "fp32")
        largest = int(argument)
        found = timed(lambda: our_tiles(model, image_hu, largest), REPEATS)
        return {**found, "precision_error_hu": model.precision_error_hu}
    if name == "passes":
        model = load_model("compact-8x", device="cpu", precision="fp32")
        part = image_hu[:128, :128]
        one = timed(lambda: model.run(part, WHOLE, CONDITIONS), 5)
        many = timed(lambda: model.run_passes(part, WHOLE, CONDITIONS, passes=20, seed=0), 3)
        return {**many, "one_pass_wall_s": one["wall_s"], "one_pass_cpu_s": one["cpu_s"]}
    if name == "monai-slices":
        return monai_slices(volume, instance, json.loads(argument))
    return whole_scan(folder, "compact-8x" if name == "scan-compact" else faithful_folder(folder, volume))


def monai_slices(volume: Volume, network: ClinicalToMicroGenerator, setting: tuple[int, float, str]) -> dict[str, Any]:
    """MONAI over every eighth whole slice; the time is scaled to all slices."""
    chosen = volume.array_kji[::8]
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        for plane in chosen:
            image = WINDOW.normalise(torch.from_numpy(plane.astype(np.float32)))[None, None]
            monai_window(network, image, *setting)
    factor = len(volume.array_kji) / len(chosen)
    return {
        "wall_s": (time.perf_counter() - wall) * factor,
        "cpu_s": (time.process_time() - cpu) * factor,
        "peak_memory_mb": peak_memory_mb(),
    }


def whole_scan(folder: Path, model: str | Path) -> dict[str, Any]:
    """The lungs of the whole scan from file to file: segmentation, estimates, network, consistency, writing."""
    output = folder / "scan-sr.nrrd"
    wall, cpu = time.perf_counter(), time.process_time()
    report = run_job(
        Job(
            scan_path(),
            output,
            Options(model=model, device="cpu", precision="fp32"),
            overwrite=True,
        ),
        SilentProgress(),
    )
    output.unlink()
    seconds = report["seconds"]
    start_up = sum(seconds.get(stage, 0.0) for stage in ("model", "lungs", "plan", "acquisition"))
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_memory_mb": report["peak_memory_mb"],
        "seconds": seconds,
        "network_share": seconds["network"] / seconds["total"],
        "network_share_of_slices": seconds["network"] / (seconds["total"] - start_up),
        "network_voxels": report["tiles"]["voxels"],
        "voxel_mb": 2 * float(np.prod(report["input"]["size_ijk"])) / 1e6,
    }


def child(name: str, folder: Path, argument: str = "") -> dict[str, Any]:
    """Run a row in a process of its own."""
    command = [sys.executable, __file__, str(folder), "--row", name, "--argument", argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the row {name} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    logger.info(
        "%-14s %-24s %s", name, argument, {k: v if isinstance(v, dict) else round(v, 3) for k, v in found.items()}
    )
    return found


def measure(folder: Path) -> dict[str, Any]:
    """All rows."""
    rows: dict[str, Any] = {"peak": child("peak", folder), "loop": child("loop", folder)}
    tried = {json.dumps(setting): child("monai", folder, json.dumps(setting)) for setting in MONAI_SETTINGS}
    best = min(tried, key=lambda setting: tried[setting]["wall_s"])
    rows["monai"] = {**tried[best], "setting": best}
    rows["monai-frozen"] = {**child("monai-frozen", folder, best), "setting": best}
    rows["untiled"] = child("untiled", folder)
    tried_tiles = {tile: child("ours", folder, tile) for tile in ("128", "256")}
    best_tile = min(tried_tiles, key=lambda tile: tried_tiles[tile]["wall_s"])
    rows["ours"] = {**tried_tiles[best_tile], "setting": f"tile {best_tile}"}
    rows["ours-bf16"] = {**child("ours-bf16", folder, best_tile), "setting": f"tile {best_tile}"}
    rows["compact"] = {**child("compact", folder, best_tile), "setting": f"tile {best_tile}"}
    rows["passes"] = child("passes", folder)
    rows["monai-slices"] = {
        **child("monai-slices", folder, rows["monai"]["setting"]),
        "setting": "scaled from 1 in 8 slices",
    }
    rows["scan-faithful"] = child("scan-faithful", folder)
    rows["scan-compact"] = child("scan-compact", folder)
    return rows


TITLES = {
    "loop": "papers' loop, 32x32, half overlap, one at a time",
    "monai": "MONAI sliding window, best setting",
    "monai-frozen": "MONAI sliding window, norms frozen",
    "untiled": "untiled pass (instance norm)",
    "ours": "CTMicroSR fp32",
    "ours-bf16": "CTMicroSR bf16",
    "compact": "CTMicroSR, compact generator fp32",
}


def table(rows: dict[str, Any]) -> str:
    """The rows as Markdown."""
    peak, base = rows["peak"]["gflops"], rows["monai"]["wall_s"]
    lines = [
        f"One slice of {SLICE_VOXELS} x {SLICE_VOXELS} voxels; {platform.processor() or platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; matrix-product peak {peak:.0f} GFLOP/s; "
        f"bf16 in hardware: {'yes' if has_fast_bf16(torch.device('cpu')) else 'no'}.",
        "",
        "| method | setting | wall s | CPU s | peak MB | GFLOP/s (share of peak) | speed beside MONAI |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key, title in TITLES.items():
        found = rows[key]
        work = 2 * FAITHFUL_MACS_PER_VOXEL * SLICE_VOXELS**2 / found["wall_s"] / 1e9
        share = "" if key == "compact" else f"{work:.0f} ({work / peak:.0%})"
        lines.append(
            f"| {title} | {found.get('setting', '')} | {found['wall_s']:.2f} | {found['cpu_s']:.2f} | "
            f"{found['peak_memory_mb']:.0f} | {share} | {base / found['wall_s']:.2f} |"
        )
    passes, scan = rows["passes"], rows["scan-compact"]
    ratio = rows["monai-slices"]["wall_s"] / rows["scan-faithful"]["wall_s"]
    compact_ratio = rows["ours"]["wall_s"] / rows["compact"]["wall_s"]
    lines += [
        "",
        f"- compact over faithful generator, both CTMicroSR fp32: {compact_ratio:.1f} times as fast",
        f"- 20 passes under dropout and one without: {passes['wall_s'] / passes['one_pass_wall_s']:.1f} passes' time",
        "- lungs of the whole scan, file to file, faithful generator: "
        f"{rows['scan-faithful']['wall_s']:.0f} s{_network_share(rows['scan-faithful'])}; MONAI over the whole scan: "
        f"{rows['monai-slices']['wall_s']:.0f} s ({rows['monai-slices']['setting']}); ratio {ratio:.1f}",
        f"- the same with the compact generator: {scan['wall_s']:.0f} s{_network_share(scan)}",
        f"- its peak memory {scan['peak_memory_mb']:.0f} MB, for an input of {scan['voxel_mb']:.0f} MB",
        f"- its seconds by stage: {scan['seconds']}",
    ]
    return "\n".join(lines) + "\n"


def _network_share(scan: dict[str, Any]) -> str:
    return (
        f", of which the bare network {scan['network_share']:.0%} "
        f"({scan['network_share_of_slices']:.0%} without lungs, blur, noise, model)"
    )


def main() -> int:
    """Run all rows and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--row")
    parser.add_argument("--argument", default="")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.row:
        sys.stdout.write(json.dumps(row(options.row, options.folder, options.argument)) + "\n")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    rows = measure(options.folder)
    (options.folder / "speed.json").write_text(json.dumps(rows, indent=2) + "\n")
    (options.folder / "speed.md").write_text(table(rows))
    sys.stdout.write(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
