"""`act data`: files come whole or not at all, and what is refused stays as it was."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import Result
from typer.testing import CliRunner

from act_assets.cli.data import data_app
from act_assets.tasks import catalog as data_catalog
from act_assets.tasks import fetch as data_fetch
from act_assets.tasks.catalog import ByHand, Published, entry_of, load_catalog
from act_assets.tasks.fetch import fetch
from resources.errors import ActError, DataError

pytestmark = pytest.mark.integration

REPO = Path(__file__).parents[2]
COMMIT = "0123456789" * 4
TRAIN = random.Random(1).randbytes(300_000)
DEV = b'[{"turn": "short"}]\n'
TEST = b"no answers here\n"
FILES = {"data/toy/train.json": TRAIN, "data/toy/dev.json": DEV, "data/toy/test.json": TEST}


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\x00" % len(content) + content).hexdigest()


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


class Server:
    """Answers each request for train.json in the next of `ways` (a status, "cut", "stall", a body), then rightly."""

    def __init__(self) -> None:
        self.ways: list[str | int | bytes] = []
        self.asked: list[dict[str, str]] = []
        self.port = 0
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def server() -> Iterator[Server]:
    given = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            given.asked.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
            content = next((c for p, c in FILES.items() if path.endswith(f"/someone/Toy-Data/{COMMIT}/{p}")), None)
            way = given.ways.pop(0) if given.ways and path.endswith("train.json") else ""
            if content is None or isinstance(way, int):
                self.send_error(way if isinstance(way, int) else 404)
                return
            content = way if isinstance(way, bytes) else content
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if way in ("cut", "stall") else content)
            if way == "stall":
                given.released.wait(20)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        given.port = http.server_address[1]
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield given
        given.released.set()
        http.shutdown()


@pytest.fixture(autouse=True)
def pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A catalog and an ACT_HOME of its own, no proxies, and pauses that are noted instead of slept."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "ACT_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("ACT_HOME", str(tmp_path / "home"))
    use_catalog(tmp_path, monkeypatch, CATALOG)
    slept: list[float] = []
    monkeypatch.setattr("pooch.core.time.sleep", slept.append)
    return slept


def use_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any) -> Path:
    path = tmp_path / "catalog.yaml"
    path.write_text(content if isinstance(content, str) else json.dumps(content))  # JSON is YAML
    monkeypatch.setattr(data_catalog, "CATALOG", path)
    return path


def act(*arguments: object) -> Result:
    """Runs `act data` with arguments; what it refuses is the result's `exception`."""
    return CliRunner(env={"COLUMNS": "160"}).invoke(data_app, [str(a) for a in arguments])


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "data"


def toy(to: Path, server: Server | None = None, **options: Any) -> list[str]:
    """Fetches the small task; how each file came."""
    if server:
        options.setdefault("base_url", server.url)
    return [f.how for f in fetch("toy", entry_of("toy"), to, **options)]


def refusal(to: Path, server: Server | None = None, **options: Any) -> DataError:
    """The error of a fetch that leaves the folder as it was."""
    before = there(to)
    with pytest.raises(DataError) as caught:
        toy(to, server, **options)
    assert caught.value.where and caught.value.todo and there(to) == before
    return caught.value


def there(to: Path) -> dict[str, bytes | None]:
    """All that is in the data folder."""
    return {str(p.relative_to(to)): p.read_bytes() if p.is_file() else None for p in to.rglob("*")}


WHOLE = {"toy": None, "toy/train.json": TRAIN, "toy/dev.json": DEV}


# Downloads


def test_files_come_whole_and_only_once(to: Path, server: Server) -> None:
    assert toy(to, server) == ["downloaded", "downloaded"] and there(to) == WHOLE
    assert [a["path"] for a in server.asked] == [f"/someone/Toy-Data/{COMMIT}/{p}" for p in list(FILES)[:2]]
    umask = os.umask(0)
    os.umask(umask)
    assert (to / "toy" / "train.json").stat().st_mode & 0o777 == 0o666 & ~umask
    assert toy(to, server, force=True) == ["already there", "already there"] and len(server.asked) == 2
    assert toy(to, server, everything=True) == ["already there", "already there", "downloaded"]
    assert there(to) == {**WHOLE, "toy/test.json": TEST}


@pytest.mark.parametrize("way", ["cut", 503, 429, 500, 408])
def test_what_another_attempt_may_cure_is_tried_again_five_times(
    to: Path, server: Server, pauses: list[float], way: str | int
) -> None:
    server.ways = [way] * 5
    refusal(to, server)
    assert pauses == [1, 2, 3, 4]
    server.ways = [way]
    toy(to, server)
    assert there(to) == WHOLE


@pytest.mark.parametrize("status", [404, 403, 401, 407])
def test_what_waiting_does_not_cure_is_asked_once(to: Path, server: Server, status: int) -> None:
    server.ways = [status]
    error = refusal(to, server)
    assert str(status) in error.what and len(server.asked) == 1
    assert error.where == f"{server.url}/someone/Toy-Data/{COMMIT}/data/toy/train.json"


@pytest.mark.parametrize("content", [TRAIN[:-1] + b"x", b"<html>please log in</html>", b""])
def test_what_is_not_the_official_file_never_gets_its_name(to: Path, server: Server, content: bytes) -> None:
    server.ways = [content]
    error = refusal(to, server)
    assert git_blob(TRAIN) in error.what and git_blob(content) in error.what and server.url in error.where


def test_a_server_that_falls_silent_or_is_not_there_is_not_waited_for_without_end(
    to: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_fetch, "TIMEOUT_S", 0.1)
    server.ways = ["stall"] * 5
    refusal(to, server)
    assert "HTTPS_PROXY" in refusal(to, base_url="http://127.0.0.1:9").todo


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, to: Path, server: Server) -> None:
    """The limit on a file's size stands for the disk's: the kernel refuses the write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(TRAIN) // 2, before[1]))
    try:
        refusal(to, server)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (tmp_path / "file").write_text("")
    assert "--to" in refusal(tmp_path / "file", server).todo


def test_a_wrong_file_is_not_replaced_unless_asked_and_stays_until_the_right_one_is_there(
    to: Path, server: Server
) -> None:
    (to / "toy").mkdir(parents=True)
    (to / "toy" / "train.json").write_bytes(b"my own")
    assert "--force" in refusal(to, server).todo and server.asked == []
    server.ways = [404]
    refusal(to, server, force=True)
    toy(to, server, force=True)
    assert there(to) == WHOLE


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_download_leaves_nothing_that_blocks_the_next(
    tmp_path: Path, to: Path, server: Server, how: signal.Signals
) -> None:
    server.ways = ["stall"]
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from act_assets.cli import app; from act_assets.tasks import catalog; from pathlib import Path;"
        "catalog.CATALOG = Path(sys.argv.pop(1)); app.main()"
    )
    arguments = [str(tmp_path / "catalog.yaml"), "data", "fetch", "toy", "--to", str(to), "--base-url", server.url]
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=REPO, env=environment, stderr=subprocess.PIPE, text=True
    ) as child:
        until = time.monotonic() + 30
        while not any(p.is_file() and p.stat().st_size for p in (tmp_path / "tmp").rglob("*")):
            assert time.monotonic() < until
            threading.Event().wait(0.01)
        child.send_signal(how)
        _, err = child.communicate(timeout=20)
    assert child.returncode == (130 if how == signal.SIGINT else -how) and "Traceback" not in err
    assert there(to) == {} and (how == signal.SIGKILL or not list((tmp_path / "tmp").iterdir()))
    toy(to, server)
    assert there(to) == WHOLE


# Proxies and credentials


def test_proxies_come_from_the_environment(to: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://me:pa%40ss@127.0.0.1:{server.port}")
    toy(to, base_url="http://files.example/mirror")
    assert there(to) == WHOLE and {a["host"] for a in server.asked} == {"files.example"}
    assert server.asked[0]["path"].startswith("http://files.example/mirror/someone/")
    assert "proxy-authorization" in server.asked[0]
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    toy(to / "other", server)


def test_no_credentials_are_in_messages(
    to: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    base_url = f"http://me:secret@127.0.0.1:{server.port}"
    server.ways = ["cut", 404, b"page", 404]
    wrong = ["http://me:secret@host:port", "http://me:sec/ret@host", "http://me:secret@", "ftp://me:secret@host", "x"]
    errors = [refusal(to, base_url=url) for url in (base_url, base_url, *wrong)]
    assert "authorization" in server.asked[0]
    for proxy in ("http://me:sec/ret@proxy", "gopher://me:secret@proxy", "http://me:secret@127.0.0.1:9"):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        errors.append(refusal(to, server))
    assert not any(told in str(error) for error in errors for told in ("secret", "ret@", "me:"))
    assert "me:" not in capfd.readouterr().err, "nor in what pooch logs"


# From a folder


@pytest.mark.parametrize("place", ["", "data/toy", "toy"], ids=["flat", "the repository's paths", "a data folder"])
@pytest.mark.parametrize("packed", [False, True])
def test_an_offline_folder_takes_the_place_of_the_network(tmp_path: Path, to: Path, place: str, packed: bool) -> None:
    source = tmp_path / "usb"
    (source / place).mkdir(parents=True)
    for path, content in FILES.items():
        name = Path(path).name + (".gz" if packed else "")
        (source / place / name).write_bytes(gzip.compress(content) if packed else content)
    (source / "train.json.gz").write_bytes(b"another task's")  # of several files of a name the official one is taken
    if place or not packed:
        assert toy(to, source=source) == ["copied", "copied"] and there(to) == WHOLE


def test_an_offline_folder_that_lacks_files_is_refused_with_all_of_them(tmp_path: Path, to: Path) -> None:
    source = tmp_path / "usb"
    refusal(to, source=source)  # it is not there
    source.mkdir()
    (source / "train.json").write_bytes(b"changed")
    (source / "test.json.gz").write_bytes(gzip.compress(TEST * 1000)[:-10])
    error = refusal(to, source=source, everything=True)
    for told in (git_blob(b"changed"), "dev.json is missing", f"{source / 'test.json.gz'}: "):
        assert told in error.what


# What a person has to fetch


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


def by_hand(to: Path, source: Path | None = None, **options: Any) -> list[str]:
    return [f.how for f in fetch("sqlish", entry_of("sqlish"), to, source=source, **options)]


@pytest.mark.parametrize("inner", ["", "spider_data"])
def test_an_unpacked_archive_is_checked_and_copied(tmp_path: Path, to: Path, inner: str) -> None:
    source = spiderling(tmp_path / "unpacked" / inner, [f"db_{i:02}" for i in range(12)])
    assert by_hand(to, tmp_path / "unpacked") == ["copied"] * 15
    assert there(to / "sqlish") == {p: c for p, c in there(source).items() if not p.endswith("schema.sql")}
    assert by_hand(to) == by_hand(to, tmp_path / "unpacked") == ["already there"] * 15


def test_what_is_missing_is_counted_and_the_first_ten_named(tmp_path: Path, to: Path) -> None:
    databases = [f"db_{i:02}" for i in range(20)]
    source = spiderling(tmp_path / "unpacked", databases, without=databases[:12])
    spiderling(to / "sqlish", ["a", "b", "c"], without=["b"])
    with pytest.raises(DataError, match=r"12 of 23 files are missing: .*db_09.sqlite and 2 more"):
        by_hand(tmp_path / "new", source)
    with pytest.raises(DataError, match=r"so far: 1 of 6 files are missing: database/b/b.sqlite"):
        by_hand(to)
    with pytest.raises(DataError) as caught:
        by_hand(tmp_path / "new")
    assert "https://spiderling.example" in caught.value.what and "--from" in caught.value.todo
    assert "<db_id>" in caught.value.todo and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "content", ["[", '[{"id": 1}]', "[1]", '[{"db_id": "../../etc"}]', '[{"db_id": 3}]', '[{"db_id": [3]}]']
)
def test_questions_that_are_none_are_refused(tmp_path: Path, to: Path, content: str) -> None:
    source = spiderling(tmp_path / "unpacked", ["a", "b"])
    (source / "dev.json").write_text(content)
    with pytest.raises(DataError) as caught:
        by_hand(to, source)
    assert caught.value.where == str(source / "dev.json") and not to.exists()


def test_a_differing_file_is_not_replaced_unless_asked_here_either(tmp_path: Path, to: Path) -> None:
    source = spiderling(tmp_path / "unpacked", ["a", "b"])
    (to / "sqlish").mkdir(parents=True)
    (to / "sqlish" / "tables.json").write_text("{}")
    for folder in (source, to / "sqlish"):  # the same size and time do not make it the same file
        os.utime(folder / "tables.json", (1e9, 1e9))
    with pytest.raises(DataError, match=r"- tables.json"):
        by_hand(to, source)
    assert there(to) == {"sqlish": None, "sqlish/tables.json": b"{}"}
    assert set(by_hand(to, source, force=True)) == {"copied"}
    assert (to / "sqlish" / "tables.json").read_text() == "[]"


# The command


def test_the_command_says_where_the_files_are_and_how_to_use_them(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "home" / "data"
    assert act("fetch", "toy", "--base-url", server.url).output == (
        "train.json: downloaded, 293.0 kB, verified\n"
        "dev.json: downloaded, 20 bytes, verified\n"
        f"the official files of toy are in {folder}/toy\n"
        f"licence: MIT (github.com/someone/Toy-Data, commit {COMMIT[:12]})\n"
        "please cite: Some, One: Toys, 2020\n"
        f"to use them: export ACT_DATA_DIR={folder}\n"
    )
    monkeypatch.setenv("ACT_DATA_DIR", str(tmp_path / "chosen"))
    assert "nothing has to be set" in act("fetch", "toy", "--base-url", server.url).output
    assert there(tmp_path / "chosen") == WHOLE
    last = act("fetch", "toy", "--base-url", server.url, "--to", tmp_path / "a b").output.splitlines()[-1]
    assert last == f"to use them: export ACT_DATA_DIR='{tmp_path}/a b'"
    spiderling(tmp_path / "unpacked", [f"db_{i:02}" for i in range(12)])
    assert "15 files, " in act("fetch", "sqlish", "--from", tmp_path / "unpacked").output


def test_the_list_shows_files_states_and_licences(to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACT_DATA_DIR", str(to))
    spiderling(to / "sqlish", [f"db_{i:02}" for i in range(20)], without=["db_19"])
    (to / "toy").mkdir()
    (to / "toy" / "train.json").write_bytes(b"mine")
    (to / "toy" / "dev.json").write_bytes(DEV)
    lines = [" ".join(line.split()) for line in act("list").output.splitlines()]
    for line in (
        "toy train.json there, but not the official file",
        "dev.json there",
        "test.json missing (optional: it holds no answers)",
        "sqlish tables.json there",
        "and 13 more 1 missing",
        f"toy: github.com/someone/Toy-Data, commit {COMMIT[:12]}; licence MIT",
        "sqlish: Spiderling 1.0, https://spiderling.example; licence CC BY-SA 4.0",
        f"data folder: {to}",
    ):
        assert line in lines


def test_options_that_exclude_each_other_and_unknown_tasks_are_refused(tmp_path: Path) -> None:
    for arguments in (["toy", "--from", tmp_path, "--base-url", "http://x.example"], ["nope"]):
        error = act("fetch", *arguments).exception
        assert isinstance(error, ActError) and error.todo


# The catalog


def test_the_shipped_catalog_names_the_official_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_catalog, "CATALOG", REPO / "datasets" / "catalog.yaml")
    pacific, abg_coqa, ambig_sql = (load_catalog()[task] for task in ("pacific", "abg_coqa", "ambig_sql"))
    assert isinstance(pacific, Published) and isinstance(abg_coqa, Published) and isinstance(ambig_sql, ByHand)
    assert pacific.origin == "github.com/dengyang17/PACIFIC, commit 66a52ad4fd9e"
    assert {file.name: file.blob for file in pacific.wanted(False)} == {
        "train.json": "1fd0a1c33b982688564fdcde49f7f3101e74c282",
        "validation.json": "f3431ba51054abcd6919622a549833420ba9a47d",
    }
    assert abg_coqa.origin == "github.com/MeiqiGuo/AKBC2021-Abg-CoQA, commit 3fce31789921"
    assert {file.name: file.blob for file in abg_coqa.wanted(True)} == {
        "coqa_abg_train.json": "abcfad2a91bdecb4efc97d471cc62bea3496f777",
        "coqa_abg_val.json": "0d69ebae94e027793161317336982fb671ddb615",
        "coqa_abg_test.json": "83fbb9da39414478b6fae43b2674f5b3e5a9d8f2",
    }
    assert ambig_sql.layout == "tables.json, train_spider.json, dev.json, database/<db_id>/<db_id>.sqlite"


def test_all_mistakes_of_a_catalog_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, sql = CATALOG["toy"], CATALOG["sqlish"]
    content = {
        "toy": {**good, "comit": "x", "commit": "main", "repository": "Toy"},
        "climbing": {**good, "files": [{"path": "../x.json", "blob": 12, "size": 3}]},
        "empty": {**good, "files": []},
        "bare": {k: v for k, v in good.items() if k != "licence"},
        "Bad Name": good,
        "flat": 3,
        "tape": {"source": "tape"},
        "sqlish": {**sql, "page": "spider", "database": "database/{name}.sqlite", "questions": []},
    }
    path = use_catalog(tmp_path, monkeypatch, content)
    with pytest.raises(DataError) as caught:
        load_catalog()
    assert caught.value.where == str(path)
    said = caught.value.what.splitlines()
    numbers = {"toy": 3, "climbing": 4, "empty": 1, "bare": 1, "Bad Name": 1, "flat": 1, "tape": 1, "sqlish": 3}
    assert {task: sum(line.startswith(f"  - {task}") for line in said) for task in content} == numbers
    assert said[0] == "the catalog has 15 mistakes:"


@pytest.mark.parametrize("content", ["[", "", "- a", None])
def test_a_catalog_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = use_catalog(tmp_path, monkeypatch, content or "")
    if content is None:
        path.unlink()
    with pytest.raises(DataError) as caught:
        load_catalog()
    assert caught.value.where == str(path) and caught.value.todo
