"""`stillroom doctor`: what this machine has for stillroom. The first thing that a bug report needs.

Each part is looked at in a thread of its own, so that what is broken or hangs takes its own lines only. `--json` prints one
object, section: {name: text or null}; a section that could not be looked at is {"error": text}.
"""

from __future__ import annotations

import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from builders.engines import ENGINES, SERVERS
from builders.job_files import job_from_dict, preset_names, read_preset
from extract.settings import Settings

Section = dict[str, str | None]

SECONDS = 20.0  # that all parts together may take; torch and a GPU's driver need most of it
HUB_SECONDS = 5.0
PACKAGES = (
    *(
        "stillroom",
        "torch",
        "transformers",
        "tokenizers",
        "datasets",
        "huggingface_hub",
        "accelerate",
        "pyarrow",
        "numpy",
    ),
    *("safetensors", "vllm", "flash_attn", "tritonclient", "sentence-transformers", "gguf", "trl", "pillow"),
)
NEEDS = {"transformers": ("torch", "transformers"), "vllm": ("vllm",), "triton": ("tritonclient",)}
NEEDED = ("transformers",)  # by all other engines: its tokenizers
ENGINE_EXTRAS = ("vllm", "triton")
EXTRAS = {  # what each is for, and the modules that it brings
    "vision": ("rows with images", ("PIL",)),
    "curate": ("search, density, subsets", ("faiss", "sklearn")),
    "viz": ("maps, previews of cards", ("markdown_it", "matplotlib", "umap")),
    "distill": ("students of stored logits", ("trl",)),
    "gguf": ("models in GGUF", ("gguf",)),
}
LATE: Section = {"error": f"no answer within {SECONDS:.0f} s"}
NOT_THERE = "not installed"


def examine(settings: Settings) -> dict[str, Section]:
    """Look at every part; whatever happens, there is a section for each."""
    parts: dict[str, Callable[[], Section]] = {
        "versions": versions,
        "engines": engines,
        "extras": extras,
        "device": lambda: device(settings.device),
        "memory": memory,
        "disk": lambda: disk(settings.cache),
        "hub": hub,
        "presets": presets,
    }
    found: dict[str, Section] = {}
    threads = [threading.Thread(target=_look, args=(name, part, found), daemon=True) for name, part in parts.items()]
    for thread in threads:
        thread.start()
    end = time.monotonic() + SECONDS
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return {name: found.get(name, dict(LATE)) for name in parts}


def _look(name: str, part: Callable[[], Section], found: dict[str, Section]) -> None:
    try:
        found[name] = part()
    except Exception as error:  # whatever is broken is what the report is for
        found[name] = {"error": _line(error)}


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def as_text(report: Mapping[str, Section]) -> Iterator[str]:
    """The lines of a report."""
    width = max(len(name) for section in report.values() for name in section)
    for title, section in report.items():
        yield title
        yield from (f"  {name:{width}}  {NOT_THERE if value is None else value}" for name, value in section.items())


def versions() -> Section:
    """Python and packages; None where one is not installed."""
    found: Section = {"python": f"{platform.python_version()} on {platform.platform()}"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found["stillroom"] = found["stillroom"] or f"a checkout ({Path(__file__).resolve().parents[1]})"
    return found


def engines() -> Section:
    """Whether each is there, or what brings it. Nothing is imported: vLLM takes seconds."""
    found: Section = {}
    for engine in ENGINES:
        if any(find_spec(module) is None for module in NEEDS.get(engine, NEEDED)):
            found[engine] = f"cannot run: pip install 'stillroom{f'[{engine}]' * (engine in ENGINE_EXTRAS)}'"
        else:
            found[engine] = "installed, and needs --endpoint URL" if engine in SERVERS else "installed"
    return found


def extras() -> Section:
    """What more there is to install, and the command that brings it."""
    return {
        about: "installed" if all(map(find_spec, modules)) else f"not installed: pip install 'stillroom[{extra}]'"
        for extra, (about, modules) in EXTRAS.items()
    }


def device(name: str | None) -> Section:
    """What computes, and the dtype where --dtype is not given."""
    import torch

    from extract.device import best_dtype, default_device, processor

    found: Section = {"cpu": f"{torch.get_num_threads()} threads on {os.cpu_count()} cores, {processor()}"}
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        about = torch.cuda.get_device_properties(number)
        facts = f"capability {about.major}.{about.minor}, CUDA {torch.version.cuda}"
        found[f"cuda:{number}"] = f"{about.name}, {_gb(free)} of {_gb(total)} free, {facts}"
    chosen = name or default_device()
    dtype = best_dtype(chosen)
    has = "multiplies" if dtype == "bfloat16" else "does not multiply"
    found["chosen"] = f"{chosen}, {dtype}: it {has} bfloat16 in hardware"
    return found


def memory() -> Section:
    """Of the host, and of the container where it has a limit of its own."""
    page = os.sysconf("SC_PAGE_SIZE")
    found: Section = {
        "host": f"{_gb(page * os.sysconf('SC_AVPHYS_PAGES'))} of {_gb(page * os.sysconf('SC_PHYS_PAGES'))} free"
    }
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # what can be had is more than what is free: the cache of files gives way
        kb = {line.split(":")[0]: int(line.split()[1]) for line in meminfo.read_text().splitlines()}
        found["host"] = f"{_gb(1024 * kb['MemAvailable'])} of {_gb(1024 * kb['MemTotal'])} available"
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdigit():
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        found["limit"] = (
            f"{_gb(int(limit.read_text()) - used)} of {_gb(int(limit.read_text()))} left to this container"
        )
    return found


def disk(cache: Path) -> Section:
    """Free space where work and models are cached, and what waits for its output."""
    from huggingface_hub import constants

    waiting = [path for path in cache.glob("jobs/*/pending/files/**/*") if path.is_file()]
    jobs = len({path.relative_to(cache).parts[1] for path in waiting})
    return {
        "cache": f"{cache}: {_free(cache)}",
        "pending": f"{len(waiting)} files of {jobs} jobs, {_gb(sum(path.stat().st_size for path in waiting))}",
        "models": f"{constants.HF_HUB_CACHE}: {_free(Path(constants.HF_HUB_CACHE))}",
    }


def _free(folder: Path) -> str:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    state = "" if os.access(there, os.W_OK) else ", which cannot be written"
    return f"{_gb(shutil.disk_usage(there).free)} free{state}"


def hub() -> Section:
    """Where the Hub is, and as whom it knows us: the name alone, never the token."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import build_hf_headers, get_session

    found: Section = {"endpoint": constants.ENDPOINT, "user": "no token: `hf auth login`, or $HF_TOKEN"}
    if constants.HF_HUB_OFFLINE:
        found["user"] = "offline: $HF_HUB_OFFLINE is set"
    elif get_token():
        url = f"{constants.ENDPOINT}/api/whoami-v2"
        try:
            answer = get_session().get(url, headers=build_hf_headers(), timeout=HUB_SECONDS)
        except Exception as error:  # of whichever HTTP library the Hub's client uses
            return {**found, "user": f"unknown, as the Hub does not answer ({_line(error)})"}
        is_known = answer.status_code == 200
        found["user"] = str(answer.json().get("name")) if is_known else f"the token is refused ({answer.status_code})"
    return found


def presets() -> Section:
    """The jobs shipped with the code."""
    jobs = {name: job_from_dict(read_preset(name)) for name in preset_names()}
    return {name: f"{job.build} of {job.source}, {job.model}" for name, job in jobs.items()}


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
