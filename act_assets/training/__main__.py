"""One training job in a process of its own: `python -m act_assets.training JOB.json`.

Started by an asset (through Dagster Pipes, whose messages then carry the facts) or by hand. The process leads a
process group and ends itself, with everything it started, when the process that started it is gone.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from resources.compute import LAUNCHED, end_with_launcher, join_processes
from resources.errors import ActError

UNEXPECTED = (
    "run again with ACT_DEBUG=1 to see the traceback; if memory ran out, lower compute.micro_batch_tokens in the "
    "profile"
)


@contextmanager
def _reporting() -> Iterator[Callable[[str], None]]:
    """A log into the Dagster run that launched this process, or into nothing; of several processes the first logs."""
    if "DAGSTER_PIPES_CONTEXT" not in os.environ or os.environ.get("RANK", "0") != "0":
        yield lambda message: None
        return
    from dagster_pipes import open_dagster_pipes

    with open_dagster_pipes() as pipes:
        yield pipes.log.info


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m act_assets.training JOB.json", file=sys.stderr)
        return 2
    end_with_launcher()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries among themselves
    from act_assets.training.jobs import Job, run_job

    path = Path(arguments[0])
    rank = os.environ.get("RANK")
    error_file = path.parent / ("error.txt" if rank is None else f"error-rank-{rank}.txt")
    stage = "training"
    try:
        job = Job.read(path)
        stage = job.stage
        join_processes()
        with _reporting() as log:
            log(f"{stage}: {run_job(job)}")
    except Exception as error:
        known = isinstance(error, ActError)
        said = str(error) if known else f"{stage} failed: {type(error).__name__}: {error}\n  to do: {UNEXPECTED}"
        error_file.write_text(said, encoding="utf-8")
        if LAUNCHED not in os.environ:
            print(said, file=sys.stderr)
        if not known and os.environ.get("ACT_DEBUG"):
            traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
