"""A fault campaign: real processes under a seeded schedule of faults, and an auditor at the end.

    python -m benchmarks.chaos --minutes 10 --seed 1 --broker mosquitto

An aggregator, agents and a broker run as processes of their own; between broker and parties stand TCP proxies. For
the given time `chaos_schedule` says what breaks. Then everything is healed, training stops, the outboxes drain, the
processes are stopped, and `chaos_audit` balances what was finished against what was folded and refused. Status 1 when
an update was lost or doubled, mass is missing, a recovery was not bit-identical, or an update got no receipt although
everything was healed; the files then stay for a look at them.

`--sabotage` runs an aggregator that breaks a law (see `chaos_sabotage`): a campaign that could not fail would
prove nothing.
"""

import argparse
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

from benchmarks.chaos_brokers import BROKERS
from benchmarks.chaos_campaign import Campaign, Outcome
from benchmarks.chaos_schedule import Kind
from benchmarks.harness import Options, Row, make_parser, print_table, read_options, write_result

_AGENTS: Final = 8
_PER_MINUTE: Final = 300.0
_SABOTAGES: Final = ("none", "ack", "receipt", "ledger")


def main() -> None:
    """Run, print, write."""
    parser = make_parser("chaos", "real processes under a seeded schedule of faults, and an auditor")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long things are broken")
    parser.add_argument("--broker", choices=BROKERS, default="mosquitto")
    parser.add_argument("--agents", type=int, default=_AGENTS)
    parser.add_argument("--per-minute", type=float, default=_PER_MINUTE, help="faults that begin in a minute")
    parser.add_argument(
        "--sabotage", choices=_SABOTAGES, default="none", help="break a law, to see the auditor find it"
    )
    parser.add_argument(
        "--only", type=Kind, choices=list(Kind), nargs="+", default=list(Kind), help="kinds of fault"
    )
    arguments = parser.parse_args()
    options = read_options(arguments)
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit("stopped"))  # nothing stays mounted
    minutes = min(arguments.minutes, 0.75) if options.quick else arguments.minutes
    folder = Path(tempfile.mkdtemp(prefix="fedmq-chaos-"))
    campaign = Campaign(
        folder,
        broker=arguments.broker,
        seed=options.seed,
        sabotage=arguments.sabotage,
        agents=arguments.agents,
        only=frozenset(arguments.only),
    )
    outcome = campaign.run(60 * minutes, arguments.per_minute)
    _report(options, arguments, minutes, outcome)
    if outcome.is_clean:
        shutil.rmtree(folder)
    else:
        sys.exit(f"NOT CLEAN: what is left of it is in {folder}")


def _report(options: Options, arguments: argparse.Namespace, minutes: float, outcome: Outcome) -> None:
    accounts = outcome.accounts
    rows: list[Row] = [{"kind": kind, "faults": count} for kind, count in sorted(outcome.faults.items())]
    print_table("Faults", rows, {"kind": "kind", "faults": "faults"})
    facts: dict[str, object] = {
        "broker": arguments.broker,
        "minutes": minutes,
        "agents": arguments.agents,
        "sabotage": arguments.sabotage,
        "faults": outcome.faults.total(),
        "faults_not_possible_here": sorted(outcome.impossible),
        "returned": accounts.returned,
        "finished": accounts.finished,
        "folded": accounts.folded,
        "refused": sum(accounts.refused.values()),
        "refused_by_reason": dict(accounts.refused),
        "in_outbox": accounts.in_outbox,
        "wiped": accounts.wiped,
        "lost": len(accounts.lost),
        "doubled": len(accounts.doubled),
        "unknown": accounts.unknown,
        "mass_errors": list(accounts.mass),
        "recoveries": outcome.recoveries,
        "recoveries_bit_identical": outcome.identical,
        "recovery_problems": list(outcome.problems),
        "bases_checked": accounts.bases_checked,
        "bases_wrong": accounts.bases_wrong,
        "drained": outcome.drained,
        "drain_seconds": round(outcome.drain_seconds, 1),
        "ended_by_themselves": len(outcome.deaths),
        "last_words": dict(Counter(outcome.deaths).most_common(10)),
    }
    shown: list[Row] = [
        {"what": name.replace("_", " "), "value": str(value)}
        for name, value in facts.items()
        if isinstance(value, int | float | str)
    ]
    print_table("Accounts", shown, {"what": "", "value": ""})
    write_result("chaos", options, rows, **facts)


if __name__ == "__main__":
    main()
