"""`act data`: files come whole or not at all, an interrupted download goes on, and every refusal says what to do."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from act_assets.cli import app as cli
from act_assets.cli import data as data_cli
from act_assets.tasks import catalog as data_catalog
from act_assets.tasks import download as data_download
from act_assets.tasks.catalog import ByHand, Published, entry_of, load_catalog
from act_assets.tasks.fetch import Options, fetch
from resources.errors import DataError

REPO = Path(__file__).parents[2]
COMMIT = "0123456789" * 4
TRAIN = random.Random(1).randbytes(300_000)
DEV = b'[{"turn": "short"}]\n'
TEST = b"no answers here\n"
HALF = len(TRAIN) // 2
FILES = {"data/toy/train.json": TRAIN, "data/toy/dev.json": DEV, "data/toy/test.json": TEST}
SHIPPED_PAUSES_S = data_download.PAUSES_S
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\x00" % len(content) + content).hexdigest()


def flipped(content: bytes) -> bytes:
    """One byte is another."""
    changed = bytearray(content)
    changed[len(changed) // 3] ^= 1
    return bytes(changed)


# --- a server of files, and a proxy, on 127.0.0.1 -----------------------------------------------------------------


@dataclass
class Asked:
    path: str
    headers: dict[str, str]
    proxied: bool
    status: int = 0
    sent: int = 0  # bytes of the body

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass
class Server:
    """Answers each request for the large file in the next way of `ways`, then in the usual way."""

    files: dict[str, bytes]
    ways: list[str] = field(default_factory=list)
    always: str = "ok"
    etag: str = '"v1"'
    asked: list[Asked] = field(default_factory=list)
    port: int = 0
    resume: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def large(self) -> list[Asked]:
        return [a for a in self.asked if a.path.endswith("train.json")]


def handler_of(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(parts.path, headers, proxied=bool(parts.netloc))
            server.asked.append(asked)
            large = parts.path.endswith("train.json")
            way = (server.ways.pop(0) if server.ways else server.always) if large else "ok"
            with contextlib.suppress(ConnectionError):
                self.answer(asked, way)

        def do_CONNECT(self) -> None:
            asked = Asked(self.path, {}, proxied=True)
            server.asked.append(asked)
            self.head(asked, int(server.always), 0)

        def head(self, asked: Asked, status: int, length: int | None, **headers: str) -> None:
            asked.status = status
            self.send_response(status)
            if length is not None:
                self.send_header("Content-Length", str(length))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()

        def body(self, asked: Asked, content: bytes) -> None:
            self.wfile.write(content)
            self.wfile.flush()
            asked.sent += len(content)

        def answer(self, asked: Asked, way: str) -> None:
            kind, _, detail = way.partition(" ")
            content = next((c for path, c in server.files.items() if asked.path.endswith(f"{COMMIT}/{path}")), None)
            if kind.isdecimal() or content is None:
                more = {"Retry_After": detail} if detail else {}
                self.head(asked, int(kind) if kind.isdecimal() else 404, 0, **more)
                return
            if kind.startswith("redirect"):
                self.head(asked, int(kind.removeprefix("redirect") or 302), 0, Location=detail)
                return
            if kind == "flip":
                content = flipped(content)
            elif kind == "page":
                content = b"<html>please log in</html>"
            elif kind == "zip":
                content = gzip.compress(content)
            start = 0
            given = re.fullmatch(r"bytes=(\d+)-", asked.range or "")
            condition = asked.headers.get("if-range")
            if given and kind != "norange" and condition in (None, server.etag):
                start = int(given[1])
            if given and start >= len(content):
                self.head(asked, 416, 0, Content_Range=f"bytes */{len(content)}")
                return
            rest = content[start:]
            tags = {"ETag": server.etag} if server.etag else {}
            if kind == "zip":
                tags["Content_Encoding"] = "gzip"
            status = 200
            if start or (given and kind == "otherrange"):
                first = 0 if kind == "otherrange" else start
                rest, status = content[first:], 206
                tags["Content_Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            if kind == "unsized":  # its end is the connection's
                self.close_connection = True
                self.head(asked, status, None, Connection="close", **tags)
                self.body(asked, rest)
                return
            self.head(asked, status, len(rest), **tags)
            if kind == "cut":
                self.body(asked, rest[: len(rest) // 2])
                self.close_connection = True
            elif kind == "stall":
                self.body(asked, rest[: len(rest) // 2])
                server.resume.wait(20)
                self.close_connection = True
            else:
                self.body(asked, rest)

    return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    given = Server(FILES)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_of(given)) as http:
        given.port = http.server_address[1]
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield given
        given.resume.set()
        http.shutdown()
        thread.join()


# --- a small catalog, and the command -----------------------------------------------------------------------------

CATALOG: dict[str, Any] = {
    "toy": {
        "source": "github",
        "repository": "someone/Toy-Data",
        "commit": COMMIT,
        "licence": "MIT",
        "citation": "Some, One: Toys, 2020",
        "files": [
            {"path": "data/toy/train.json", "blob": git_blob(TRAIN)},
            {"path": "data/toy/dev.json", "blob": git_blob(DEV)},
            {"path": "data/toy/test.json", "blob": git_blob(TEST), "optional": "it holds no answers"},
        ],
    },
    "sqlish": {
        "source": "by_hand",
        "name": "Spiderling 1.0",
        "page": "https://spiderling.example",
        "licence": "CC BY-SA 4.0",
        "citation": "Other: Spiderling",
        "files": ["tables.json"],
        "questions": ["train_spider.json", "dev.json"],
        "database": "database/{db_id}/{db_id}.sqlite",
    },
}


@pytest.fixture(autouse=True)
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalog and an ACT_HOME of its own, no proxies, short pauses."""
    for name in (*PROXIES, *(p.lower() for p in PROXIES), "ACT_DEBUG", "ACT_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "160")
    use_catalog(tmp_path, monkeypatch, CATALOG)
    monkeypatch.setattr(data_download, "PAUSES_S", (0.01,) * 4)


def use_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any) -> Path:
    path = tmp_path / "catalog.yaml"
    path.write_text(content if isinstance(content, str) else json.dumps(content))  # JSON is YAML
    monkeypatch.setattr(data_catalog, "CATALOG", path)
    return path


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Act = Callable[..., Ended]


@pytest.fixture
def act(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Act:
    """Runs `act data` with arguments, as its entry point does."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["act", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0, out, err)

    return run


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "data"


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def toy(to: Path, server: Server, **options: Any) -> list[str]:
    """Fetches the small task; how each file came."""
    found = fetch("toy", entry_of("toy"), to, Options(base_url=server.url, **options))
    assert all(f.path.stat().st_size == f.bytes for f in found)
    return [f.how for f in found]


def refusal(to: Path, server: Server, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        toy(to, server, **options)
    assert caught.value.where and caught.value.todo
    return caught.value


def whole(to: Path) -> bool:
    folder = to / "toy"
    right = (folder / "train.json").read_bytes() == TRAIN and (folder / "dev.json").read_bytes() == DEV
    return right and names(folder) == ["dev.json", "train.json"]


def leave_part(to: Path, content: bytes) -> Path:
    part = to / "toy" / "train.json.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content)
    return part


# --- downloads ----------------------------------------------------------------------------------------------------


def test_files_come_whole_under_their_urls_and_the_optional_one_does_not(to: Path, server: Server) -> None:
    assert toy(to, server) == ["downloaded", "downloaded"]
    assert whole(to)
    assert [a.path for a in server.asked] == [
        f"/someone/Toy-Data/{COMMIT}/data/toy/{name}" for name in ("train.json", "dev.json")
    ]
    assert all(a.range is None and a.headers["accept-encoding"] == "identity" for a in server.asked)
    assert (to / "toy" / "train.json").stat().st_mode & 0o777 == 0o666 & ~umask()
    assert toy(to, server, everything=True) == ["already there", "already there", "downloaded"]
    assert (to / "toy" / "test.json").read_bytes() == TEST


def umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


def test_what_is_there_is_not_asked_for_again(to: Path, server: Server) -> None:
    toy(to, server)
    server.asked.clear()
    assert toy(to, server) == ["already there", "already there"]
    assert toy(to, server, force=True) == ["already there", "already there"]
    assert server.asked == []


def test_a_cut_answer_goes_on_where_it_stopped(to: Path, server: Server) -> None:
    server.ways = ["cut", "cut"]
    toy(to, server)
    assert whole(to)
    assert [(a.range, a.status, a.sent) for a in server.large] == [
        (None, 200, HALF),
        (f"bytes={HALF}-", 206, HALF // 2),
        (f"bytes={HALF + HALF // 2}-", 206, HALF - HALF // 2),
    ]
    assert [a.headers.get("if-range") for a in server.large] == [None, '"v1"', '"v1"']


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_strong_etag_a_range_is_asked_for_without_a_condition(to: Path, server: Server, etag: str) -> None:
    server.etag, server.ways = etag, ["cut"]
    toy(to, server)
    assert whole(to)
    assert [a.headers.get("if-range") for a in server.large] == [None, None]
    assert server.large[1].sent == HALF


def test_a_file_that_changed_between_two_attempts_is_taken_anew(
    to: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.ways = ["cut"]
    monkeypatch.setattr(time, "sleep", lambda _: setattr(server, "etag", '"v2"'))
    toy(to, server)
    assert whole(to)
    assert [(a.headers.get("if-range"), a.status, a.sent) for a in server.large] == [
        (None, 200, HALF),
        ('"v1"', 200, len(TRAIN)),
    ]


def test_a_later_call_goes_on_with_what_an_earlier_one_left(to: Path, server: Server) -> None:
    server.always = "cut"
    error = refusal(to, server, pauses_s=(0.0,))
    assert "train.json cannot be fetched" in error.what and "(2 attempts)" in error.what
    there = HALF + HALF // 2
    assert f"it goes on after the {there:,} bytes that are there" in error.todo
    assert names(to / "toy") == ["train.json.part"]
    server.always = "ok"
    server.asked.clear()
    toy(to, server)
    assert whole(to)
    assert [(a.range, a.sent) for a in server.large] == [(f"bytes={there}-", len(TRAIN) - there)]


def test_attempts_are_bounded_and_their_pauses_grow(to: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.always = "503"
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    error = refusal(to, server, pauses_s=SHIPPED_PAUSES_S)
    assert "HTTP 503 (5 attempts)" in error.what and "bytes that are there" not in error.todo
    assert waited == [1, 2, 4, 8]
    assert names(to) == [], "no empty part or folder stays: a folder's being there says that it is used"


@pytest.mark.parametrize("way", ["503", "429", "500", "408"])
def test_a_server_that_is_busy_is_asked_again(to: Path, server: Server, way: str) -> None:
    server.ways = [way, way]
    toy(to, server)
    assert whole(to)
    assert len(server.large) == 3


def test_the_servers_wish_to_wait_is_kept_or_told(to: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    server.ways = ["429 7"]
    toy(to, server)
    assert waited == [7]
    (to / "toy" / "train.json").unlink()
    server.ways = ["429 3600"]
    assert "HTTP 429 and asks to wait 3600 s (1 attempt)" in refusal(to, server).what
    assert waited == [7]


@pytest.mark.parametrize(
    ("status", "what", "todo"),
    [
        (404, "the server has no such file (HTTP 404)", "check --base-url"),
        (403, "the server or a proxy refuses it (HTTP 403)", "ask for access to the host"),
        (401, "the server refuses it (HTTP 401)", "check --base-url"),
        (407, "the proxy asks for a name and a password (HTTP 407)", "set HTTPS_PROXY"),
        (204, "the server's answer is of no use (HTTP 204)", "--from"),
    ],
)
def test_what_waiting_does_not_cure_is_asked_once(to: Path, server: Server, status: int, what: str, todo: str) -> None:
    server.always = str(status)
    error = refusal(to, server)
    assert what in error.what and todo in error.todo
    assert error.where == f"{server.url}/someone/Toy-Data/{COMMIT}/data/toy/train.json"
    assert len(server.large) == 1
    assert names(to) == []


def test_a_server_without_ranges_makes_it_start_anew(to: Path, server: Server) -> None:
    leave_part(to, TRAIN[:1000])
    server.always = "norange"
    toy(to, server)
    assert whole(to)
    assert [(a.range, a.status, a.sent) for a in server.large] == [("bytes=1000-", 200, len(TRAIN))]


def test_a_server_that_sends_another_range_makes_it_start_anew(to: Path, server: Server) -> None:
    leave_part(to, TRAIN[:1000])
    server.ways = ["otherrange"]
    toy(to, server)
    assert whole(to)
    assert [a.range for a in server.large] == ["bytes=1000-", None]


def test_a_part_that_is_whole_needs_no_network(to: Path, server: Server) -> None:
    leave_part(to, TRAIN)
    toy(to, server)
    assert whole(to)
    assert server.large == []


def test_a_part_that_is_too_long_is_thrown_away(to: Path, server: Server) -> None:
    leave_part(to, TRAIN + b"more")
    toy(to, server)
    assert whole(to)
    assert [(a.range, a.status) for a in server.large] == [(f"bytes={len(TRAIN) + 4}-", 416), (None, 200)]


def test_a_part_of_the_right_size_that_is_wrong_is_refused_then_fetched_anew(to: Path, server: Server) -> None:
    leave_part(to, flipped(TRAIN))
    assert "is not the official file" in refusal(to, server).what
    assert names(to) == []
    assert [a.status for a in server.large] == [416]
    toy(to, server)
    assert whole(to)


def test_an_answer_without_a_length_is_taken_to_its_end(to: Path, server: Server) -> None:
    server.always = "unsized"
    toy(to, server)
    assert whole(to)


@pytest.mark.parametrize(("way", "content"), [("flip", flipped(TRAIN)), ("page", b"<html>please log in</html>")])
def test_what_is_not_the_official_file_never_gets_its_name(to: Path, server: Server, way: str, content: bytes) -> None:
    server.ways = [way]
    error = refusal(to, server)
    assert error.what == (
        f"train.json is not the official file: expected git blob {git_blob(TRAIN)}, found {git_blob(content)} "
        f"({len(content):,} bytes)"
    )
    assert str(to / "toy" / "train.json") in error.where and server.url in error.where
    assert names(to) == [], "the part is gone too"
    toy(to, server)
    assert whole(to)
    assert server.large[-1].range is None


def test_a_resumed_part_of_other_content_is_refused_and_removed(to: Path, server: Server) -> None:
    part = leave_part(to, flipped(TRAIN)[:HALF])
    assert "is not the official file" in refusal(to, server).what
    assert not part.exists()


def test_a_compressed_answer_is_refused_by_name(to: Path, server: Server) -> None:
    server.always = "zip"
    assert "the answer is compressed (gzip)" in refusal(to, server).what
    assert names(to) == []


def test_a_server_that_is_not_there_is_said(to: Path, server: Server) -> None:
    error = None
    with pytest.raises(DataError) as caught:
        fetch("toy", entry_of("toy"), to, Options(base_url="http://127.0.0.1:9"))
    error = caught.value
    assert "no connection: " in error.what and "(5 attempts)" in error.what
    assert "HTTPS_PROXY" in error.todo and "--from" in error.todo


def test_a_server_that_falls_silent_is_not_waited_for_without_end(
    to: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_download, "TIMEOUT_S", 0.2)
    server.always = "stall"
    error = refusal(to, server, pauses_s=())
    assert "nothing more came within 0.2 s" in error.what
    assert (to / "toy" / "train.json.part").read_bytes() == TRAIN[:HALF]


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_redirects_on_the_same_server_are_followed_with_the_range(to: Path, server: Server, code: int) -> None:
    leave_part(to, TRAIN[:1000])
    server.ways = [f"redirect{code} /elsewhere/{COMMIT}/data/toy/train.json"]
    toy(to, server)
    assert whole(to)
    assert [(a.path.split("/")[1], a.range) for a in server.large] == [
        ("someone", "bytes=1000-"),
        ("elsewhere", "bytes=1000-"),
    ]


@pytest.mark.parametrize(
    ("location", "what"),
    [
        ("http://other.example/train.json?token=secret", "redirects to http://other.example, which is neither https"),
        ("ftp://127.0.0.1/train.json", "redirects to ftp://127.0.0.1, which is neither https"),
    ],
)
def test_redirects_elsewhere_without_https_are_refused(to: Path, server: Server, location: str, what: str) -> None:
    server.always = f"redirect {location}"
    error = refusal(to, server)
    assert what in error.what and "secret" not in str(error)
    assert len(server.large) == 1


def test_a_redirect_from_https_to_http_is_refused(to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2

    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(str(request.url))
        return httpx2.Response(302, headers={"Location": "http://files.example/train.json"})

    client = httpx2.Client(transport=httpx2.MockTransport(answer))
    monkeypatch.setattr(data_download, "_client", lambda: client)
    with pytest.raises(DataError, match=r"redirects to http://files\.example"):
        fetch("toy", entry_of("toy"), to, Options(base_url="https://files.example"))
    assert len(asked) == 1


def test_redirects_in_a_circle_end(to: Path, server: Server) -> None:
    server.always = f"redirect /again/{COMMIT}/data/toy/train.json"
    assert "redirects more than 5 times" in refusal(to, server).what
    assert len(server.large) == 6


def test_two_processes_do_not_write_the_same_part(to: Path, server: Server) -> None:
    part = leave_part(to, TRAIN[:1000])
    with part.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another process is fetching this file" in refusal(to, server).what
    assert part.read_bytes() == TRAIN[:1000]
    toy(to, server)
    assert whole(to)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").write_text("")
    error = refusal(tmp_path / "file", server)
    assert "cannot be written: " in error.what and "--to" in error.todo


def test_a_full_disk_keeps_what_came(to: Path, server: Server) -> None:
    """The limit on a file's size stands for the disk's: the kernel refuses the write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, before[1]))
    try:
        error = refusal(to, server)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be written: File too large" in error.what and "free disk space" in error.todo
    part = to / "toy" / "train.json.part"
    assert error.where == str(part)
    there = part.stat().st_size
    assert 0 < there <= HALF and part.read_bytes() == TRAIN[:there]
    toy(to, server)
    assert whole(to) and server.large[-1].range == f"bytes={there}-"


# --- files that are there -----------------------------------------------------------------------------------------


def test_a_wrong_file_is_not_replaced_unless_asked(to: Path, server: Server) -> None:
    mine = to / "toy" / "train.json"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"my own")
    error = refusal(to, server)
    assert f"train.json (git blob {git_blob(b'my own')}, official: {git_blob(TRAIN)})" in error.what
    assert "--force" in error.todo
    assert server.asked == [] and mine.read_bytes() == b"my own"
    server.always = "404"
    refusal(to, server, force=True)
    assert mine.read_bytes() == b"my own", "it stays until the right one is there"
    server.always = "ok"
    assert toy(to, server, force=True) == ["downloaded", "downloaded"]
    assert whole(to)


# --- proxies and credentials --------------------------------------------------------------------------------------


def test_a_proxy_from_the_environment_is_used(to: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://me:pa%40ss@127.0.0.1:{server.port}")
    fetch("toy", entry_of("toy"), to, Options(base_url="http://files.example/mirror"))
    assert whole(to)
    assert {(a.proxied, a.headers["host"]) for a in server.asked} == {(True, "files.example")}
    login = base64.b64encode(b"me:pa@ss").decode()
    assert {a.headers["proxy-authorization"] for a in server.asked} == {f"Basic {login}"}
    assert server.asked[0].path.startswith("/mirror/someone/")


def test_no_proxy_is_heeded(to: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    toy(to, server)
    assert whole(to) and not server.asked[0].proxied


@pytest.mark.parametrize(
    ("status", "attempts", "what"), [(403, 1, "the proxy refuses the connection (403"), (503, 5, "503")]
)
def test_a_proxy_that_does_not_connect_is_said(
    to: Path, server: Server, monkeypatch: pytest.MonkeyPatch, status: int, attempts: int, what: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{server.port}")
    server.always = str(status)
    with pytest.raises(DataError) as caught:
        fetch("toy", entry_of("toy"), to)
    assert what in caught.value.what and "HTTPS_PROXY" in caught.value.todo and "secret" not in str(caught.value)
    assert [a.path for a in server.asked] == ["raw.githubusercontent.com:443"] * attempts


def test_a_certificate_that_is_not_trusted_is_said(to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2

    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(str(request.url))
        raise httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed")

    client = httpx2.Client(transport=httpx2.MockTransport(answer))
    monkeypatch.setattr(data_download, "_client", lambda: client)
    with pytest.raises(DataError, match="certificate is not trusted") as caught:
        fetch("toy", entry_of("toy"), to)
    assert "SSL_CERT_FILE" in caught.value.todo
    assert asked == [f"https://raw.githubusercontent.com/someone/Toy-Data/{COMMIT}/data/toy/train.json"]


def test_no_credentials_are_in_messages(to: Path, server: Server, monkeypatch: pytest.MonkeyPatch, act: Act) -> None:
    base_url = f"http://me:secret@127.0.0.1:{server.port}"
    server.ways = ["cut", "404"]
    ended = act("fetch", "toy", "--to", to, "--base-url", base_url)
    assert ended.code == 1 and server.url in ended.err
    login = base64.b64encode(b"me:secret").decode()
    assert {a.headers["authorization"] for a in server.asked} == {f"Basic {login}"}
    server.ways = ["page"]
    ended += act("fetch", "toy", "--to", to / "other", "--base-url", base_url)
    assert "is not the official file" in ended[-1]
    for wrong in ("http://me:secret@host:port", "http://me:sec/ret@host", "http://me:secret@", "ftp://me:secret@host"):
        ended += act("fetch", "toy", "--to", to, "--base-url", wrong)
        assert "not a base URL" in ended[-1]
    for proxy in ("http://me:sec/ret@proxy", "gopher://me:secret@proxy", "http://me:secret@127.0.0.1:9"):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        ended += act("fetch", "toy", "--to", to, "--base-url", server.url)
        assert ended[-3] == 1 and "HTTPS_PROXY" in ended[-1]
    said = "".join(map(str, ended))
    assert "secret" not in said and "ret@" not in said and "me:" not in said and "Traceback" not in said


@pytest.mark.parametrize("text", ["x.example", "http://", "https:///path", "http://host/?a=b", "http://a b/", ""])
def test_what_is_no_base_url_is_refused(to: Path, text: str) -> None:
    with pytest.raises(DataError, match="not a base URL"):
        fetch("toy", entry_of("toy"), to, Options(base_url=text))


# --- from a folder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "data/toy", "toy"], ids=["flat", "the repository's paths", "a data folder"])
@pytest.mark.parametrize("packed", [False, True])
def test_an_offline_folder_takes_the_place_of_the_network(
    tmp_path: Path, to: Path, server: Server, place: str, packed: bool
) -> None:
    source = tmp_path / "usb"
    (source / place).mkdir(parents=True)
    for path, content in FILES.items():
        name = Path(path).name + (".gz" if packed else "")
        (source / place / name).write_bytes(gzip.compress(content) if packed else content)
    assert toy(to, server, source=source) == ["copied", "copied"]
    assert whole(to) and server.asked == []
    assert toy(to, server, source=source, everything=True) == ["already there", "already there", "copied"]


def test_an_offline_folder_that_lacks_files_is_refused_with_all_of_them(
    tmp_path: Path, to: Path, server: Server
) -> None:
    source = tmp_path / "usb"
    source.mkdir()
    (source / "train.json").write_bytes(flipped(TRAIN))
    error = refusal(to, server, source=source, everything=True)
    assert error.what.splitlines() == [
        "the folder does not hold all of the official files:",
        f"  - {source / 'train.json'} is not the official train.json: git blob {git_blob(flipped(TRAIN))}, "
        f"expected git blob {git_blob(TRAIN)}",
        "  - dev.json is missing (looked for data/toy/dev.json and dev.json, plain or .gz)",
        "  - test.json is missing (looked for data/toy/test.json and test.json, plain or .gz)",
    ]
    assert error.where == str(source) and names(to) == []


def test_a_damaged_gz_file_in_an_offline_folder_is_named(tmp_path: Path, to: Path, server: Server) -> None:
    (tmp_path / "train.json.gz").write_bytes(gzip.compress(TRAIN)[:-2000])
    (tmp_path / "dev.json").write_bytes(DEV)
    error = refusal(to, server, source=tmp_path)
    assert "train.json.gz is not the official train.json: cannot be read: " in error.what


def test_of_several_files_of_a_name_the_official_one_is_taken(tmp_path: Path, to: Path, server: Server) -> None:
    (tmp_path / "train.json").write_bytes(b"another task's")
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "train.json").write_bytes(TRAIN)
    (tmp_path / "dev.json").write_bytes(DEV)
    toy(to, server, source=tmp_path)
    assert whole(to)


def test_an_offline_folder_that_is_not_there_is_said(tmp_path: Path, to: Path, server: Server) -> None:
    assert "is not there" in refusal(to, server, source=tmp_path / "none").what


# --- what a person has to fetch -----------------------------------------------------------------------------------


def spiderling(folder: Path, databases: Sequence[str], without: Sequence[str] = ()) -> Path:
    """An unpacked archive whose questions name the databases; the first half in training."""
    half = len(databases) // 2
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tables.json").write_text("[]")
    for name, ids in (("train_spider.json", databases[:half]), ("dev.json", databases[half:])):
        (folder / name).write_text(json.dumps([{"db_id": i, "question": "?"} for i in [*ids, *ids]]))
    for db_id in databases:
        if db_id not in without:
            (folder / "database" / db_id).mkdir(parents=True)
            (folder / "database" / db_id / f"{db_id}.sqlite").write_bytes(f"SQLite {db_id}".encode())
            (folder / "database" / db_id / "schema.sql").write_text("not needed")
    return folder


def test_what_cannot_be_downloaded_is_explained(act: Act, to: Path) -> None:
    ended = act("fetch", "sqlish", "--to", to)
    assert ended.code == 1
    for text in (
        "Spiderling 1.0 cannot be downloaded by a program",
        "https://spiderling.example (CC BY-SA 4.0)",
        f"{to}/sqlish",
        "act data fetch sqlish --from FOLDER",
        "tables.json, train_spider.json, dev.json, database/<db_id>/<db_id>.sqlite",
    ):
        assert text in ended.err
    assert "so far" not in ended.err and not to.exists()


@pytest.mark.parametrize("inner", ["", "spider_data", "sqlish"])
def test_an_unpacked_archive_is_checked_and_copied(tmp_path: Path, to: Path, act: Act, inner: str) -> None:
    databases = [f"db_{i:02}" for i in range(12)]
    source = spiderling(tmp_path / "unpacked" / inner, databases)
    ended = act("fetch", "sqlish", "--to", to, "--from", tmp_path / "unpacked")
    assert ended.code == 0, ended.err
    assert "15 files, " in ended.out and "15 copied" in ended.out
    copied = {p.relative_to(to / "sqlish") for p in (to / "sqlish").rglob("*") if p.is_file()}
    assert copied == {p.relative_to(source) for p in source.rglob("*") if p.is_file() and p.name != "schema.sql"}
    assert all((to / "sqlish" / p).read_bytes() == (source / p).read_bytes() for p in copied)
    assert "15 already there" in act("fetch", "sqlish", "--to", to).out
    assert "15 already there" in act("fetch", "sqlish", "--to", to, "--from", tmp_path / "unpacked").out


def test_missing_databases_are_counted_and_the_first_ten_named(tmp_path: Path, to: Path, act: Act) -> None:
    databases = [f"db_{i:02}" for i in range(20)]
    source = spiderling(tmp_path / "unpacked", databases, without=databases[:12])
    ended = act("fetch", "sqlish", "--to", to, "--from", source)
    assert ended.code == 1
    first = ", ".join(f"database/{i}/{i}.sqlite" for i in databases[:10])
    assert f"does not hold all of Spiderling 1.0: 12 of 23 files are missing: {first} and 2 more" in ended.err
    assert str(source) in ended.err and not to.exists()


def test_a_missing_file_is_named_with_what_else_is_missing(tmp_path: Path, to: Path, act: Act) -> None:
    source = spiderling(tmp_path / "unpacked", ["a", "b"], without=["b"])
    (source / "tables.json").unlink()
    ended = act("fetch", "sqlish", "--to", to, "--from", source)
    assert "2 of 5 files are missing: tables.json, database/b/b.sqlite" in ended.err


def test_files_put_there_by_hand_are_counted(to: Path, act: Act) -> None:
    spiderling(to / "sqlish", ["a", "b", "c"], without=["b"])
    ended = act("fetch", "sqlish", "--to", to)
    assert ended.code == 1
    assert "so far: 1 of 6 files are missing: database/b/b.sqlite" in ended.err


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("[", "not a file of questions"),
        ('[{"id": 1}]', "KeyError: 'db_id'"),
        ("[1]", "not a file of questions"),
        ('[{"db_id": "../../etc"}]', "not the name of a database: '../../etc'"),
        ('[{"db_id": 3}]', "not the name of a database: 3"),
        ('[{"db_id": [3]}]', "not a file of questions"),
    ],
)
def test_questions_that_are_none_are_refused(tmp_path: Path, to: Path, content: str, what: str) -> None:
    source = spiderling(tmp_path / "unpacked", ["a", "b"])
    (source / "dev.json").write_text(content)
    with pytest.raises(DataError) as caught:
        fetch("sqlish", entry_of("sqlish"), to, Options(source=source))
    assert what in caught.value.what and caught.value.where == str(source / "dev.json")


def test_a_differing_file_is_not_replaced_unless_asked_here_either(tmp_path: Path, to: Path, act: Act) -> None:
    source = spiderling(tmp_path / "unpacked", ["a", "b"])
    (to / "sqlish").mkdir(parents=True)
    (to / "sqlish" / "tables.json").write_text("{}")
    for folder in (source, to / "sqlish"):  # the same size and time do not make it the same file
        os.utime(folder / "tables.json", (1e9, 1e9))
    ended = act("fetch", "sqlish", "--to", to, "--from", source)
    assert ended.code == 1 and "- tables.json" in ended.err and "--force" in ended.err
    assert names(to / "sqlish") == ["tables.json"]
    assert act("fetch", "sqlish", "--to", to, "--from", source, "--force").code == 0
    assert (to / "sqlish" / "tables.json").read_text() == "[]"


# --- the command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["fetch", "list"])
def test_help_shows_an_example(act: Act, command: str) -> None:
    ended = act(command, "--help")
    assert ended.code == 0
    assert f"Example: act data {command}" in " ".join(ended.out.replace("│", " ").split())


def test_the_command_says_where_the_files_are_and_how_to_use_them(
    act: Act, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = act("fetch", "toy", "--base-url", server.url)
    folder = tmp_path / "home" / "data"
    assert ended.code == 0 and whole(folder)
    assert ended.out.splitlines() == [
        "train.json: downloaded, 293.0 kB, verified",
        "dev.json: downloaded, 20 bytes, verified",
        f"the official files of toy are in {folder}/toy",
        f"licence: MIT (github.com/someone/Toy-Data, commit {COMMIT[:12]})",
        "please cite: Some, One: Toys, 2020",
        f"to use them: export ACT_DATA_DIR={folder}",
    ]
    assert ended.err.splitlines() == ["  train.json: begins of 293.0 kB", "  dev.json: begins of 20 bytes"]
    monkeypatch.setenv("ACT_DATA_DIR", str(folder))
    ended = act("fetch", "toy", "--base-url", server.url)
    assert ended.out.splitlines()[0] == "train.json: already there, 293.0 kB, verified"
    assert ended.out.splitlines()[-1] == "ACT_DATA_DIR is this data folder: nothing has to be set"
    assert ended.err == ""


def test_act_data_dir_is_the_default_and_to_wins(
    act: Act, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACT_DATA_DIR", str(tmp_path / "chosen"))
    assert act("fetch", "toy", "--base-url", server.url).code == 0
    assert whole(tmp_path / "chosen")
    ended = act("fetch", "toy", "--base-url", server.url, "--to", tmp_path / "a b")
    assert whole(tmp_path / "a b")
    assert ended.out.splitlines()[-1] == f"to use them: export ACT_DATA_DIR='{tmp_path}/a b'"


def test_a_terminal_shows_a_bar(
    to: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    monkeypatch.setattr(data_cli, "err", Console(stderr=True, force_terminal=True, width=100))
    server.ways = ["cut"]
    with data_cli._watched() as watch:
        fetch("toy", entry_of("toy"), to, Options(base_url=server.url), watch)
        watch._progress.refresh()
    shown = capfd.readouterr().err
    assert whole(to) and "dev.json" in shown and "next attempt in 0.01 s" in shown


def test_the_list_shows_files_states_and_licences(act: Act, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACT_DATA_DIR", str(to))
    leave_part(to, TRAIN[:1000])
    (to / "toy" / "dev.json").write_bytes(DEV)
    spiderling(to / "sqlish", [f"db_{i:02}" for i in range(20)], without=["db_19"])
    ended = act("list")
    assert (ended.code, ended.err) == (0, "")
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]
    for line in (
        "toy train.json begun (1,000 bytes)",
        "dev.json there",
        "test.json missing (optional: it holds no answers)",
        "sqlish tables.json there",
        "and 13 more 1 missing",
        f"toy: github.com/someone/Toy-Data, commit {COMMIT[:12]}; licence MIT",
        "sqlish: Spiderling 1.0, https://spiderling.example; licence CC BY-SA 4.0",
        f"data folder: {to}",
    ):
        assert line in lines
    (to / "toy" / "train.json").write_bytes(b"mine")
    assert "there, but not the official file" in act("list").out


def test_options_that_exclude_each_other_and_unknown_tasks_are_refused(act: Act, tmp_path: Path) -> None:
    ended = act("fetch", "toy", "--from", tmp_path, "--base-url", "http://x.example")
    assert ended.code == 1 and "exclude each other" in ended.err
    ended = act("fetch", "nope")
    assert ended.code == 1
    assert "no official files are listed for task 'nope'" in ended.err and "sqlish, toy" in ended.err


# --- interrupts ---------------------------------------------------------------------------------------------------

CHILD = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
from act_assets.cli import app as cli
from act_assets.tasks import catalog as data_catalog
data_catalog.CATALOG = Path(sys.argv.pop(1))
cli.main()
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_download_leaves_only_its_part_and_goes_on(
    tmp_path: Path, to: Path, server: Server, how: signal.Signals
) -> None:
    server.ways = ["stall"]
    arguments = [str(tmp_path / "catalog.yaml"), "data", "fetch", "toy", "--to", str(to), "--base-url", server.url]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    part = to / "toy" / "train.json.part"
    try:
        until = time.monotonic() + 20
        while not (part.is_file() and part.stat().st_size > HALF // 2) and time.monotonic() < until:
            time.sleep(0.01)
        child.send_signal(how)
        _, err = child.communicate(timeout=20)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == (130 if how == signal.SIGINT else -how)
    assert "Traceback" not in err
    assert names(to / "toy") == ["train.json.part"]
    there = part.stat().st_size
    assert part.read_bytes() == TRAIN[:there]
    if how == signal.SIGINT:
        assert there == HALF
    toy(to, server)
    assert whole(to)
    assert server.large[1].range == f"bytes={there}-"
    assert server.large[1].sent == len(TRAIN) - there


# --- the catalog --------------------------------------------------------------------------------------------------


def test_the_shipped_catalog_names_the_official_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_catalog, "CATALOG", REPO / "datasets" / "catalog.yaml")
    catalog = load_catalog()
    assert sorted(catalog) == ["abg_coqa", "ambig_sql", "pacific"]
    pacific, abg_coqa, ambig_sql = catalog["pacific"], catalog["abg_coqa"], catalog["ambig_sql"]
    assert isinstance(pacific, Published) and isinstance(abg_coqa, Published) and isinstance(ambig_sql, ByHand)
    assert (pacific.repository, pacific.commit, pacific.licence) == (
        "dengyang17/PACIFIC",
        "66a52ad4fd9eb7ad71e82a5c0bfb1de226366827",
        "MIT",
    )
    assert {file.path: file.blob for file in pacific.files} == {
        "data/pacific/train.json": "1fd0a1c33b982688564fdcde49f7f3101e74c282",
        "data/pacific/validation.json": "f3431ba51054abcd6919622a549833420ba9a47d",
        "data/pacific/test.json": "ab49cc94f0c5055db952b82f49ff9b6838942d9a",
    }
    assert [file.name for file in pacific.wanted(False)] == ["train.json", "validation.json"]
    assert (abg_coqa.repository, abg_coqa.commit, abg_coqa.licence) == (
        "MeiqiGuo/AKBC2021-Abg-CoQA",
        "3fce317899212847c22e8a6d74dcb0f1b3cb4b56",
        "MIT",
    )
    assert {file.path: file.blob for file in abg_coqa.files} == {
        "abg-coqa/coqa_abg_train.json": "abcfad2a91bdecb4efc97d471cc62bea3496f777",
        "abg-coqa/coqa_abg_val.json": "0d69ebae94e027793161317336982fb671ddb615",
        "abg-coqa/coqa_abg_test.json": "83fbb9da39414478b6fae43b2674f5b3e5a9d8f2",
    }
    assert len(abg_coqa.wanted(False)) == 3
    assert (ambig_sql.page, ambig_sql.licence) == ("https://yale-lily.github.io/spider", "CC BY-SA 4.0")
    assert ambig_sql.layout == "tables.json, train_spider.json, dev.json, database/<db_id>/<db_id>.sqlite"


def test_all_mistakes_of_a_catalog_are_told_at_once(act: Act, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = CATALOG["toy"]
    twice = [*good["files"], {"path": "other/dev.json", "blob": git_blob(b"")}]
    path = use_catalog(
        tmp_path,
        monkeypatch,
        {
            "toy": {**good, "comit": "x", "commit": "main", "repository": "Toy"},
            "shelf": {**good, "files": twice},
            "climbing": {**good, "files": [{"path": "../x.json", "blob": 12, "size": 3}]},
            "empty": {**good, "files": []},
            "numbers": {k: v for k, v in good.items() if k != "licence"},
            "Bad Name": good,
            "flat": 3,
            "where": {"repository": "a/b"},
            "tape": {"source": "tape"},
            "sqlish": {**CATALOG["sqlish"], "page": "spider", "database": "database/{name}.sqlite", "questions": []},
        },
    )
    ended = act("list")
    assert ended.code == 1
    said = [line.strip() for line in ended.err.splitlines()]
    assert said[0] == "error: the catalog has 17 mistakes:"
    for start in (
        "- toy: comit: unknown key",
        "- toy: commit: string should match",
        "- toy: repository: string should match",
        "- shelf: files: two files have the same name: dev.json",
        "- climbing: files.0.path: a path inside the folder is needed, like data/train.json (given: '../x.json')",
        "- climbing: files.0.blob: input should be a valid string (given: 12)",
        "- climbing: files.0.size: unknown key",
        "- empty: files: tuple should have at least 1 item",
        "- numbers: licence: missing",
        "- Bad Name: not the name of a task",
        "- flat: not an entry with keys (given: 3)",
        "- where: source: missing",
        "- tape: source: one of github, by_hand is needed (given: 'tape')",
        "- sqlish: page: string should match",
        "- sqlish: database: a path with {db_id}, and no other braces, is needed",
        "- sqlish: questions: tuple should have at least 1 item",
    ):
        assert any(line.startswith(start) for line in said), start
    assert f"where: {path}" in said


@pytest.mark.parametrize(
    ("content", "what"), [("[", "not valid YAML"), ("", "names no task"), ("- a", "names no task")]
)
def test_a_catalog_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, what: str
) -> None:
    path = use_catalog(tmp_path, monkeypatch, content)
    with pytest.raises(DataError, match=what) as caught:
        load_catalog()
    assert caught.value.where == str(path) and caught.value.todo


def test_a_missing_catalog_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_catalog, "CATALOG", tmp_path / "none.yaml")
    with pytest.raises(DataError, match="the catalog of official files cannot be read") as caught:
        load_catalog()
    assert caught.value.where == str(tmp_path / "none.yaml") and "datasets/" in caught.value.todo
