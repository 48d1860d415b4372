"""The methods: one file each, found by themselves; those of other packages by an entry point.

    METHODS["act"].title

A file here declares `METHOD`; another package declares an entry point of the group `act_assets.methods`
(docs/adding-a-method.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from types import MappingProxyType

from act_assets.methods.base import Method
from resources.errors import ActError

GROUP = "act_assets.methods"
DEFAULT = "act"  # what `act run` trains unless it is told otherwise


def _all_methods() -> Mapping[str, Method]:
    """In the order of results: predictors, then what starts from the base policy, then what starts from those."""
    found = [import_module(f"{__name__}.{m.name}").METHOD for m in iter_modules(__path__) if m.name != "base"]
    for point in entry_points(group=GROUP):
        try:
            found.append(point.load())
        except Exception as error:  # a foreign module can raise anything
            raise ActError(
                f"a method of another package cannot be used: {type(error).__name__}: {error}",
                where=f"package {point.dist.name if point.dist else '?'}, entry point {point.name} = {point.value}",
                todo="fix that package, or uninstall it",
            ) from error
    waiting = sorted(found, key=lambda m: m.name)
    methods: dict[str, Method] = {}
    starts = [""]
    while starts:
        wave = [m for m in waiting if m.starts_from in starts and m.name not in methods]
        starts = ["base_policy"] if starts == [""] else [m.name for m in wave]
        methods |= {m.name: m for m in wave}
    if len(methods) < len(waiting):
        unusable = [m.name for m in waiting if methods.get(m.name) is not m]
        raise ActError(
            f"methods cannot be used: {', '.join(unusable)}",
            where=f"act_assets/methods and the entry points of the group {GROUP}",
            todo="give each a name of its own, and let it start from base_policy or from another method",
        )
    return MappingProxyType(methods)


METHODS = _all_methods()
TRAINED = tuple(m for m in METHODS.values() if m.train is not None)
PREDICTORS = tuple(m for m in METHODS.values() if m.predict is not None)


def get_method(name: str) -> Method:
    """The trained method of that name. Raises ActError listing them."""
    for method in TRAINED:
        if method.name == name:
            return method
    raise ActError(f"unknown method {name!r}", todo=f"choose {' or '.join(m.name for m in TRAINED)}")


def lineage(method: Method) -> tuple[Method, ...]:
    """The methods whose checkpoints a method needs, first to last, itself included."""
    before = METHODS.get(method.starts_from)
    return (*(lineage(before) if before else ()), method)
