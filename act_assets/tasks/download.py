"""One file over HTTP into its part: what is missing of it, with bounded attempts, and messages without credentials."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from resources.errors import DataError

if TYPE_CHECKING:
    import httpx2

RAW = "https://raw.githubusercontent.com"  # <repository>/<commit>/<path> of any public repository
PAUSES_S: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)  # between five attempts
LONGEST_WAIT_S = 60.0  # of a Retry-After; what asks for more is not waited for
TIMEOUT_S, CONNECT_TIMEOUT_S = 30.0, 15.0  # without a byte; until there is a connection
MAX_REDIRECTS = 5
OFFLINE = "fetch the files elsewhere and take them from a folder with --from"


class Watch(Protocol):
    """Sees how a transfer goes; sizes in bytes."""

    def began(self, name: str, have: int, total: int | None) -> None:
        """A file begins, or goes on with `have` bytes; total None where it is not known."""

    def moved(self, number: int) -> None:
        """So many bytes more."""

    def note(self, text: str) -> None:
        """Something that a person may want to know."""


class Quiet:
    """Shows nothing."""

    def began(self, name: str, have: int, total: int | None) -> None: ...
    def moved(self, number: int) -> None: ...
    def note(self, text: str) -> None: ...


class _Again(Exception):
    """The file has not come whole, and another attempt may help; it asks for `wait_s` seconds at least."""

    def __init__(self, what: str, wait_s: float = 0.0) -> None:
        super().__init__(what)
        self.wait_s = wait_s


def shown(url: str) -> str:
    """A URL for messages: without user name, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def scrubbed(text: str) -> str:
    """Text of others for messages: without what stands before an @ in a URL."""
    return re.sub(r"//\S*@", "//", text)


def checked_base(url: str) -> str:
    """A base URL without the slash at its end. Raises DataError where it is none."""
    import httpx2

    try:
        sound = re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", url) is not None and bool(httpx2.URL(url).host)
    except httpx2.InvalidURL:
        sound = False
    if not sound:
        raise DataError(
            f"not a base URL: {scrubbed(url)}",
            where="--base-url",
            todo=f"give a URL like {RAW}, of a server with the same <repository>/<commit>/<path>",
        )
    return url.rstrip("/")


def download(
    url: str, part: IO[bytes], name: str, watch: Watch | None = None, pauses_s: Sequence[float] | None = None
) -> None:
    """Appends to `part` what it lacks of the file at `url`, or writes it anew where the server cannot go on.

    What came stays in `part` whatever happens. A server's ETag makes later attempts of this call conditional; between
    calls nothing is remembered: the caller checks the content in any case. Raises DataError.
    """
    watch = watch or Quiet()
    etag: list[str] = []
    with _client() as client:
        for number, pause_s in enumerate((*(PAUSES_S if pauses_s is None else pauses_s), None), 1):
            try:
                _attempt(client, url, part, name, watch, etag)
                return
            except _Again as again:
                wait_s = max(pause_s or 0.0, again.wait_s)
                if pause_s is None or wait_s > LONGEST_WAIT_S:
                    kept = part.seek(0, os.SEEK_END)
                    going_on = f": it goes on after the {kept:,} bytes that are there" if kept else ""
                    raise DataError(
                        f"{name} cannot be fetched: {again} ({number} attempt{'s' if number > 1 else ''})",
                        where=shown(url),
                        todo=f"run the same command again later{going_on}; behind a proxy set HTTPS_PROXY; "
                        f"or {OFFLINE}",
                    ) from None
                watch.note(f"{name}: {again}; next attempt in {wait_s:g} s")
                time.sleep(wait_s)


def _client() -> httpx2.Client:
    """Takes proxies and certificates from the environment (HTTPS_PROXY, HTTP_PROXY, NO_PROXY, SSL_CERT_FILE)."""
    import httpx2

    try:
        return httpx2.Client(
            timeout=httpx2.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            headers={"User-Agent": "act-assets", "Accept-Encoding": "identity"},  # ranges of the file, not of its gzip
            follow_redirects=False,
        )
    except (httpx2.InvalidURL, ValueError, ImportError, OSError) as error:
        # The exception's own text is left out: it may hold a password.
        raise DataError(
            f"the proxy or certificate settings cannot be used ({type(error).__name__})",
            where="the environment: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE, SSL_CERT_DIR",
            todo="set proxies like http://HOST:PORT, with special characters of a password as %XX (no SOCKS), "
            "and certificate variables to files or folders that are there; or unset them",
        ) from None


def _attempt(client: httpx2.Client, url: str, part: IO[bytes], name: str, watch: Watch, etag: list[str]) -> None:
    """One request. Raises _Again where another may help, else DataError."""
    import httpx2

    have = part.seek(0, os.SEEK_END)
    asked = {"Range": f"bytes={have}-", **({"If-Range": etag[0]} if etag else {})} if have else {}
    try:
        with _answer(client, url, asked) as response:
            if response.status_code == 416 and have:
                if _total(response) == have:
                    return  # it is all there
                part.truncate(0)
                raise _Again("the part there is longer than the file; starting anew")
            if response.status_code not in (200, 206):
                _refuse(response, name, url)
            if (coding := response.headers.get("content-encoding", "identity")) != "identity":
                raise DataError(
                    f"{name}: the answer is compressed ({coding}), which was not asked for",
                    where=shown(url),
                    todo=f"a proxy or mirror changes the answers: choose another --base-url, or {OFFLINE}",
                )
            tag = response.headers.get("etag", "")
            etag[:] = [tag] if tag.startswith('"') else []  # weak ones say nothing about bytes
            if response.status_code == 206 and _start(response) != have:
                part.truncate(0)
                raise _Again("the server sent another part than asked for; starting anew")
            if response.status_code == 200 and have:
                part.truncate(0)
                have = 0
                watch.note(f"{name}: the server cannot go on in the middle; starting anew")
            total = _total(response)
            watch.began(name, have, total)
            for piece in response.iter_raw():
                _write(part, piece)
                have += len(piece)
                watch.moved(len(piece))
    except httpx2.TimeoutException as error:
        what = "no connection" if isinstance(error, httpx2.ConnectTimeout) else "nothing more came"
        limit = CONNECT_TIMEOUT_S if isinstance(error, httpx2.ConnectTimeout) else TIMEOUT_S
        raise _Again(f"{what} within {limit:g} s") from error
    except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OSError) as error:
        raise _lost(error, name, url) from None  # its text may hold credentials
    if total is not None and have != total:
        raise _Again(f"the answer ended after {have:,} of {total:,} bytes")


def _write(part: IO[bytes], piece: bytes) -> None:
    try:
        part.write(piece)
    except OSError as error:
        raise unwritable(part.name, error) from error


def unwritable(path: object, error: OSError) -> DataError:
    """The error for a file or folder that cannot be written."""
    return DataError(
        f"cannot be written: {error.strerror}",
        where=str(path),
        todo="free disk space, or choose a folder that you may write to with --to",
    )


@contextmanager
def _answer(client: httpx2.Client, url: str, headers: dict[str, str]) -> Iterator[httpx2.Response]:
    """The answer at the end of all redirects, which go to https or stay on their host and never leave https."""
    request = client.build_request("GET", url, headers=headers)
    for _ in range(MAX_REDIRECTS + 1):
        response = client.send(request, stream=True)
        try:
            following = response.next_request
            if following is None:
                yield response
                return
        finally:
            response.close()
        here, there = request.url, following.url
        if there.scheme != "https" and (there.scheme, there.host) != (here.scheme, here.host):
            raise DataError(
                f"the server redirects to {there.scheme}://{there.host}, which is neither https nor the same server",
                where=shown(url),
                todo=f"choose another --base-url, or {OFFLINE}",
            )
        request = following
    raise DataError(
        f"the server redirects more than {MAX_REDIRECTS} times",
        where=shown(url),
        todo=f"choose another --base-url, or {OFFLINE}",
    )


def _start(response: httpx2.Response) -> int | None:
    """Where the bytes of a 206 begin; None where it does not say so."""
    found = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
    return int(found[1]) if found else None


def _total(response: httpx2.Response) -> int | None:
    """The whole file's size in bytes; None where the answer does not say so."""
    if response.status_code == 200:
        length = response.headers.get("content-length", "")
        return int(length) if length.isdecimal() else None
    found = re.fullmatch(r"bytes (?:\*|\d+-\d+)/(\d+)", response.headers.get("content-range", ""))
    return int(found[1]) if found else None


def _refuse(response: httpx2.Response, name: str, url: str) -> None:
    """Raises what a status means that brings no file."""
    status = response.status_code
    if status in (408, 425, 429) or status >= 500:
        asked = response.headers.get("retry-after", "")
        wait_s = float(asked) if re.fullmatch(r"\d{1,9}", asked) else 0.0
        hint = f" and asks to wait {wait_s:g} s" if wait_s else ""
        raise _Again(f"the server answers HTTP {status}{hint}", wait_s)
    what, todo = {
        401: ("the server refuses it", f"check --base-url, choose a mirror, or {OFFLINE}"),
        403: (
            "the server or a proxy refuses it",
            f"ask for access to the host, choose a mirror with --base-url, or {OFFLINE}",
        ),
        404: ("the server has no such file", f"check --base-url, or {OFFLINE}"),
        407: (
            "the proxy asks for a name and a password",
            "set HTTPS_PROXY (for http: HTTP_PROXY) to http://USER:PASSWORD@HOST:PORT",
        ),
    }.get(status, ("the server's answer is of no use", f"choose another --base-url, or {OFFLINE}"))
    raise DataError(f"{name} cannot be fetched: {what} (HTTP {status})", where=shown(url), todo=todo)


def _lost(error: Exception, name: str, url: str) -> Exception:
    """What it means that no answer came, or not all of it."""
    import httpx2

    text = scrubbed(str(error)) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return DataError(
            f"{name} cannot be fetched: the server's certificate is not trusted ({text})",
            where=shown(url),
            todo="behind a proxy that inspects https, set SSL_CERT_FILE to its certificates",
        )
    if isinstance(error, httpx2.ProxyError) and re.match(r"4\d\d", text):
        return DataError(
            f"{name} cannot be fetched: the proxy refuses the connection ({text})",
            where=shown(url),
            todo=f"check HTTPS_PROXY (http://USER:PASSWORD@HOST:PORT) and NO_PROXY, or {OFFLINE}",
        )
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
        return DataError(
            f"{name} cannot be asked for: {text}", where=shown(url), todo=f"choose another --base-url, or {OFFLINE}"
        )
    return _Again(f"no connection: {text}" if isinstance(error, httpx2.ConnectError) else text)
