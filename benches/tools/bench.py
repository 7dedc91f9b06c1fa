"""What a tool costs over the SQL function that it runs: validation, authority and bookkeeping of helper.call.

The function adds two numbers, so that nearly all of a call's time is ours. The peer is the same function, called by the
same user in the same session. Each call a transaction of its own: with its commit, which the peer, writing nothing, does
not have. In one transaction: the call alone, round trip left out of both.
"""

import argparse

from psycopg.types.json import Jsonb

from session import admin, figure, median, milliseconds, note, user, workspace

ROUNDS = 5
ONE = 200
MANY = 500

CALL = "select helper.call('bench_add', %s)"
DIRECT = "select public.bench_add(%s, %s)"
CALLS = "select count(helper.call('bench_add', jsonb_build_object('a', n, 'b', 2))) from generate_series(1, %s) n"
DIRECTS = "select count(public.bench_add(n, 2)) from generate_series(1, %s) n"


def each(session, sql, values) -> float:
    """Milliseconds of one statement that is a transaction of its own."""
    def work():
        for at in range(ONE):
            session.execute(sql, values(at), prepare=True)
    return milliseconds(work) / ONE


def together(session, sql) -> float:
    """Milliseconds of one call of many in one statement; what they recorded is taken back."""
    with session.transaction(force_rollback=True):
        return milliseconds(lambda: session.execute(sql, [MANY])) / MANY


def main() -> None:
    argparse.ArgumentParser().parse_args()
    boss = admin()
    boss.execute("drop function if exists public.bench_add(integer, integer)")
    # Volatile, and not to be inlined: it is called each time, as a tool is.
    boss.execute("create function public.bench_add(a integer, b integer) returns integer language plpgsql as 'begin return a + b; end'")
    boss.execute("""select helper.register_function('bench_add', 'public.bench_add', 'Adds', '{"requires_confirmation": false}')""")
    session = user("tools", workspace(user("tools"), "tools"))

    ways = {
        "trivial tool, each a transaction": (
            lambda: each(session, CALL, lambda at: [Jsonb({"a": at, "b": 2})]),
            lambda: each(session, DIRECT, lambda at: [at, 2]),
        ),
        "trivial tool, in one transaction": (lambda: together(session, CALLS), lambda: together(session, DIRECTS)),
    }
    for name, (ours, theirs) in ways.items():
        # In turns, so that what else the machine does falls on both.
        ours(), theirs()
        pairs = [(ours(), theirs()) for _ in range(ROUNDS)]
        took, peer = median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)
        figure(f"{name}: calls per second", 1000 / took, "/s", "the function", 1000 / peer)
        figure(f"{name}: one call", took, "ms", "the function", peer)
        figure(f"{name}: added to the function", took - peer, "ms")
    note("the agent loop's overhead per round is not measured yet")
    boss.execute("select helper.unregister_function('bench_add')")
    boss.execute("drop function public.bench_add(integer, integer)")


main()
