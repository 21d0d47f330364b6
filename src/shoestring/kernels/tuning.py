"""Which variant of a kernel is fastest here: measured once, remembered in a table of this processor.

Source: Tilus (2025), section 7 (tuning by measurement, kept for each shape class and device).
"""

import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from shoestring.files import cache_folder, write_text
from shoestring.notices import notice_fallback

Name = TypeVar("Name", bound=Hashable)
VERSION = 1
_changes = 0
MOST_CACHE_BYTES = 64 << 20
"""Of the last cache for a core: no server has more, most have a few MiB."""


def size_class(extent: int) -> int:
    """The power of two at or above an extent: sizes between two powers share their measurements."""
    return 1 << max(extent - 1, 0).bit_length()


def measure_fastest(works: Mapping[Name, Callable[[], object]], repeats: int) -> dict[Name, float]:
    """The shortest seconds of each work, which take turns; each runs once before time counts.

    Raises: ValueError for no works, or repeats below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: nothing would be measured; use at least 1, better 5")
    if not works:
        raise ValueError("no variants to measure")
    for work in works.values():
        work()
    shortest = dict.fromkeys(works, math.inf)
    for _ in range(repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            shortest[name] = min(shortest[name], time.perf_counter() - start)
    return shortest


@dataclass
class TuningTable:
    """Key -> the numbers of the variant that was fastest, kept in a JSON file.

    A file that cannot be read as a table is announced and begun anew; a write replaces the file whole, with
    what other processes have added since.
    """

    path: Path

    def __post_init__(self) -> None:
        self._entries = self._read()

    def get(self, key: str) -> dict[str, int] | None:
        return self._entries.get(key)

    def put(self, key: str, choice: Mapping[str, int]) -> None:
        global _changes
        _changes += 1
        self._entries = {**self._read(), key: dict(choice)}
        write_text(self.path, json.dumps({"version": VERSION, "entries": self._entries}, indent=1))

    def _read(self) -> dict[str, dict[str, int]]:
        if not self.path.exists():
            return {}
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            if stored["version"] != VERSION:
                return {}
            return {
                str(key): {str(name): int(value) for name, value in choice.items()}
                for key, choice in stored["entries"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            notice_fallback("tuning table", f"{self.path} is no table and is begun anew ({error!r})")
            return {}


def tuning_changes() -> int:
    """How often this process has put something in a table: what was looked up before may be another now."""
    return _changes


def tuning_table(name: str = "") -> TuningTable:
    """The table of this processor, in the cache folder; read once a process. name: of another table."""
    return _table(name, *(os.environ.get(name) for name in ("SHOESTRING_CACHE", "XDG_CACHE_HOME", "HOME")))


@functools.cache
def _table(name: str, *_places: str | None) -> TuningTable:
    """Read again only where the cache folder has moved."""
    return TuningTable(cache_folder("tuning") / f"{_processor()}{name and '-' + name}.json")


@functools.cache
def _processor() -> str:
    """A name for this kind of processor: model, features and cache sizes."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    kept = {line for line in lines if line.startswith(("model", "flags", "Features", "cache size"))}
    text = "\n".join([*sorted(kept), str(last_level_cache_bytes())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def last_level_cache_bytes() -> int:
    """The largest cache of the first processor, as far as the processors here can have it (`cache_share`)."""
    return cache_share(Path("/sys/devices/system/cpu/cpu0/cache"), os.cpu_count() or 1)


def cache_share(folder: Path, processors: int) -> int:
    """Bytes of the largest cache that a `cache` folder of Linux describes; 32 MiB where it lists none.

    At most `MOST_CACHE_BYTES` for each of `processors`: a virtual machine is told of the whole cache of a
    host of which it has a few cores.
    """
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = []
    for file in folder.glob("index*/size"):
        text = file.read_text(encoding="ascii").strip()
        sizes.append(int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text))
    return min(max(sizes, default=32 << 20), MOST_CACHE_BYTES * processors)
