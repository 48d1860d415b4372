"""The official files, fetched and verified: a file has its final name only when it is what the catalog names."""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from act_assets.tasks.catalog import ByHand, Entry, Published, PublishedFile
from act_assets.tasks.files import file_record
from resources.errors import DataError
from resources.files import atomic_file

RAW = "https://raw.githubusercontent.com"  # <repository>/<commit>/<path> of any public repository
RETRIES = 4  # pooch waits 1, 2, 3 and 4 s before them
TIMEOUT_S = 30  # without a byte, and for a connection
NAMED = 10  # files that a message names at most

How = Literal["downloaded", "copied", "already there"]


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that is there and right; its name inside the task's folder, its size in bytes."""

    name: str
    bytes: int
    how: How


def fetch(
    task: str,
    entry: Entry,
    to: Path,
    *,
    source: Path | None = None,
    base_url: str = RAW,
    everything: bool = False,
    force: bool = False,
    progress: bool = False,
) -> list[Fetched]:
    """Puts a task's official files into `to`/`task`, each under its final name only when it is whole and right.

    `source` is a folder to take the files from instead of the network, `everything` takes the optional files too, and
    `force` replaces files that are there and differ. What is right already stays as it is. Raises DataError.
    """
    folder = to / task
    if source is not None and not source.is_dir():
        raise DataError("the folder to take files from is not there", where=str(source), todo="check --from")
    try:
        if isinstance(entry, ByHand):
            origin = _unpacked(task, entry, folder, source)
            names = _needed(entry, origin)[0]
            there = [name for name in names if (folder / name).exists()]
            same = [n for n in there if origin == folder or filecmp.cmp(origin / n, folder / n, shallow=False)]
            wrong = [name for name in there if name not in same]
        else:
            files = {file.name: file for file in entry.wanted(everything)}
            names = list(files)
            found = {name: file_record(folder / name)[0].git_blob for name in names if (folder / name).exists()}
            same = [name for name in found if found[name] == files[name].blob]
            wrong = [f"{n} (git blob {b}, official: {files[n].blob})" for n, b in found.items() if n not in same]
        if wrong and not force:
            raise DataError(
                "files are there that are not the official ones:"
                + "".join(f"\n  - {name}" for name in wrong[:NAMED])
                + _more(wrong),
                where=str(folder),
                todo="move them away, or replace them with --force",
            )
        lacking = [name for name in names if name not in same]
        if isinstance(entry, ByHand):
            for name in lacking:
                with _placed(folder / name) as path:
                    shutil.copyfile(origin / name, path)
        else:
            offline = _contents(task, [files[name] for name in lacking], source) if source else {}
            for name in lacking:
                content = offline[name] if source else _downloaded(entry, files[name], base_url, progress)
                with _placed(folder / name) as path:
                    path.write_bytes(content)
        how: How = "copied" if source else "downloaded"
        return [Fetched(n, (folder / n).stat().st_size, how if n in lacking else "already there") for n in names]
    except OSError as error:
        raise DataError(
            f"cannot be read or written: {error}",
            where=str(folder),
            todo="free disk space, or choose a folder that you may write to with --to",
        ) from error


def states(task: str, entry: Entry, to: Path) -> dict[str, str]:
    """How each of the files is in `to`/`task`, in words, by name."""
    folder = to / task
    if isinstance(entry, ByHand):
        names, absent = _needed(entry, folder)
        return {name: "missing" if name in absent else "there" for name in names}
    found = {}
    for file in entry.files:
        path = folder / file.name
        official = path.is_file() and file_record(path)[0].git_blob == file.blob
        other = "there, but not the official file" if path.is_file() else "missing"
        found[file.name] = "there" if official else other
    return found


# What is published file by file


def _downloaded(entry: Published, file: PublishedFile, base_url: str, progress: bool) -> bytes:
    """The content of an official file. Raises DataError where it does not come, or is another one."""
    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")  # it names URLs with their credentials
    url = f"{base_url.rstrip('/')}/{quote(entry.repository)}/{entry.commit}/{quote(file.path)}"
    get = pooch.HTTPDownloader(
        progressbar=progress, chunk_size=1 << 16, timeout=TIMEOUT_S, verify=os.environ.get("SSL_CERT_FILE") or True
    )

    def downloader(url: str, path: str, manager: Any) -> None:
        """Leaves to pooch what another attempt may cure."""
        try:
            get(url, path, manager)
        except requests.RequestException as error:
            status = 500 if error.response is None else error.response.status_code
            lasting = isinstance(error, ValueError | requests.exceptions.SSLError)  # ValueError: the URL or a proxy's
            if lasting or (status < 500 and status not in (408, 425, 429)):
                raise _not_fetched(file, url, error) from None
            raise

    with tempfile.TemporaryDirectory(prefix="act-fetch-") as staging:
        store = pooch.create(staging, "", registry={file.name: None}, urls={file.name: url}, retry_if_failed=RETRIES)
        try:
            record, content = file_record(Path(store.fetch(file.name, downloader=downloader)))
        except (requests.RequestException, OSError) as error:
            raise _not_fetched(file, url, error) from None
    if record.git_blob != file.blob:
        raise DataError(
            f"{file.name} is not the official file: expected git blob {file.blob}, found {record.git_blob} "
            f"({record.bytes:,} bytes)",
            where=_scrubbed(url),
            todo="run again; where that does not help, a proxy or mirror changes the file: fetch it elsewhere and use "
            "--from",
        )
    return content


def _not_fetched(file: PublishedFile, url: str, error: Exception) -> DataError:
    # Of a URL that cannot be read the text may hold half a password.
    why = "" if isinstance(error, ValueError) else _scrubbed(str(error))
    return DataError(
        f"{file.name} cannot be fetched: {why or type(error).__name__}",
        where=_scrubbed(url),
        todo="check the network, the disk and --base-url; behind a proxy set HTTPS_PROXY "
        "(http://USER:PASSWORD@HOST:PORT), where it inspects https SSL_CERT_FILE; or fetch the files elsewhere and "
        "take them from a folder with --from",
    )


def _scrubbed(text: str) -> str:
    """Text for messages: of its URLs neither what stands before an @ nor the query."""
    return re.sub(r"\?\S*", "", re.sub(r"//\S*@", "//", text))


def _contents(task: str, files: Sequence[PublishedFile], source: Path) -> dict[str, bytes]:
    """The files of an offline folder by name: with the repository's paths, flat, or in a folder of the task's name;
    plain or .gz. Raises DataError naming all that are missing or not the official ones."""
    found: dict[str, bytes] = {}
    absent: list[str] = []
    for file in files:
        places = [source / file.path, source / file.name, source / task / file.name]
        others = []
        for path in (p for place in places for p in (place, place.with_name(f"{place.name}.gz")) if p.is_file()):
            try:
                record, content = file_record(path)
            except DataError as error:
                others.append(f"{path}: {error.what}")
                continue
            if record.git_blob == file.blob:
                found[file.name] = content
                break
            others.append(f"{path} is not the official {file.name}: git blob {record.git_blob}, expected {file.blob}")
        else:
            absent += others or [f"{file.name} is missing (looked for {file.path} and {file.name}, plain or .gz)"]
    if absent:
        raise DataError(
            "the folder does not hold all of the official files:\n" + "\n".join(f"  - {a}" for a in absent),
            where=str(source),
            todo="put the official files there, then run again; nothing was copied",
        )
    return found


# What a person has to fetch


def _unpacked(task: str, entry: ByHand, folder: Path, source: Path | None) -> Path:
    """The folder that holds all that is needed: in an unpacked archive, or where a person has put it. Raises DataError,
    which says how to get it."""
    if source is not None:
        inner = [source, *sorted(path for path in source.iterdir() if path.is_dir())]
        source = next((p for p in inner if all((p / name).is_file() for name in entry.listed)), source)
    names, absent = _needed(entry, source or folder)
    some = f"{len(absent):,} of {len(names):,} files are missing: {', '.join(absent[:NAMED])}{_more(absent)}"
    if absent and source:
        raise DataError(
            f"the folder does not hold all of {entry.name}: {some}",
            where=str(source),
            todo=f"unpack the archive from {entry.page} again, and give the folder that holds {entry.layout}",
        )
    if absent:
        begun = f"\n  so far: {some}" if len(absent) < len(names) else ""
        raise DataError(
            f"{entry.name} cannot be downloaded by a program: its publisher hands it out on {entry.page} "
            f"({entry.licence}){begun}",
            where=f"task {task}, {folder}",
            todo=f"download the archive from that page, unpack it, and run `act data fetch {task} --from FOLDER`, "
            f"which checks and copies it; or put these there yourself: {entry.layout}",
        )
    return source or folder


def _needed(entry: ByHand, folder: Path) -> tuple[list[str], list[str]]:
    """All that is needed, as far as the questions there tell, and what is missing of it. Raises DataError where one is
    no file of questions."""
    databases: set[str] = set()
    for path in (folder / name for name in entry.questions if (folder / name).is_file()):
        try:
            found = {question["db_id"] for question in json.loads(file_record(path)[1])}
            if bad := [d for d in found if not isinstance(d, str) or d in ("", ".", "..") or re.search(r"[/\\\0]", d)]:
                raise ValueError(f"not the name of a database: {bad[0]!r}")
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"not a file of questions, each with a db_id: {type(error).__name__}: {error}",
                where=str(path),
                todo="the file is truncated or another one: unpack the official archive again",
            ) from error
        databases |= found
    names = [*entry.listed, *(entry.database.replace("{db_id}", db_id) for db_id in sorted(databases))]
    return names, [name for name in names if not (folder / name).is_file()]


# Files


@contextmanager
def _placed(target: Path) -> Iterator[Path]:
    """A path to write to, which becomes `target`; a folder that stays empty goes again, for its being there says that
    it is used."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_file(target) as path:
            yield path
    finally:
        with suppress(OSError):
            target.parent.rmdir()


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
