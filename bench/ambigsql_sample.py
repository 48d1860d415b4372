"""Prints a sample of the ambiguous requests that the embedded rules make of Spider's, to be read and judged by hand.

    python bench/ambigsql_sample.py                                  # 20 twins a strategy, as Markdown
    python bench/ambigsql_sample.py --out docs/ambigsql-sample.md    # refuses to overwrite: verdicts are put in by hand

Each strategy's twins come from different databases as far as there are enough of them. Also prints, on stderr, for how
many requests of a strategy there is a twin.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

from act_assets.tasks.ambig_sql.perturbation import perturb
from act_assets.tasks.ambig_sql.rules import names_of
from act_assets.tasks.ambig_sql.spider import TASK, SpiderQuestion, read_questions, read_schemas
from act_assets.tasks.ambig_sql.strategy import Perturbed, Strategy, strategy_of
from act_assets.tasks.files import find_file

FOLDER = Path(__file__).parent.parent / "datasets" / "sample" / "ambig_sql"
SEED = 0
Twin = tuple[SpiderQuestion, Perturbed]


def make_twins(folder: Path, side: str, seed: int) -> dict[Strategy, list[Twin]]:
    """All twins of a file, by strategy; says on stderr for how many requests there is one."""
    schemas = read_schemas(find_file(TASK, folder, "tables.json"))
    twins: dict[Strategy, list[Twin]] = {strategy: [] for strategy in get_args(Strategy)}
    tried: Counter[Strategy] = Counter()
    for item in read_questions(find_file(TASK, folder, f"{side}.json")):
        strategy = strategy_of(item.query, f"{item.db_id}-{item.number - 1}", seed)
        tried[strategy] += 1
        if twin := perturb(item.question, item.query, strategy, names_of(schemas[item.db_id].tables)):
            twins[strategy].append((item, twin))
    for strategy, found in twins.items():
        share = len(found) / tried[strategy] if tried[strategy] else 0.0
        print(f"{side}, {strategy}: {len(found)} of {tried[strategy]} requests ({share:.1%})", file=sys.stderr)
    return twins


def draw(twins: list[Twin], number: int, seed: int) -> list[Twin]:
    """`number` twins, another database each until there are none left."""
    shuffled = random.Random(seed).sample(twins, len(twins))
    seen: Counter[str] = Counter()
    ranked = []
    for item, twin in shuffled:
        ranked.append((seen[item.db_id], item, twin))
        seen[item.db_id] += 1
    ranked.sort(key=lambda entry: entry[0])  # stable: first ones of a database before second ones
    return [(item, twin) for _, item, twin in ranked[:number]]


def table(twins: list[Twin]) -> str:
    """A Markdown table whose last column is empty."""
    rows = [
        "| | database | clear request | ambiguous request | clarifying question | SQL | verdict |",
        "|" + " --- |" * 7,
    ]
    for number, (item, twin) in enumerate(twins, start=1):
        cells = [str(number), item.db_id, item.question, twin.request, twin.clarifying_question]
        cells += [f"`{' '.join(item.query.split())}`", ""]
        rows.append("| " + " | ".join(" ".join(c.split()).replace("|", "\\|") for c in cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="Spider's files, plain or .gz")
    parser.add_argument("--side", default="train_spider", help="which file of questions, without .json")
    parser.add_argument("--number", type=int, default=20, help="twins of each strategy")
    parser.add_argument("--seed", type=int, default=SEED, help="of the sample (not of the strategies)")
    parser.add_argument("--out", type=Path, help="a file that does not exist yet; without it, standard output")
    options = parser.parse_args()
    if options.out and options.out.exists():
        parser.error(f"{options.out} exists and may hold verdicts: name another file, or move it away first")
    twins = make_twins(options.folder, options.side, seed=0)
    parts = [
        f"## {strategy.capitalize()}\n\n{table(draw(found, options.number, options.seed))}\n"
        for strategy, found in twins.items()
    ]
    text = "\n".join(parts)
    if options.out:
        options.out.write_text(text, "utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
