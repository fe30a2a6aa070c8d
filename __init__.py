"""Saccade: vision-language-action policies that look where the instruction points.

Importing the package takes milliseconds: public names are imported on first use. Two things happen at import. The
folder `kernels` is kept from being taken for the library of that name (`_keep_kernels_ours`), and imports of modules
that have moved since version 0.1.0 raise an error that names the new place (`_MovedFinder`).
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import InputError, SaccadeError, WorldError
    from .policy.contract import Contract, Offer
    from .policy.inference.actor import PolicyActor

    __version__: str

_MODULE_OF = {
    "Contract": ".policy.contract",
    "InputError": ".errors",
    "Offer": ".policy.contract",
    "PolicyActor": ".policy.inference.actor",
    "SaccadeError": ".errors",
    "WorldError": ".errors",
}

__all__ = ["Contract", "InputError", "Offer", "PolicyActor", "SaccadeError", "WorldError", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("lerobot_policy_saccade")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _RootFinder(FileFinder):
    """Finds modules in the package's own folder as Python does, except a top-level module `kernels`."""

    def find_spec(self, fullname: str, target: Any = None) -> ModuleSpec | None:
        return None if fullname == "kernels" else super().find_spec(fullname, target)


def _keep_kernels_ours() -> None:
    """Make sure that `import kernels` finds the library of that name or nothing, never this package's folder.

    With the repository root on `sys.path` (`python -m pytest`, `python -c` run there) transformers takes the folder for
    the library and fails. Only a search for `kernels` in this very folder is refused: a library that is installed is
    found as usual, and so is everything else here, `saccade.kernels` included.
    """
    root = os.path.dirname(os.path.realpath(__file__))

    def finder_of_root(entry: str) -> FileFinder:
        if os.path.realpath(entry) != root:
            raise ImportError("not the folder of this package", path=entry)
        return _RootFinder(entry, *details)

    # What the interpreter's own finder of the folder would look for, in its order.
    details = [(SourceFileLoader, SOURCE_SUFFIXES)]
    sys.path_hooks.insert(0, finder_of_root)
    for entry in list(sys.path_importer_cache):
        if os.path.realpath(entry) == root:
            del sys.path_importer_cache[entry]
    loaded_from = getattr(sys.modules.get("kernels"), "__file__", None)
    if loaded_from and os.path.dirname(os.path.realpath(loaded_from)) == os.path.join(root, "kernels"):
        del sys.modules["kernels"]


class _MovedFinder:
    """Names the new place of a module of version 0.1.0; comes last, when nothing else has found the module."""

    @staticmethod
    def find_spec(fullname: str, path: Any = None, target: Any = None) -> None:
        """Raise ModuleNotFoundError for a module that has moved, and find nothing otherwise."""
        if not fullname.startswith(f"{__name__}."):
            return
        from .moved import MOVED

        place = MOVED.get(fullname.removeprefix(f"{__name__}."))
        if place is not None:
            raise ModuleNotFoundError(f"{fullname} has moved: import {__name__}.{place}", name=fullname)


_keep_kernels_ours()
sys.meta_path.append(_MovedFinder)
