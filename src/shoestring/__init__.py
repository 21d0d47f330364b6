"""Shoestring: deep learning on a small budget."""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from shoestring._version import __version__

if TYPE_CHECKING:
    from shoestring.compression.apply import apply
    from shoestring.compression.saved_folder import load, save

__all__ = ["__version__", "apply", "load", "save"]

_HOMES = {
    "apply": "shoestring.compression.apply",
    "load": "shoestring.compression.saved_folder",
    "save": "shoestring.compression.saved_folder",
}


def __getattr__(name: str) -> Any:
    """Import torch and transformers only when they are needed, so that the command line starts at once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'shoestring' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


class _RegisterWithTransformers(MetaPathFinder, Loader):
    """Registers our saved format as soon as transformers loads its table of quantisers, and not before."""

    table = "transformers.quantizers.auto"

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.table:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        # It registers as it is imported; if that is what asked for this table, it is on its way.
        import shoestring.compression.transformers_quantizer  # noqa: F401


if _RegisterWithTransformers.table in sys.modules:
    from shoestring.compression import transformers_quantizer as _registered  # noqa: F401
else:
    sys.meta_path.insert(0, _RegisterWithTransformers())
