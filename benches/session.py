"""What the benchmarks share: the cluster in $BENCH_URL, its users, and how figures are printed."""

import json
import os
import pathlib
import statistics
import time
import uuid

import psycopg

URL = os.environ.get("BENCH_URL", "postgresql://postgres@127.0.0.1:28817/postgres")
DATA = pathlib.Path(os.environ.get("DATA", "../shared/data"))
RESULTS = os.environ.get("BENCH_RESULTS")


def admin() -> psycopg.Connection:
    """A superuser's session; the roles that users come as are made if they are not there."""
    connection = psycopg.connect(URL, autocommit=True)
    connection.execute("set client_min_messages = warning")
    connection.execute(
        """do $$ begin
          if not exists (select from pg_roles where rolname = 'authenticated') then
            create role authenticated nologin;
          end if;
        end $$"""
    )
    connection.execute("select helper.grant_usage('authenticated')")
    return connection


def become(connection: psycopg.Connection, user: uuid.UUID, workspace: uuid.UUID | None = None) -> None:
    """Makes a session that of an application's user: the role and the claims, and nothing beyond them."""
    claims = {"sub": str(user), "role": "authenticated"}
    if workspace is not None:
        claims["workspace_id"] = str(workspace)
    connection.execute("select set_config('request.jwt.claims', %s, false)", [json.dumps(claims)])
    connection.execute("set role authenticated")


def user(name: str, workspace: uuid.UUID | None = None) -> psycopg.Connection:
    """A session as the user of that name."""
    connection = psycopg.connect(URL, autocommit=True)
    connection.execute("set client_min_messages = warning")
    become(connection, uuid.uuid5(uuid.NAMESPACE_URL, name), workspace)
    return connection


def workspace(connection: psycopg.Connection, name: str) -> uuid.UUID:
    """A new workspace of the session's user, whatever is left of an earlier one."""
    return connection.execute("select helper.create_workspace(%s)", [name]).fetchone()[0]


def jsonl(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def milliseconds(work) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


median = statistics.median


def number(value: float) -> str:
    if value != value:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.3f}"


def figure(name: str, value: float, unit: str = "", peer: str = "", against: float | None = None, wanted: str = "") -> None:
    """One line: the figure, what it is compared with in the same run, and their ratio.

    `wanted` is what we hold ourselves to, such as `>= 0.86`; `peer` names the other one.
    """
    value, against = float(value), None if against is None else float(against)
    unit = f" {unit}" if unit else ""
    line = f"{name}: {number(value)}{unit}"
    beside = []
    if against is not None:
        ratio = f", ratio {value / against:.2f}" if against else ""
        beside.append(f"{peer}: {number(against)}{unit}{ratio}")
    met = None
    if wanted:
        sign, bound = wanted.split()
        met = value >= float(bound) if sign == ">=" else value <= float(bound)
        beside.append(f"wanted {wanted}{'' if met else ', MISSED'}")
    print(line + (f" ({'; '.join(beside)})" if beside else ""), flush=True)
    if RESULTS:
        row = {"name": name, "value": value, "unit": unit.strip(), "peer": peer, "against": against, "wanted": wanted, "met": met}
        with open(RESULTS, "a") as results:
            results.write(json.dumps(row) + "\n")


def note(text: str) -> None:
    print(f"  {text}", flush=True)
