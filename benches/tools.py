"""What a call of a tool costs over calling its SQL function directly: authority, validation, bookkeeping, the subtransaction.

The function inserts one row. Each way makes the same number of calls from one session, each in a transaction of its own.
"""

import argparse
import time

from session import admin, figure, median, user, workspace

ROUNDS = 5


def rate(session, sql: str, count: int) -> float:
    """Calls in a second, the median of some rounds."""
    rates = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(count):
            session.execute(sql)
        rates.append(count / (time.perf_counter() - begin))
    return median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=500)
    count = parser.parse_args().calls
    root = admin()
    root.execute("drop table if exists public.bench_ledger cascade")
    root.execute("create table public.bench_ledger (id bigserial primary key, what text)")
    root.execute("grant select, insert on public.bench_ledger to authenticated")
    root.execute("grant usage on sequence public.bench_ledger_id_seq to authenticated")
    root.execute(
        "create or replace function public.bench_write(what text) returns bigint language sql as "
        "$$ insert into public.bench_ledger (what) values (what) returning id $$"
    )
    root.execute(
        "select helper.register_function('bench_write', 'bench_write', 'Writes a line', "
        """'{"requires_confirmation": false}')"""
    )
    session = user("bench tools")
    session.execute("select set_config('helper_ai.workspace', %s, false)", [str(workspace(session, "Bench tools"))])
    direct = rate(session, "select public.bench_write('x')", count)
    called = rate(session, """select helper.call('bench_write', '{"what": "x"}')""", count)
    checked = rate(session, "select count(*) from helper.available_functions()", count)
    figure("calls of a trivial SQL tool in a second", called, "calls/s", "the function alone", direct)
    figure("what a call adds", (1 / called - 1 / direct) * 1e3, "ms")
    figure("lists of what is available in a second", checked, "calls/s")
    begin = time.perf_counter()
    session.execute(
        """select helper.call('bench_write', '{"what": "x"}', options => '{"queue": true}') from generate_series(1, %s)""",
        [count],
    )
    left = "select count(*) from helper.function_calls where finished_at is null"
    while session.execute(left).fetchone()[0]:
        time.sleep(0.005)
    figure("queued calls in a second, from enqueuing to the last result", count / (time.perf_counter() - begin), "calls/s")


main()
