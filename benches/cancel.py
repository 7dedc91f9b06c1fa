"""How soon a call that waits on the gateway ends when it is cancelled, runs into statement_timeout or loses its client.

The call embeds far more texts than it is given time for. The peer is pg_sleep, which waits on nothing but its latch; as
it does not look after its client by itself, it is given client_connection_check_interval = 10 ms for the last measure.
"""

import argparse
import os
import socket
import threading
import time

import psycopg

from session import DATA, URL, admin, figure, jsonl, median, note, user

ROUNDS = 11
TIMEOUT = 0.3


class Call:
    """A call in a thread of its own, with the time at which its end came over the wire."""

    def __init__(self, session, sql, values):
        self.session, self.sql, self.values = session, sql, values
        self.pid = session.info.backend_pid
        self.error = None
        self.began = time.perf_counter()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        try:
            self.session.execute(self.sql, self.values)
        except psycopg.Error as error:
            self.error = error
        self.ended = time.perf_counter()

    def end(self) -> float:
        self.thread.join(60)
        return self.ended


def is_waiting(boss, pid) -> bool:
    return boss.execute(
        "select state = 'active' and now() - query_start > '150 ms' from pg_stat_activity where pid = %s", [pid]
    ).fetchone()[0]


def until(condition, seconds: float = 60) -> float:
    start = time.perf_counter()
    while not condition():
        if time.perf_counter() - start > seconds:
            return float("nan")
        time.sleep(0.0005)
    return time.perf_counter()


def cancelled(boss, open_session, sql, values) -> float:
    session = open_session()
    call = Call(session, sql, values)
    until(lambda: is_waiting(boss, call.pid))
    start = time.perf_counter()
    boss.execute("select pg_cancel_backend(%s)", [call.pid])
    took = call.end() - start
    assert call.error.sqlstate == "57014", call.error
    session.close()
    return took


def timed_out(boss, open_session, sql, values) -> float:
    session = open_session()
    session.execute(f"set statement_timeout = {int(TIMEOUT * 1000)}")
    call = Call(session, sql, values)
    took = call.end() - call.began - TIMEOUT
    assert call.error.sqlstate == "57014", call.error
    session.close()
    return took


def gone(boss, open_session, sql, values) -> float:
    session = open_session()
    call = Call(session, sql, values)
    until(lambda: is_waiting(boss, call.pid))
    start = time.perf_counter()
    line = socket.socket(fileno=os.dup(session.fileno()))
    line.shutdown(socket.SHUT_RDWR)
    end = until(lambda: boss.execute("select count(*) from pg_stat_activity where pid = %s", [call.pid]).fetchone()[0] == 0)
    line.close()
    call.thread.join(60)
    session.close()
    return end - start


def main() -> None:
    argparse.ArgumentParser().parse_args()
    boss = admin()
    boss.execute("select helper.embed('warm')")
    # In a table, so that the call itself is short.
    texts = [document["text"] for document in jsonl(DATA / "squad/corpus.jsonl")] * 4
    boss.execute("drop table if exists public.bench_texts")
    boss.execute("create table public.bench_texts as select unnest(%s::text[]) as text", [texts])
    boss.execute("grant select on public.bench_texts to authenticated")
    call = "select count(*) from helper.embed_many((select array_agg(text) from public.bench_texts))"

    def sleeper():
        session = psycopg.connect(URL, autocommit=True)
        session.execute("set client_connection_check_interval = 10")
        return session

    ways = {"pg_cancel_backend": cancelled, "statement_timeout": timed_out, "lost client": gone}
    for name, way in ways.items():
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(way(boss, lambda: user("cancel"), call, []) * 1e3)
            theirs.append(way(boss, sleeper, "select pg_sleep(%s)", [60]) * 1e3)
        figure(f"{name}: until the call ended", median(ours), "ms", "pg_sleep", median(theirs))
    boss.execute("drop table public.bench_texts")
    idle = until(lambda: boss.execute("select (helper.status() -> 'gateway' ->> 'in_flight')::int").fetchone()[0] == 0, 10)
    counts = boss.execute("select helper.status() -> 'gateway'").fetchone()[0]
    note(f"the gateway has {counts['in_flight']} requests under way and {counts['queued_texts']} texts waiting" + ("" if idle == idle else ", STILL"))


main()
