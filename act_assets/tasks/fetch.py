"""The official files, fetched and verified: a file has its final name only when it is what the catalog names."""

from __future__ import annotations

import fcntl
import filecmp
import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal
from urllib.parse import quote

from act_assets.tasks.catalog import ByHand, Entry, Published, PublishedFile
from act_assets.tasks.download import RAW, Quiet, Watch, checked_base, download, shown, unwritable
from act_assets.tasks.files import git_blob
from resources.errors import DataError
from resources.files import sync

CHUNK = 1 << 20  # bytes that are read at once
NAMED = 10  # files that a message names at most


How = Literal["downloaded", "copied", "already there"]
_DOWNLOADED: How = "downloaded"
_COPIED: How = "copied"
_ALREADY: How = "already there"


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that is there and right; its name inside the task's folder, its size in bytes."""

    name: str
    path: Path
    bytes: int
    how: How


@dataclass(frozen=True, slots=True)
class Options:
    """`source`: a folder to take the files from instead of the network; `everything`: the optional files too; `force`:
    replace files that are there and differ; `pauses_s`: seconds between the attempts of a download,
    None for the usual ones."""

    base_url: str = RAW
    source: Path | None = None
    everything: bool = False
    force: bool = False
    pauses_s: Sequence[float] | None = None


def fetch(
    task: str, entry: Entry, to: Path, options: Options | None = None, watch: Watch | None = None
) -> list[Fetched]:
    """Puts a task's official files into `to`/`task`, each under its final name only when it is whole and right.

    What is right already stays as it is. Raises DataError; an interrupted download leaves `<name>.part`, from which the
    next call goes on.
    """
    options, watch = options or Options(), watch or Quiet()
    if options.source is not None and not options.source.is_dir():
        raise DataError("the folder to take files from is not there", where=str(options.source), todo="check --from")
    if isinstance(entry, ByHand):
        return _by_hand(task, entry, to / task, options, watch)
    return _published(task, entry, to / task, options, watch)


def blob_id(path: Path) -> str:
    """What `git hash-object` prints for a file. Raises DataError where it cannot be read."""
    with _reading(path):
        size = path.stat().st_size
        return git_blob(path.open("rb"), size)


def states(task: str, entry: Entry, to: Path) -> dict[str, str]:
    """How each of the files is in `to`/`task`, in words, by name."""
    folder = to / task
    if isinstance(entry, ByHand):
        absent = set(_needed(entry, folder)[1])
        return {name: "missing" if name in absent else "there" for name in _needed(entry, folder)[0]}
    return {file.name: _state(folder / file.name, file.blob) for file in entry.files}


def _state(target: Path, blob: str) -> str:
    if target.is_file():
        return "there" if blob_id(target) == blob else "there, but not the official file"
    part = _part_path(target)
    return f"begun ({part.stat().st_size:,} bytes)" if part.is_file() else "missing"


# What is published file by file


def _published(task: str, entry: Published, folder: Path, options: Options, watch: Watch) -> list[Fetched]:
    base_url = checked_base(options.base_url)
    wanted = entry.wanted(options.everything)
    found = {file.name: blob_id(folder / file.name) for file in wanted if (folder / file.name).exists()}
    lacking = [file for file in wanted if found.get(file.name) != file.blob]
    wrong = [f"{f.name} (git blob {found[f.name]}, official: {f.blob})" for f in lacking if f.name in found]
    if wrong and not options.force:
        raise _in_the_way(wrong, folder)
    sources = _sources(task, lacking, options.source) if options.source is not None else {}
    fetched: list[Fetched] = []
    with _made(folder):
        for file in wanted:
            target, how = folder / file.name, _ALREADY
            if file in lacking:
                with _part(target) as part:
                    if file.name in sources:
                        origin, how = str(sources[file.name]), _COPIED
                        _copy(sources[file.name], part, file.name, watch)
                    else:
                        url = f"{base_url}/{quote(entry.repository)}/{entry.commit}/{quote(file.path)}"
                        origin, how = shown(url), _DOWNLOADED
                        if blob_id(_part_path(target)) != file.blob:  # a whole one needs no network
                            download(url, part, file.name, watch, options.pauses_s)
                    _accept(part, target, file, origin)
            fetched.append(Fetched(file.name, target, target.stat().st_size, how))
    return fetched


def _sources(task: str, files: Sequence[PublishedFile], source: Path) -> dict[str, Path]:
    """The files in an offline folder by name: with the repository's paths, flat, or in a folder of the task's name;
    plain or .gz. Raises DataError naming all that are missing or not the official ones."""
    found: dict[str, Path] = {}
    absent: list[str] = []
    for file in files:
        places = [source / file.path, source / file.name, source / task / file.name]
        there = [path for place in places for path in (place, place.with_name(f"{place.name}.gz")) if path.is_file()]
        ids = {path: _told(path) for path in there}
        right = [path for path in there if ids[path] == f"git blob {file.blob}"]
        if right:
            found[file.name] = right[0]
        elif there:
            absent.append(f"{there[0]} is not the official {file.name}: {ids[there[0]]}, expected git blob {file.blob}")
        else:
            absent.append(f"{file.name} is missing (looked for {file.path} and {file.name}, plain or .gz)")
    if absent:
        raise DataError(
            "the folder does not hold all of the official files:\n" + "\n".join(f"  - {a}" for a in absent),
            where=str(source),
            todo="put the official files there, then run again; nothing was copied",
        )
    return found


def _told(path: Path) -> str:
    """What an offline file is: its id, or why it cannot be read."""
    try:
        return f"git blob {_unpacked_id(path)}"
    except DataError as error:
        return error.what


def _accept(part: IO[bytes], target: Path, file: PublishedFile, origin: str) -> None:
    """Gives a part its final name. Raises DataError, and removes it, where it is not the official file."""
    path = _part_path(target)
    _on_disk(part, path)
    if (found := blob_id(path)) != file.blob:
        number = path.stat().st_size
        path.unlink()
        raise DataError(
            f"{file.name} is not the official file: expected git blob {file.blob}, found {found} ({number:,} bytes)",
            where=f"{target}, from {origin}",
            todo="run again: it starts anew; where that does not help, a proxy or mirror changes the file: "
            "fetch it elsewhere and use --from",
        )
    _rename(path, target)


# What a person has to fetch


def _by_hand(task: str, entry: ByHand, folder: Path, options: Options, watch: Watch) -> list[Fetched]:
    if options.source is None:
        return _laid_out(task, entry, folder)
    with _reading(options.source):
        places = [options.source, *sorted(path for path in options.source.iterdir() if path.is_dir())]
    source = next((p for p in places if all((p / name).is_file() for name in entry.listed)), options.source)
    names, absent = _needed(entry, source)
    if absent:
        raise DataError(
            f"the folder does not hold all of {entry.name}: {_some_of(absent, len(names))}",
            where=str(source),
            todo=f"unpack the archive from {entry.page} again, and give the folder that holds {entry.layout}",
        )
    there = [name for name in names if (folder / name).exists()]
    same = {name for name in there if _same(source / name, folder / name)}
    if (wrong := [name for name in there if name not in same]) and not options.force:
        raise _in_the_way(wrong, folder)
    fetched = []
    for name in names:
        target = folder / name
        if name not in same:
            with _made(target.parent), _part(target) as part:
                _copy(source / name, part, name, watch, packed=False)
                _rename(_part_path(target), target)
        fetched.append(Fetched(name, target, target.stat().st_size, _ALREADY if name in same else _COPIED))
    return fetched


def _laid_out(task: str, entry: ByHand, folder: Path) -> list[Fetched]:
    """The files where a person has put them. Raises DataError, which says how to get them, where not all are there."""
    names, absent = _needed(entry, folder)
    if not absent:
        return [Fetched(name, folder / name, (folder / name).stat().st_size, _ALREADY) for name in names]
    begun = f"\n  so far: {_some_of(absent, len(names))}" if len(absent) < len(names) else ""
    raise DataError(
        f"{entry.name} cannot be downloaded by a program: its publisher hands it out on {entry.page} "
        f"({entry.licence}){begun}",
        where=f"task {task}, {folder}",
        todo=f"download the archive from that page, unpack it, and run `act data fetch {task} --from FOLDER`, which "
        f"checks and copies it; or put these there yourself: {entry.layout}",
    )


def _needed(entry: ByHand, folder: Path) -> tuple[list[str], list[str]]:
    """All that is needed, as far as the questions there tell, and what is missing of it."""
    names = list(entry.listed)
    databases: set[str] = set()
    for name in entry.questions:
        if (folder / name).is_file():
            databases |= _databases(folder / name)
    names += [entry.database.replace("{db_id}", db_id) for db_id in sorted(databases)]
    return names, [name for name in names if not (folder / name).is_file()]


def _databases(path: Path) -> set[str]:
    """The databases that a file of questions names. Raises DataError where it is not such a file."""
    with _reading(path):
        content = path.read_bytes()
    try:
        found = {question["db_id"] for question in json.loads(content)}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"not a file of questions, each with a db_id: {type(error).__name__}: {error}",
            where=str(path),
            todo="the file is truncated or another one: unpack the archive again",
        ) from error
    for db_id in found:
        if not isinstance(db_id, str) or db_id in ("", ".", "..") or "/" in db_id or "\\" in db_id or "\0" in db_id:
            raise DataError(
                f"not the name of a database: {db_id!r}", where=str(path), todo="unpack the official archive again"
            )
    return found


def _some_of(absent: Sequence[str], of: int) -> str:
    named = ", ".join(absent[:NAMED]) + (f" and {len(absent) - NAMED:,} more" if len(absent) > NAMED else "")
    return f"{len(absent):,} of {of:,} files are missing: {named}"


def _same(one: Path, other: Path) -> bool:
    with _reading(other):
        return filecmp.cmp(one, other, shallow=False)


# Files


@contextmanager
def _part(target: Path) -> Iterator[IO[bytes]]:
    """`<target>.part`, to be appended to, which no other process has at the same time; an empty one does not stay."""
    path = _part_path(target)
    try:
        with path.open("a+b") as stream:
            if not _alone(stream, path):
                raise DataError(
                    "another process is fetching this file",
                    where=str(target),
                    todo="wait until it ends, then run again",
                )
            try:
                yield stream
            finally:
                if stream.seek(0, os.SEEK_END) == 0:
                    path.unlink(missing_ok=True)
    except OSError as error:  # at the end of the block too, where what is buffered is written
        raise unwritable(path, error) from error


def _alone(stream: IO[bytes], path: Path) -> bool:
    """Whether the part is ours until it is closed, and has not been renamed since it was opened."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _part_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _rename(part: Path, target: Path) -> None:
    try:
        os.replace(part, target)
        sync(target.parent)
    except OSError as error:
        raise unwritable(target, error) from error


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder is there; it goes again where nothing has come into it: its being there says that it is used."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()


def _copy(source: Path, part: IO[bytes], name: str, watch: Watch, *, packed: bool = True) -> None:
    """Writes a file's content, decompressed where it is a .gz one and `packed`, and syncs it."""
    unpack = packed and source.suffix == ".gz"
    watch.began(name, 0, None if unpack else source.stat().st_size)
    part.truncate(0)
    with _reading(source), gzip.open(source) if unpack else source.open("rb") as stream:
        while piece := stream.read(CHUNK):
            try:
                part.write(piece)
            except OSError as error:
                raise unwritable(part.name, error) from error
            watch.moved(len(piece))
    _on_disk(part, part.name)


def _on_disk(part: IO[bytes], path: object) -> None:
    try:
        part.flush()
        os.fsync(part.fileno())
    except OSError as error:
        raise unwritable(path, error) from error


def _unpacked_id(path: Path) -> str:
    """The blob id of a file's content, decompressed where it is a .gz one."""
    if path.suffix != ".gz":
        return blob_id(path)
    with _reading(path):
        with gzip.open(path) as stream:
            size = 0
            while piece := stream.read(CHUNK):
                size += len(piece)
        return git_blob(gzip.open(path), size)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot be read: {error}",
            where=str(path),
            todo="the file is damaged or not yours to read: fetch or unpack it again",
        ) from error


def _in_the_way(wrong: Sequence[str], folder: Path) -> DataError:
    named = "".join(f"\n  - {name}" for name in wrong[:NAMED])
    more = f"\n  - and {len(wrong) - NAMED:,} more" if len(wrong) > NAMED else ""
    return DataError(
        f"files are there that are not the official ones:{named}{more}",
        where=str(folder),
        todo="move them away, or replace them with --force",
    )
