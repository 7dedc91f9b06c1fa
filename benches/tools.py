"""What a call of a tool costs over calling its SQL function directly, and a round of a model that calls one over its completions.

The function inserts one row. Whole calls are each a transaction of their own, and commit as the server is set to; where the
time of a call goes is measured inside one transaction, so that no commit is in it.
"""

import argparse
import http.server
import json
import threading
import time

from session import admin, figure, median, note, user, workspace

ROUNDS = 5
CALL = """select helper.call('bench_write', '{"what": "x"}')"""
DIRECT = "select public.bench_write('x')"


def rate(session, sql: str, count: int) -> float:
    """Calls in a second, the median of some rounds."""
    rates = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(count):
            session.execute(sql)
        rates.append(count / (time.perf_counter() - begin))
    return median(rates)


def inside(session, statement: str, count: int) -> float:
    """Milliseconds of one of many in a transaction that is taken back; an error of each is caught."""
    body = (
        f"do $do$ begin for n in 1..{count} loop begin {statement}; exception when sqlstate '22023' then null; end; "
        "end loop; end $do$"
    )
    times = []
    for _ in range(ROUNDS):
        session.execute("begin")
        begin = time.perf_counter()
        session.execute(body)
        times.append((time.perf_counter() - begin) / count * 1e3)
        session.execute("rollback")
    return median(times)


def calls(session, count: int) -> None:
    direct = rate(session, DIRECT, count)
    called = rate(session, CALL, count)
    figure("calls of a trivial SQL tool in a second", called, "calls/s", "the function alone", direct)
    figure("what a call adds, with its commit", (1 / called - 1 / direct) * 1e3, "ms")
    session.execute("set synchronous_commit = off")
    unwaited, alone = rate(session, CALL, count), rate(session, DIRECT, count)
    session.execute("set synchronous_commit = on")
    figure("the same where no commit waits for the disk", unwaited, "calls/s", "the function alone", alone)

    session.execute("""select helper.call('bench_write', '{"what": "known"}', idempotency_key => 'bench')""")
    ways = {
        "direct": "perform public.bench_write('x')",
        "call": """perform helper.call('bench_write', '{"what": "x"}')""",
        # Ends when who may call what is known, and that this call was made before.
        "known": """perform helper.call('bench_write', '{"what": "known"}', idempotency_key => 'bench')""",
        # Ends when the arguments have been looked at.
        "refused": """perform helper.call('bench_write', '{"what": 1}')""",
        "raised": "raise exception sqlstate '22023' using message = 'no'",
        "nothing": "null",
    }
    took = {name: inside(session, statement, count) for name, statement in ways.items()}
    added = took["call"] - took["direct"]
    authority = took["known"] - took["nothing"]
    validation = max(took["refused"] - took["raised"] - authority, 0)
    figure("what a call adds, without its commit", added, "ms")
    figure("of that, who may call what (authority)", authority, "ms")
    figure("of that, whether the arguments fit (validation)", validation, "ms")
    figure("of that, running and recording it (bookkeeping)", added - authority - validation, "ms")


def queued(session, count: int) -> None:
    begin = time.perf_counter()
    session.execute(
        """select helper.call('bench_write', '{"what": "x"}', options => '{"queue": true}') from generate_series(1, %s)""",
        [count],
    )
    left = "select count(*) from helper.function_calls where finished_at is null"
    while session.execute(left).fetchone()[0]:
        time.sleep(0.005)
    figure("queued calls in a second, from enqueuing to the last result", count / (time.perf_counter() - begin), "calls/s")


class Provider(http.server.BaseHTTPRequestHandler):
    """Answers at once: has a tool called, as often as the question says, and then says its last words."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_POST(self) -> None:
        messages = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"]
        question = next(message["content"] for message in messages if message["role"] == "user")
        done = sum(message["role"] == "tool" for message in messages)
        wanted = int(question.split()[-1]) if question.split()[-1].isdigit() else 0
        message, reason = {"role": "assistant", "content": "Done."}, "stop"
        if done < wanted:
            function = {"name": "bench_read", "arguments": json.dumps({"n": done})}
            message = {"role": "assistant", "content": None, "tool_calls": [{"id": f"call_{done}", "type": "function", "function": function}]}
            reason = "tool_calls"
        body = json.dumps(
            {
                "id": "x",
                "object": "chat.completion",
                "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": reason}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
            }
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


def agent(root, session) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    root.execute("select helper.set_provider('bench', 'openai_compatible', %s, options => '{\"allow_private\": true}')", [url])
    root.execute("select helper.set_default('chat', 'bench', 'm')")

    def asked(rounds: int) -> float:
        options = '{"tools": ["bench_read"], "limits": {"rounds": 64, "calls": 64}}'
        begin = time.perf_counter()
        session.execute("select helper.ask(%s, knowledge => false, options => %s)", [f"Read {rounds}", options])
        return (time.perf_counter() - begin) * 1e3

    def completed() -> float:
        begin = time.perf_counter()
        session.execute("select helper.complete('Hello')")
        return (time.perf_counter() - begin) * 1e3

    few, many = 2, 18
    asked(few), completed()
    short, long, one = [], [], []
    # Turn about, so that what else the machine does is the same for all.
    for _ in range(40):
        short.append(asked(few))
        long.append(asked(many))
        one += [completed() for _ in range(4)]
    short, long, one = median(short), median(long), median(one)
    figure(f"an answer after {many} rounds of a tool, of a provider that takes no time", long, "ms", f"{many + 1} completions", (many + 1) * one)
    figure("what a round of a tool adds to its completion", (long - short) / (many - few) - one, "ms", "a completion", one)
    figure("what an answer adds beside its rounds and completions", short - few * (long - short) / (many - few) - one, "ms")
    server.shutdown()


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
    root.execute("create or replace function public.bench_read(n integer) returns integer language sql stable as 'select n'")
    for name, what in [("bench_write", "Writes a line"), ("bench_read", "Reads a line")]:
        root.execute("select helper.register_function(%s, %s, %s, %s)", [name, name, what, '{"requires_confirmation": false}'])
    session = user("bench tools")
    session.execute("select set_config('helper_ai.workspace', %s, false)", [str(workspace(session, "Bench tools"))])
    calls(session, count)
    queued(session, count)
    agent(root, session)
    with open("/proc/loadavg") as load:
        note(f"load average {load.read().split()[0]}")


main()
