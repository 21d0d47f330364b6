"""Where a measurement was taken: versions, threads, processor. Without it a figure cannot be repeated."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass

from shoestring._version import __version__

ALWAYS_RECORDED = ("numpy", "torch")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The machine and the software of a measurement.

    `threads` are those of torch's intra-op pool, `cores` those that this process may use. `date` is UTC,
    ISO 8601, to the second.
    """

    date: str
    system: str
    processor: str
    cores: int
    threads: int
    memory_bytes: int
    gpu: str | None
    python: str
    packages: dict[str, str]

    @classmethod
    def here(cls, packages: Iterable[str] = ()) -> "Environment":
        """This process, now; `packages` are distributions to record besides numpy, torch and shoestring.

        Raises: ValueError when one of them is not installed.
        """
        import psutil  # here and not above: a saved measurement is read without torch
        import torch

        versions = {name: _version(name) for name in {*packages, *ALWAYS_RECORDED}}
        versions["shoestring"] = __version__
        return cls(
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            system=f"{platform.system()} {platform.machine()}",
            processor=_processor(),
            cores=_cores(),
            threads=torch.get_num_threads(),
            memory_bytes=psutil.virtual_memory().total,
            gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            python=platform.python_version(),
            packages=dict(sorted(versions.items())),
        )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"packages: {package!r} is not installed, so its version cannot be recorded"
        ) from None


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not offered by this operating system
        return os.cpu_count() or 1


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
