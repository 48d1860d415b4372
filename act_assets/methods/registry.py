"""Every method: those of this package by their files, those of others by an entry point.

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

from act_assets import methods as package
from act_assets.methods.base import Method
from resources.errors import ActError

GROUP = "act_assets.methods"
DEFAULT = "act"  # what `act run` trains unless it is told otherwise


def _all_methods() -> Mapping[str, Method]:
    """In the order of results: predictors, then what starts from the base policy, then what starts from those."""
    own = [m.name for m in iter_modules(package.__path__) if m.name not in ("base", "registry")]
    found: dict[str, Method] = {name: import_module(f"{package.__name__}.{name}").METHOD for name in own}
    for point in entry_points(group=GROUP):
        where = f"package {point.dist.name if point.dist else '?'}, entry point {point.name} = {point.value}"
        try:
            method = point.load()
        except Exception as error:  # a foreign module can raise anything
            raise _unusable(f"{type(error).__name__}: {error}", where) from error
        if not isinstance(method, Method):
            raise _unusable(f"it names a {type(method).__name__}, not an act_assets.methods.base.Method", where)
        if method.name in found:
            raise _unusable(f"there is a method {method.name} already", where)
        found[method.name] = method
    ordered: dict[str, Method] = {}
    starts = [""]
    while starts:
        wave = [m for _, m in sorted(found.items()) if m.starts_from in starts and m.name not in ordered]
        starts = ["base_policy"] if starts == [""] else [m.name for m in wave]
        ordered |= {m.name: m for m in wave}
    if lost := sorted(found.keys() - ordered.keys()):
        raise _unusable("they start from no method that there is", ", ".join(lost))
    return MappingProxyType(ordered)


def _unusable(why: str, where: str) -> ActError:
    return ActError(f"a method cannot be used: {why}", where=where, todo="fix that package, or uninstall it")


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
