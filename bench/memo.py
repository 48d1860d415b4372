"""The memo of LLM answers against diskcache and SQLite, side by side in one run.

    python bench/memo.py                                # everything; about ten minutes and 10 GB of disk
    python bench/memo.py --rows 10000,100000            # without the million

Durable answers a second: each process writes answers of 2 KB, every one on disk before the next step of its asker.
The memo is measured over its whole path (key, look-up, single-flight lock, journal, folding); `diskcache` and SQLite
write a value under a key, with synchronous=FULL in WAL mode. Ends with one line of JSON: every figure and its target.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VALUE_BYTES = 2_000
BATCH = 1_000
ASKED_AT_ONCE = 64
TARGETS = {
    "durable_per_s_1_process": (">=", 3_000),
    "durable_4_processes_over_1": (">=", 1.0),
    "look_ups_per_s_100000_rows": (">=", 30_000),
    "memory_mib_1000000_rows": ("<=", 1_024),
    "warm_asset_2000_calls_beyond_dagster_s": ("<=", 1.0),
    "warm_asset_calls_made": ("<=", 0),
}
_WORDS = " ".join(hashlib.md5(str(i).encode()).hexdigest()[: 2 + i % 8] for i in range(200_000))


def text(number: int) -> str:
    """About 2 KB that compresses like prose, different for every number."""
    start = random.Random(number).randrange(len(_WORDS) - VALUE_BYTES)
    return f"{number} {_WORDS[start : start + VALUE_BYTES - 250]}"


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


# --- durable answers ------------------------------------------------------------------------------------------


def write_memo(folder: Path, worker: int, number: int, begin: Any) -> None:
    from resources.llm.base import ChatMessage, LLMRequest, LLMResponse, Sampling
    from resources.llm.client import LLM, Memory
    from resources.llm.memo.memo import close_memos, memo_at

    class Instant:
        name, base_url = "instant", ""

        async def complete(self, request: LLMRequest) -> LLMResponse:
            return LLMResponse("an answer of a few words " * 8, "instant-1", prompt_tokens=500, output_tokens=40)

        def fingerprint(self, request: LLMRequest) -> None:
            return None

    llm = LLM(Instant(), max_concurrency=ASKED_AT_ONCE, memory=Memory(memo_at(folder)))
    requests = [
        LLMRequest("user", "m", (ChatMessage("user", text(worker * number + i)),), Sampling(), str(i))
        for i in range(number)
    ]
    begin.wait()
    llm.complete_all(requests)
    begin.wait()
    close_memos()
    begin.wait()


def write_sqlite(folder: Path, worker: int, number: int, begin: Any) -> None:
    connection = sqlite_at(folder)
    values = [(key(worker * number + i), text(worker * number + i)) for i in range(number)]
    begin.wait()
    for row in values:
        connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", row)
        connection.commit()
    begin.wait()
    connection.close()
    begin.wait()


def write_diskcache(folder: Path, worker: int, number: int, begin: Any) -> None:
    cache = diskcache_at(folder)
    values = [(key(worker * number + i), text(worker * number + i)) for i in range(number)]
    begin.wait()
    for name, value in values:
        cache.set(name, value)
    begin.wait()
    cache.close()
    begin.wait()


def sqlite_at(folder: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(folder / "answers.sqlite", timeout=120)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT)")
    return connection


def diskcache_at(folder: Path) -> Any:
    import diskcache

    return diskcache.Cache(
        str(folder / "cache"), timeout=120, sqlite_synchronous=2, eviction_policy="none", size_limit=2**40
    )


WRITERS: dict[str, Callable[..., None]] = {"memo": write_memo, "sqlite": write_sqlite, "diskcache": write_diskcache}


def durable(store: str, processes: int, number: int) -> tuple[float, float]:
    """Answers a second of all processes together, and seconds until everything was closed after that."""
    context = multiprocessing.get_context("spawn")
    begin = context.Barrier(processes + 1)
    with tempfile.TemporaryDirectory(prefix="bench-memo-") as folder:
        workers = [
            context.Process(target=WRITERS[store], args=(Path(folder), w, number, begin)) for w in range(processes)
        ]
        for worker in workers:
            worker.start()
        begin.wait(300)
        started = time.perf_counter()
        begin.wait(600)
        seconds = time.perf_counter() - started
        begin.wait(600)
        closed = time.perf_counter() - started - seconds
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0, f"{store}: a process failed"
    return processes * number / seconds, closed


# --- look-ups -------------------------------------------------------------------------------------------------


def fill_memo(folder: Path, rows: int) -> None:
    from resources.llm.memo.database import Database
    from resources.llm.memo.records import Answer

    database = Database(folder)
    for start in range(0, rows, 50_000):
        database.fold(
            [
                Answer(
                    f"{i:032x}", key(i), text(i), "instant", "", "m", 0, "user", str(i), "", "", "", "",
                    "an answer of a few words " * 8, "stop", "m", 500, 40, 0.3, None, 1.8e9 + i,
                )
                for i in range(start, min(rows, start + 50_000))
            ],
            [],
        )  # fmt: skip


def fill_sqlite(folder: Path, rows: int) -> None:
    connection = sqlite_at(folder)
    for start in range(0, rows, 50_000):
        connection.executemany(
            "INSERT OR IGNORE INTO answers VALUES (?, ?)",
            [(key(i), text(i)) for i in range(start, min(rows, start + 50_000))],
        )
        connection.commit()
    connection.close()


def fill_diskcache(folder: Path, rows: int) -> None:
    cache = diskcache_at(folder)
    for start in range(0, rows, 50_000):
        with cache.transact():
            for i in range(start, min(rows, start + 50_000)):
                cache.set(key(i), text(i))
    cache.close()


FILLERS: dict[str, Callable[[Path, int], None]] = {
    "memo": fill_memo,
    "sqlite": fill_sqlite,
    "diskcache": fill_diskcache,
}


def look_up(store: str, folder: Path, rows: int) -> None:
    """In a process of its own: prints seconds to open, look-ups a second, and peak memory as JSON."""
    draw = random.Random(5)
    batches = [[key(draw.randrange(rows)) for _ in range(BATCH)] for _ in range(10)]
    if store == "memo":
        from resources.llm.memo.memo import Memo
        from resources.llm.memo.records import Answer

        started = time.perf_counter()
        memo = Memo(folder)
        assert len(memo.look_up(batches[0][:1]).answers) == 1
        opened = time.perf_counter() - started
        find = lambda keys: memo.look_up(keys).answers  # noqa: E731
    elif store == "sqlite":
        started = time.perf_counter()
        connection = sqlite_at(folder)
        sql = "SELECT key, value FROM answers WHERE key IN (SELECT value FROM json_each(?))"
        assert len(connection.execute(sql, [json.dumps(batches[0][:1])]).fetchall()) == 1
        opened = time.perf_counter() - started
        find = lambda keys: dict(connection.execute(sql, [json.dumps(keys)]).fetchall())  # noqa: E731
    else:
        started = time.perf_counter()
        cache = diskcache_at(folder)
        assert cache.get(batches[0][0]) is not None
        opened = time.perf_counter() - started
        find = lambda keys: {k: cache.get(k) for k in keys}  # noqa: E731
    started = time.perf_counter()
    for batch in batches:
        assert len(find(batch)) == len(set(batch))
    rate = len(batches) * BATCH / (time.perf_counter() - started)
    if store == "memo":  # the memory of a process that also writes and folds
        for i in range(rows, rows + 6_000):
            answer = Answer(
                f"{i:032x}", key(i), text(i), "instant", "", "m", 0, "user", str(i), "", "", "", "",
                "an answer of a few words " * 8, "stop", "m", 500, 40, 0.3, None, 1.8e9 + i,
            )  # fmt: skip
            memo.append([answer])
        memo.close()
    memory = peak_memory_mib()
    print(json.dumps({"open_s": opened, "look_ups_per_s": rate, "memory_mib": memory}))


def peak_memory_mib() -> float:
    """Of this process alone: on Linux ru_maxrss begins with what the parent had used."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- a warm asset ---------------------------------------------------------------------------------------------


def warm_asset(calls: int = 2_000) -> dict[str, float]:
    """Seconds that an asset of so many answered questions takes beyond an asset that does nothing."""
    import dagster as dg

    from resources.llm.base import ChatMessage, LLMRequest, Sampling
    from resources.llm.rate_limit import Limits
    from resources.llm.service import CallSettings, Endpoint, open_llm

    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent.parent / "tests" / "loopback.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    url = f"http://127.0.0.1:{json.loads(server.stdout.readline())['port']}/v1"
    with tempfile.TemporaryDirectory(prefix="bench-warm-") as folder:
        endpoint = Endpoint("openai", "m", url, Limits(64))
        made: list[int] = []

        @dg.asset
        def asked() -> None:
            llm = open_llm(endpoint, CallSettings(Path(folder) / "memo"), embedded=lambda: None)  # type: ignore
            requests = [
                LLMRequest("user", "m", (ChatMessage("user", text(i)),), Sampling(), str(i)) for i in range(calls)
            ]
            llm.complete_all(requests)
            made.append(llm.usage.calls)

        @dg.asset
        def idle() -> None:
            [text(i) for i in range(calls)]

        os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"
        quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}

        def seconds(asset: Any) -> float:
            started = time.perf_counter()
            assert dg.materialize([asset], run_config=quiet).success
            return time.perf_counter() - started

        cold = seconds(asked)
        from resources.llm.memo.memo import close_memos

        close_memos()
        warm = min(seconds(asked) for _ in range(3))
        alone = min(seconds(idle) for _ in range(3))
    assert server.stdin is not None
    server.stdin.close()
    server.wait(10)
    return {"cold_s": cold, "warm_s": warm, "alone_s": alone, "calls_cold": made[0], "calls_warm": max(made[1:])}


# --- the run --------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--answers", type=int, default=8_000, help="by each process")
    parser.add_argument("--look-up", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.look_up:
        store, folder, rows = chosen.look_up
        look_up(store, Path(folder), int(rows))
        return
    figures: dict[str, Any] = {}
    print(f"durable answers a second, all processes together ({chosen.answers} answers of 2 KB by each)")
    for processes in (1, 4, 8):
        rates = {}
        for store in WRITERS:
            rates[store], closed = durable(store, processes, chosen.answers)
            figures[f"{store}_durable_per_s_{processes}_processes"] = round(rates[store])
            if store == "memo":
                figures[f"memo_folding_s_after_{processes}_processes"] = round(closed, 2)
        print(
            f"  {processes} processes: "
            + ", ".join(f"{store} {rate:,.0f}" for store, rate in rates.items())
            + f"; memo is {rates['memo'] / rates['sqlite']:.1f} x sqlite, {rates['memo'] / rates['diskcache']:.1f} x "
            f"diskcache; folding the rest {figures[f'memo_folding_s_after_{processes}_processes']} s",
            flush=True,
        )
    figures["durable_per_s_1_process"] = figures["memo_durable_per_s_1_processes"]
    for processes in (4, 8):
        ratio = figures[f"memo_durable_per_s_{processes}_processes"] / figures["durable_per_s_1_process"]
        figures[f"durable_{processes}_processes_over_1"] = round(ratio, 2)

    print(f"look-ups a second in batches of {BATCH}; seconds to open and find the first; peak memory of the process")
    for rows in (int(r) for r in chosen.rows.split(",")):
        results = {}
        for store, fill in FILLERS.items():
            folder = Path(tempfile.mkdtemp(prefix="bench-memo-"))
            try:
                fill(folder, rows)
                command = [sys.executable, __file__, "--look-up", store, str(folder), str(rows)]
                ran = subprocess.run(command, capture_output=True, text=True, check=False)
                assert ran.returncode == 0, ran.stderr
                results[store] = json.loads(ran.stdout)
                results[store]["disk_mib"] = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20
            finally:
                shutil.rmtree(folder)
            for name, value in results[store].items():
                figures[f"{store}_{name}_{rows}_rows"] = round(value, 4 if name == "open_s" else 0)
        rate = {store: r["look_ups_per_s"] for store, r in results.items()}
        print(
            f"  {rows:>9,} rows: "
            + "; ".join(
                f"{store} {r['look_ups_per_s']:,.0f}/s, open {r['open_s'] * 1e3:,.0f} ms, {r['memory_mib']:,.0f} MiB, "
                f"disk {r['disk_mib']:,.0f} MiB"
                for store, r in results.items()
            )
            + f"; memo is {rate['memo'] / rate['sqlite']:.1f} x sqlite, "
            f"{rate['memo'] / rate['diskcache']:.1f} x diskcache",
            flush=True,
        )
        figures[f"look_ups_per_s_{rows}_rows"] = figures[f"memo_look_ups_per_s_{rows}_rows"]
        figures[f"memory_mib_{rows}_rows"] = figures[f"memo_memory_mib_{rows}_rows"]

    warm = warm_asset()
    figures["warm_asset_2000_calls_beyond_dagster_s"] = round(warm["warm_s"] - warm["alone_s"], 3)
    figures["warm_asset_calls_made"] = warm["calls_warm"]
    figures["cold_asset_2000_calls_s"] = round(warm["cold_s"], 2)
    print(
        f"an asset of 2,000 questions: cold {warm['cold_s']:.1f} s ({warm['calls_cold']} calls), "
        f"warm {warm['warm_s']:.2f} s ({warm['calls_warm']} calls), without questions {warm['alone_s']:.2f} s"
    )
    print(json.dumps(judged(figures)))


def judged(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures, with target and verdict where there is one."""
    verdicts = {}
    for name, (sign, target) in TARGETS.items():
        if name in figures:
            met = figures[name] >= target if sign == ">=" else figures[name] <= target
            verdicts[name] = {"figure": figures[name], "target": f"{sign} {target}", "met": met}
    return {"bench": "memo", "targets": verdicts, "figures": figures}


if __name__ == "__main__":
    main()
