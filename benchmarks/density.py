"""How k-NN density grows from 10,000 to 1 M vectors: seconds of the clock and of all cores, memory, recall.

    python benchmarks/density.py --rows 10000 --rows 100000 --rows 1000000 --plot docs/density.svg

The vectors are synthetic, float32 of 384 dimensions, as MiniLM's: N / 200 clusters whose sizes follow Zipf's law (exponent
1.1), each a Gaussian in 24 directions of its own with a falling spectrum, all with some noise in every direction, and a common
mean that gives two random vectors a cosine of about 0.15 (the anisotropy of sentence embeddings). They are written to disk and
mapped, and each measurement is a process of its own, whose peak memory counts the pages of the mapped file, too.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from builders.curate.density import density
from builders.curate.neighbors import exact_seconds, nearest, unit

DIMENSION, RANK, PER_CLUSTER = 384, 24, 200
MAX_EXACT_SECONDS = 180


def write_vectors(path: Path, num_rows: int, seed: int = 0) -> None:
    """Write clustered vectors [N, 384] as .npy, some at a time."""
    draw = np.random.default_rng(seed)
    num_clusters = num_rows // PER_CLUSTER
    sizes = np.arange(1, num_clusters + 1) ** -1.1
    ends = np.floor(num_rows * np.cumsum(sizes) / sizes.sum() + 0.5).astype(int)
    common = 0.42 * unit(draw.standard_normal((1, DIMENSION)))
    spectrum = 0.5 * np.arange(1, RANK + 1) ** -0.5
    out = np.lib.format.open_memmap(path, "w+", np.float32, (num_rows, DIMENSION))
    order = draw.permutation(num_rows)
    start = 0
    for end in ends:
        centre = unit(draw.standard_normal((1, DIMENSION)))
        directions = draw.standard_normal((RANK, DIMENSION)).astype(np.float32) / np.sqrt(DIMENSION)
        inside = (draw.standard_normal((end - start, RANK)) * spectrum).astype(np.float32) @ directions
        noise = draw.standard_normal((end - start, DIMENSION), np.float32) * (0.15 / np.sqrt(DIMENSION))
        out[order[start:end]] = unit(common + centre + inside + noise)
        start = end
    out.flush()


def measure(path: Path, method: str) -> dict:
    """Density of the vectors of a file, in this process."""
    vectors = np.load(path, mmap_mode="r")
    started, cpu = time.perf_counter(), time.process_time()
    found = nearest(vectors, 10, method=method)
    total = float(density(found).weights.sum())
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with the parent's
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20
    said = {"rows": len(vectors), "method": found.method, "seconds": seconds, "cpu": cpu, "GiB": peak}
    return {**said, "recall": found.recall, "sum": total}


def plot(results: list[dict], path: str) -> None:
    """Draw seconds over rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for kind in ("exact", "cells"):
        mine = [r for r in results if r["method"].startswith(kind)]
        axes.plot([r["rows"] for r in mine], [r["cpu"] for r in mine], "o-", label=kind)
    axes.set(xscale="log", yscale="log", xlabel="vectors of 384 dimensions", ylabel="CPU seconds, all cores together")
    axes.legend()
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(path, bbox_inches="tight")


@click.command()
@click.option(
    "--rows", multiple=True, type=int, default=(10_000, 30_000, 100_000, 300_000, 1_000_000), show_default=True
)
@click.option("--plot", "plot_path", help="write a plot of seconds over rows")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="keep results there, and plot earlier ones, too"
)
@click.option("--one", nargs=2, hidden=True, help="measure one file with one method, and print JSON")
def main(rows, plot_path, json_path, one):
    """Print a table of rows, method, seconds, memory and recall@10."""
    if one:
        click.echo(json.dumps(measure(Path(one[0]), one[1])))
        return
    results = json.loads(json_path.read_text()) if json_path and json_path.exists() else []
    click.echo("| vectors | method | seconds | CPU seconds | peak GiB | recall@10 |\n|---|---|---|---|---|---|")
    for num in rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vectors.npy"
            write_vectors(path, num)
            for method in ["exact"] * (exact_seconds(num, DIMENSION) <= MAX_EXACT_SECONDS) + ["cells"]:
                command = [sys.executable, __file__, "--one", str(path), method]
                r = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                click.echo(
                    f"| {num:,} | {r['method']} | {r['seconds']:.1f} | {r['cpu']:.1f} | {r['GiB']:.2f} | {r['recall']:.3f} |"
                )
                results.append(r)
        if json_path:
            json_path.write_text(json.dumps(results, indent=1))
    if plot_path:
        plot(sorted(results, key=lambda r: r["rows"]), plot_path)


if __name__ == "__main__":
    main()
