"""Processes that ask a model, started in milliseconds: forked from this program, which has loaded everything.

    python tests/resources/llm/asking_program.py < orders

Each line of standard input is a JSON object, and so are the two lines that answer it: the process ids, as soon as the
processes run, and their ends (negative: the signal). An order:

    memo, base_url     the memo's folder, and the server
    questions          how many questions there are: `question 0` ...
    processes          how many processes ask all of them, `threads` times each, each time in another order
    key                the API key that they show
    max_concurrency, fold_records, seed
    results            a folder; each process writes there what each of its threads was answered, as JSON
"""

from __future__ import annotations

import json
import os
import random
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai.resources.chat.completions  # noqa: F401
import pyarrow as pa

from resources.llm import openai_chat, pool  # noqa: F401
from resources.llm.base import ChatMessage, LLMFailure, LLMRequest, LLMResponse, Sampling
from resources.llm.memo import memo as memo_module
from resources.llm.rate_limit import Limits
from resources.llm.retry import RetrySettings
from resources.llm.service import CallSettings, Endpoint, open_llm

pa.array([""])  # loads pandas; nothing of all this has to be loaded by the processes


def requests(number: int) -> list[LLMRequest]:
    """The questions."""
    return [
        LLMRequest("generator", "m", (ChatMessage("user", f"question {i}"),), Sampling(), f"example {i}")
        for i in range(number)
    ]


def ask(order: dict[str, Any], process: int) -> None:
    """What one process does."""
    memo_module.FOLD_RECORDS = order["fold_records"]
    os.environ["OPENAI_API_KEY"] = order["key"]
    asked = requests(order["questions"])
    limits = Limits(order["max_concurrency"])
    endpoint = Endpoint("openai", "m", order["base_url"], limits, RetrySettings(timeout_s=30.0, backoff_s=0.01))
    settings = CallSettings(Path(order["memo"]))

    def thread(number: int) -> list[str]:
        places = list(range(len(asked)))
        random.Random(f"{order['seed']} {process} {number}").shuffle(places)
        llm = open_llm(endpoint, settings, embedded=_none)
        found = dict(zip(places, llm.complete_all([asked[i] for i in places]), strict=True))
        return [_text(found[i]) for i in range(len(asked))]

    with ThreadPoolExecutor(order["threads"]) as threads:
        answered = list(threads.map(thread, range(order["threads"])))
    (Path(order["results"]) / f"{process}.json").write_text(json.dumps(answered))
    memo_module.close_memos()


def _text(result: LLMResponse | LLMFailure) -> str:
    return result.text if isinstance(result, LLMResponse) else f"{result.kind}: {result.message}"


def _none() -> Any:
    raise AssertionError("no built-in provider is asked here")


def _forked(order: dict[str, Any], process: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        ask(order, process)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        pids = [_forked(order, process) for process in range(order["processes"])]
        print(json.dumps(pids), flush=True)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)


if __name__ == "__main__":
    main()
