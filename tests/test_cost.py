"""What a dataset cost, `--cost-per-hour`: python -m pytest tests/test_cost.py."""

from __future__ import annotations

import json
import re

import pytest

from cards.figures import Figures
from extract.summary import describe_totals
from hub.pending import Receipt
from tests.commands import Commands
from tests.runs import MINILM, Bench

PRICE = 360.0  # USD an hour: ten cents a second


def receipts(*counts: dict) -> list[Receipt]:
    return [Receipt(n, n + 1, (), one) for n, one in enumerate(counts)]


def test_costs_of_all_runs_add_up_at_the_price_of_each():
    """A unit of an hour with six minutes of loading at 2 USD, one of an hour at 1 USD, one without a price."""
    figures = Figures(
        receipts(
            {"milliseconds": 3_600_000, "loading_milliseconds": 360_000, "microdollars": 2_200_000},
            {"milliseconds": 3_600_000, "loading_milliseconds": 0, "microdollars": 1_000_000},
            {"milliseconds": 3_600_000},
        )
    )
    assert (figures.hours, figures.loading_hours) == (3, 0.1)
    assert (figures.cost, figures.priced_hours) == (3.2, pytest.approx(2.1))


def test_the_line_of_totals_has_time_and_cost_where_they_are_known():
    assert describe_totals({"rows": 2, "records": 2, "tokens": 9}).endswith("9 tokens, 0 kB")
    known = {"milliseconds": 7_000_000, "loading_milliseconds": 200_000, "microdollars": 5_000_000}
    assert describe_totals(known).endswith("2.0 h of workers, 5.00 USD")


def test_resumed_runs_sum_up_in_the_card_the_summary_and_the_status(tmp_path, chat_parquet):
    """Two jobs do half of the units each, a run loads again each time, and the second price is half of the first."""
    bench = Bench(tmp_path)
    job = f"run --source {chat_parquet} --model {MINILM} --engine fake --chunk-rows 15 --output ./out --num-jobs 2 --resume"
    with Commands(tmp_path, bench.env | {"STILLROOM_FAKE_SECONDS_PER_BATCH": "0.5"}) as commands:
        for number, price in enumerate((PRICE, PRICE / 2)):
            done = commands.run(*job.split(), "--job-index", str(number), "--cost-per-hour", str(price))
            assert done.code == 0, done.err
            assert re.search(r"this run: .* \d\.\d\d USD", done.err), done.err
        status = json.loads(commands.run("status", "./out", "--json").out)
    counts = [
        json.loads(line)["counts"] for line in (tmp_path / "out/_stillroom/ledger.jsonl").read_text().splitlines()
    ]
    seconds = [(one["milliseconds"] + one["loading_milliseconds"]) / 1000 for one in counts]
    assert len(counts) == 4 and sum(one["loading_milliseconds"] > 0 for one in counts) == 2, "once a run"
    prices = [PRICE if n % 2 == 0 else PRICE / 2 for n in range(4)]
    cost = sum(s * price / 3600 for s, price in zip(seconds, prices, strict=True))
    assert cost > 0.1 and status["cost_usd"] == pytest.approx(cost, abs=1e-4)
    assert status["worker_seconds"] == pytest.approx(sum(seconds))
    (totals,) = [line for line in done.err.splitlines() if "60 records of 60 rows" in line]
    assert totals.endswith(f" of workers, {status['cost_usd']:.2f} USD")
    readme = (tmp_path / "out/README.md").read_text()
    assert f"| cost | {status['cost_usd']:.2f} USD |" in readme and " with loading |" in readme
