"""Runs of workflows in a second, how soon one begins, and what one costs, with commits that wait for the disk.

Beside graphile-worker and pgmq's SQL, each in turn on the same server. A run is one step: `select 1` beside a job that asks
the same, or `stop` beside a job that does nothing; a message is read and deleted. `--minutes` is how long the old snapshot is
held, half a minute where it is left out.
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import pathlib
import threading
import time

import psycopg
from peers import Graphile, Pgmq
from session import URL, admin, figure, median, note, quantile, user, workspace

BATCH = 1000
FIVE = [f"step{n}" for n in range(1, 6)]

options = argparse.ArgumentParser(description=__doc__)
options.add_argument("--runs", type=int, default=20_000)
options.add_argument("--rounds", type=int, default=3)
options.add_argument("--minutes", type=float, default=0.5)
options.add_argument("--only", nargs="*", default=["batched", "idle", "waiting", "rows", "fair", "webhooks", "cost", "retention", "snapshot"])
options = options.parse_args()


def settings(root, **values: str) -> None:
    for name, value in values.items():
        root.execute(f"alter system set {name} = '{value}'")
    root.execute("select pg_reload_conf()")
    time.sleep(0.2)


def flushes(root) -> float:
    """How often the disk under the cluster takes 8 kB for good, in a second."""
    home = pathlib.Path(root.execute("show unix_socket_directories").fetchone()[0])
    path = home / "fdatasync"
    file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        os.pwrite(file, bytes(8192 * 16), 0)
        count, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < 1:
            os.pwrite(file, bytes(8192), 8192 * (count % 16))
            os.fdatasync(file)
            count += 1
        return count / (time.perf_counter() - begin)
    finally:
        os.close(file)
        path.unlink()


def wait_empty(connection, table: str) -> None:
    left = f"select exists (select from {table})"
    while connection.execute(left).fetchone()[0]:
        time.sleep(0.01)


def batches(count: int) -> list[int]:
    return [min(BATCH, count - at) for at in range(0, count, BATCH)]


class Ours:
    """Runs of workflows of one workspace."""

    unit = "runs/s"

    def __init__(self, root, name: str = "bench workflows"):
        self.root = root
        self.session = user(name)
        self.workspace = workspace(self.session, name)
        self.session.execute("select set_config('helper_ai.workspace', %s, false)", [str(self.workspace)])
        root.execute("create table if not exists public.bench_seen (took double precision)")
        root.execute("grant insert on public.bench_seen to authenticated")
        self.create("one", ["select 1"])
        self.create("five", ["select 1"] * 5)
        self.define("stop", [{"name": "end", "type": "stop", "status": "succeeded"}])
        self.create("tell", [
            "insert into public.bench_seen select extract(epoch from clock_timestamp()) * 1000 - ($1 ->> 'sent')::float8"
        ])

    def create(self, name: str, statements: list[str]) -> None:
        steps = [{"name": step, "type": "sql", "sql": sql} for step, sql in zip(FIVE, statements)]
        if name == "tell":
            steps[0]["parameters"] = {"sent": "{{ input.sent }}"}
        self.define(name, steps)

    def define(self, name: str, steps: list[dict]) -> None:
        definition = psycopg.types.json.Jsonb({"steps": steps})
        self.session.execute("select helper.create_workflow(%s, %s)", [name, definition])

    def enqueue(self, count: int, name: str = "one") -> None:
        started = "select array_agg(helper.run_workflow(%s)) from generate_series(1, %s)"
        self.first = None
        for some in batches(count):
            runs = self.session.execute(started, [name, some]).fetchone()[0]
            self.first, self.last = self.first or runs[0], runs[-1]

    def wait(self) -> None:
        """Until all that were enqueued have ended. The last one is looked at first, and the queue not at all: such looks
        would take long where many are, or dead rows."""
        ended = "select finished_at is not null from helper.workflow_runs where workspace_id = %s and id = %s"
        left = """select exists (select from helper.workflow_runs
            where workspace_id = %s and id between %s and %s and finished_at is null)"""
        while not self.root.execute(ended, [self.workspace, self.last]).fetchone()[0]:
            time.sleep(0.01)
        while self.root.execute(left, [self.workspace, self.first, self.last]).fetchone()[0]:
            time.sleep(0.01)

    def check(self) -> None:
        bad = self.root.execute("select count(*) from helper.workflow_runs r where r.status not in ('succeeded', 'queued')").fetchone()[0]
        if bad:
            raise RuntimeError(f"{bad} runs did not succeed")

    def both(self, count: int, name: str = "one") -> tuple[float, float]:
        """Runs in a second with their enqueuing, and without: all enqueued in one transaction, and then done."""
        begin = time.perf_counter()
        self.enqueue(count, name)
        self.wait()
        whole = count / (time.perf_counter() - begin)
        with self.session.transaction():
            self.enqueue(count, name)
        begin = time.perf_counter()
        self.wait()
        return whole, count / (time.perf_counter() - begin)

    def waiting(self, count: int) -> None:
        """So many runs of the workspace wait for tomorrow."""
        there = self.root.execute("select count(*) from helper.workflow_queue").fetchone()[0]
        self.root.execute(
            """select count(helper._start_run(w.workspace_id, w.id, '{"kind": "manual"}', '{}', not_before => now() + interval '1 day'))
            from helper.workflows w, generate_series(1, %s) where w.workspace_id = %s and w.name = 'one'""",
            [count - there, self.workspace],
        )

    def dispatch(self, count: int) -> list[float]:
        """Milliseconds from the call that starts a run to its step, each when nothing else is to be done."""
        self.root.execute("truncate public.bench_seen")
        for n in range(count):
            self.session.execute("select helper.run_workflow('tell', jsonb_build_object('sent', %s::float8))", [time.time() * 1000])
            while self.root.execute("select count(*) from public.bench_seen").fetchone()[0] <= n:
                time.sleep(0.005)
            time.sleep(0.02)
        return [row[0] for row in self.root.execute("select took from public.bench_seen")]


def batched(root, ours: Ours, graphile: Graphile, pgmq: Pgmq) -> None:
    count = options.runs

    def jobs(task: str) -> tuple[float, float]:
        def enqueue() -> None:
            for some in batches(count):
                root.execute("select count(graphile_worker.add_job(%s)) from generate_series(1, %s)", [task, some])

        def wait() -> None:
            wait_empty(root, "graphile_worker._private_jobs")

        with graphile.worker("batched"):
            begin = time.perf_counter()
            enqueue()
            wait()
            whole = count / (time.perf_counter() - begin)
            # Its workers see them all at once, as ours do.
            with root.transaction():
                enqueue()
                # What was known of the table is of a time when it was empty, and its plans hang on that.
                root.execute("analyze graphile_worker._private_jobs")
            begin = time.perf_counter()
            wait()
            return whole, count / (time.perf_counter() - begin)

    def messages() -> tuple[float, float]:
        def enqueue() -> None:
            for some in batches(count):
                root.execute("select count(*) from pgmq.send_batch('bench', array_fill('{}'::jsonb, array[%s]))", [some])

        begin = time.perf_counter()
        enqueue()
        pgmq.work()
        whole = count / (time.perf_counter() - begin)
        enqueue()
        begin = time.perf_counter()
        pgmq.work()
        return whole, count / (time.perf_counter() - begin)

    ours.both(2 * BATCH)
    ways = {
        "select 1": lambda: ours.both(count),
        "nothing": lambda: ours.both(count, "stop"),
        "job that asks": lambda: jobs("query"),
        "job": lambda: jobs("noop"),
        "message": messages,
    }
    rows = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            root.execute("vacuum analyze")
            rows[name].append(way())
    for at, when in enumerate(("with their enqueuing", "enqueued before")):
        rate = {name: median([row[at] for row in of]) for name, of in rows.items()}
        for step, job in (("select 1", "job that asks"), ("nothing", "job")):
            peer = f"graphile-worker, batched, {job}"
            figure(f"runs in a second of one step, {step}, {when}", rate[step], "runs/s", peer, rate[job], f">= {rate[job]:.0f}")
        figure(f"the latter, beside messages, {when}", rate["nothing"], "runs/s", "pgmq, 4 workers, batches of 50", rate["message"])


def idle(root, ours: Ours, graphile: Graphile) -> None:
    count = 200
    mine = ours.dispatch(count)
    theirs = []
    with graphile.worker("single") as worker:
        for _ in range(count):
            sent = time.time() * 1000
            root.execute("select graphile_worker.add_job('tell', json_build_object('sent', %s::float8))", [sent])
            theirs.append(float(worker.stdout.readline()))
            time.sleep(0.025)
    figure("from the call to the step, p50, nothing else to do", median(mine), "ms", "graphile-worker", median(theirs), f"<= {median(theirs):.3f}")
    figure("the same, p95", quantile(mine, 0.95), "ms", "graphile-worker", quantile(theirs, 0.95))


def waiting(root, ours: Ours) -> None:
    sizes = (100, 10_000, 100_000)
    claims, dues, rates, dispatches = [], [], [], []
    for size in sizes:
        ours.waiting(size)
        root.execute("vacuum helper.workflow_queue, helper.workflow_runs")
        claims.append(median(claim(root, ours)[0] for _ in range(100)))
        rates.append(median(ours.both(2 * BATCH)[1] for _ in range(options.rounds)))
        dispatches.append(median(ours.dispatch(50)))
    # Last, as what is rolled back is left to vacuum.
    for size in sizes:
        dues.append(median(claim(root, ours, max(size, 256), 20)))
        root.execute("vacuum helper.workflow_queue, helper.workflow_runs")
    for at, size in enumerate(sizes[1:], 1):
        beside = f"{sizes[0]} wait"
        figure(f"taking 256 due runs where {size:,} wait", claims[at], "ms", beside, claims[0], f"<= {1.5 * claims[0]:.3f}")
        figure(f"taking 256 of {size:,} due runs", dues[at], "ms", "256 are due", dues[0], f"<= {1.5 * dues[0]:.3f}")
        figure(f"one-step runs in a second where {size:,} wait", rates[at], "runs/s", beside, rates[0], f">= {rates[0] / 1.5:.0f}")
        figure(f"from the call to the step where {size:,} wait, p50", dispatches[at], "ms", beside, dispatches[0], f"<= {1.5 * dispatches[0]:.3f}")
    root.execute("set enable_seqscan = off")
    root.execute("delete from helper.workflow_runs r where r.status = 'queued'")
    root.execute("reset enable_seqscan")
    root.execute("vacuum helper.workflow_queue, helper.workflow_runs")


def fair(root, ours: Ours) -> None:
    """How soon a workspace's single run begins while another has 100,000 to do."""
    count = 100_000
    other = Ours(root, "bench other")
    with ours.session.transaction():
        ours.enqueue(count)
    took = other.dispatch(100)
    left = root.execute("select count(*) from helper.workflow_queue q where q.workspace_id = %s", [ours.workspace]).fetchone()[0]
    figure(f"from the call to the step, p50, behind another's {count:,}", median(took), "ms")
    figure("the same, the slowest of 100", max(took), "ms", wanted="<= 1000")
    note(f"{left:,} of the {count:,} were left at the end")
    ours.wait()


def webhooks(root, ours: Ours) -> None:
    """Signed requests accepted in a second while the runs that they start are done."""
    count, sessions = options.runs, 16
    root.execute("do $$ begin if not exists (select from pg_roles where rolname = 'anon') then create role anon nologin; end if; end $$")
    root.execute("select helper.grant_usage('anon')")
    made = ours.session.execute("""select helper.create_webhook('one', 'bench', options => '{"per_second": 100000}')""").fetchone()[0]
    secret = base64.b64decode(made["secret"].removeprefix("whsec_"))
    stamp = int(time.time())

    def request(n: int) -> list[str]:
        body = f'{{"order": {n}}}'
        signed = hmac.digest(secret, f"msg_{n}.{stamp}.{body}".encode(), hashlib.sha256)
        head = {"webhook-id": f"msg_{n}", "webhook-timestamp": str(stamp), "webhook-signature": "v1," + base64.b64encode(signed).decode()}
        return [made["endpoint"], json.dumps(head), body]

    requests = [request(n) for n in range(count)]

    def send(some: list) -> None:
        with psycopg.connect(URL, autocommit=True) as connection:
            connection.execute("set role anon")
            for one in some:
                connection.execute("select helper.webhook(%s, %s, %s)", one)

    threads = [threading.Thread(target=send, args=[requests[at::sessions]]) for at in range(sessions)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    accepted = count / (time.perf_counter() - begin)
    wait_empty(root, "helper.workflow_queue")
    done = count / (time.perf_counter() - begin)
    figure(f"signed webhooks accepted in a second, {sessions} sessions", accepted, "1/s", wanted=">= 1000")
    figure("the same, until the runs that they started are done", done, "1/s")
    ours.session.execute("select helper.remove_webhook(%s)", [made["endpoint"]])


def claim(root, ours: Ours, due: int = 256, looks: int = 1) -> list[float]:
    """Milliseconds that the runner's own looks for 256 due runs take, over runs that nobody else sees."""
    times = []
    with root.transaction(force_rollback=True):
        root.execute("set local enable_seqscan = off")
        root.execute(
            """select count(helper._start_run(w.workspace_id, w.id, '{"kind": "manual"}', '{}'))
            from helper.workflows w, generate_series(1, %s) where w.workspace_id = %s and w.name = 'one'""",
            [due, ours.workspace],
        )
        for _ in range(looks):
            begin = time.perf_counter()
            root.execute("select count(*) from helper._claim_runs(%s, 256, '{}')", [ours.workspace])
            times.append((time.perf_counter() - begin) * 1e3)
    return times


def rows(root, ours: Ours) -> None:
    """What a table that starts workflows adds to an insert of one row, in the writer's own transaction."""
    count = 500
    root.execute("drop table if exists public.bench_plain, public.bench_followed")
    for name in ("plain", "followed"):
        root.execute(f"create table public.bench_{name} (id bigint primary key, workspace_id uuid not null, body text)")
        root.execute(f"alter table public.bench_{name} owner to authenticated")
    ours.session.execute("select helper.on_table('one', 'public.bench_followed', '{insert}', '@.new.id < 0', 'workspace_id')")
    times = {"plain": [], "followed": []}
    with psycopg.connect(URL, autocommit=True) as writer:
        # What the disk takes is the same for both.
        writer.execute("set synchronous_commit = off")
        for n in range(count):
            for name, of in times.items():
                begin = time.perf_counter()
                writer.execute(f"insert into public.bench_{name} values (%s, %s, 'a row of no great length')", [n, ours.workspace], prepare=True)
                of.append((time.perf_counter() - begin) * 1e3)
        # By the server's own account, in which a busy machine's other processes have little part.
        adds = []
        for n in range(count, 2 * count):
            explained = f"explain (analyze, format json) insert into public.bench_followed values ({n}, '{ours.workspace}', 'a row of no great length')"
            adds += [trigger["Time"] for trigger in writer.execute(explained).fetchone()[0][0]["Triggers"]]
    wait_empty(root, "helper.workflow_events")
    plain, followed = median(times["plain"]), median(times["followed"])
    figure("an insert of one row into a table that is followed, p50", followed, "ms", "one that is not", plain)
    figure("what the trigger takes of that, p50", median(adds), "ms", wanted="<= 1")
    root.execute("drop table public.bench_plain, public.bench_followed")


def cost(root, ours: Ours) -> None:
    """What runs of five steps take and leave behind."""
    tables = ("workflow_runs", "workflow_steps", "workflow_queue")
    count = options.runs // 4
    rates = [ours.both(count, "five")[1] * 5 for _ in range(options.rounds)]
    figure("steps in a second, of runs of five", median(rates), "steps/s")
    settings(root, autovacuum="off", autovacuum_naptime="1s")
    root.execute(f"vacuum analyze {', '.join('helper.' + table for table in tables)}")

    def rows() -> dict:
        return {t: root.execute(f"select count(*), pg_total_relation_size('helper.{t}') from helper.{t}").fetchone() for t in tables}

    def dead() -> dict:
        names = root.execute("select relname, n_dead_tup from pg_stat_user_tables where schemaname = 'helper' and relname = any (%s)", [list(tables)])
        return dict(names.fetchall())

    before, at = rows(), root.execute("select pg_current_wal_insert_lsn()").fetchone()[0]
    ours.enqueue(count, "five")
    ours.wait()
    wal = root.execute("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)", [at]).fetchone()[0]
    # Runners tell what they did when they have nothing more to do.
    time.sleep(2)
    after, left = rows(), dead()
    figure("WAL of a run of five steps", float(wal) / count / 1024, "kB")
    figure("the same, of each step", float(wal) / count / 5 / 1024, "kB")
    figure("rows that such a run leaves", sum(after[t][0] - before[t][0] for t in tables) / count, "rows")
    figure("bytes that it takes with its indexes", sum(after[t][1] - before[t][1] for t in tables) / count / 1024, "kB")
    figure("dead tuples that it leaves, before autovacuum", sum(left.values()) / count, "tuples")
    now = root.execute("select clock_timestamp()").fetchone()[0]
    settings(root, autovacuum="on")
    vacuumed = "select last_autovacuum > %s from pg_stat_user_tables where schemaname = 'helper' and relname = 'workflow_queue'"
    until = time.monotonic() + 120
    while not root.execute(vacuumed, [now]).fetchone()[0] and time.monotonic() < until:
        time.sleep(0.5)
    time.sleep(3)
    figure("the same, after it", sum(dead().values()) / count, "tuples")
    note("dead by table: " + ", ".join(f"{name} {tuples:,}" for name, tuples in left.items()))


def retention(root, ours: Ours) -> None:
    """How fast runs that are too old go, beside how fast they come."""
    made = ours.both(options.runs)[0]
    times, deleted = [], 0
    while True:
        begin = time.perf_counter()
        some = root.execute("select helper._clean_runs(0, 1000)").fetchone()[0]
        if some < 1000:
            break
        deleted += some
        times.append(time.perf_counter() - begin)
    gone = deleted / sum(times)
    figure("runs deleted by age in a second", gone, "runs/s", "runs made in a second", made, f">= {made:.0f}")
    figure("deleting the last thousand", times[-1] * 1e3, "ms", "the first thousand", times[0] * 1e3)


def snapshot(root, ours: Ours) -> None:
    """Runs in a second while somebody's snapshot gets old, beside as long without one."""
    seconds = options.minutes * 60

    def last() -> float:
        """The rate of the last third of the time."""
        begin, rates = time.monotonic(), []
        while time.monotonic() - begin < seconds:
            rate = ours.both(2 * BATCH)[0]
            rates.append((time.monotonic() - begin, rate))
        return median([rate for at, rate in rates if at > seconds * 2 / 3] or [rate])

    root.execute("vacuum helper.workflow_queue")
    without = last()
    root.execute("vacuum helper.workflow_queue")
    with psycopg.connect(URL) as old:
        old.execute("set transaction isolation level repeatable read")
        old.execute("select 1")
        held = last()
    figure(f"one-step runs in a second, a snapshot of {seconds:.0f} s held", held, "runs/s", "without", without, f">= {0.8 * without:.0f}")


def main() -> None:
    root = admin()
    settings(root, fsync="on", synchronous_commit="on", max_wal_size="8GB")
    figure("fdatasync of 8 kB", flushes(root), "1/s")
    ours, only = Ours(root), options.only
    graphile = Graphile(root) if {"batched", "idle"} & set(only) else None
    if "batched" in only:
        batched(root, ours, graphile, Pgmq(root))
    if "idle" in only:
        idle(root, ours, graphile)
    if "waiting" in only:
        waiting(root, ours)
    if "rows" in only:
        rows(root, ours)
    if "fair" in only:
        fair(root, ours)
    if "webhooks" in only:
        webhooks(root, ours)
    if "cost" in only:
        cost(root, ours)
    if "retention" in only:
        retention(root, ours)
    if "snapshot" in only:
        snapshot(root, ours)
    ours.check()
    with open("/proc/loadavg") as load:
        note(f"load average {load.read().split()[0]}")


main()
