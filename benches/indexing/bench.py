"""20,000 short rows of a table embedded by a provider that takes 50 ms, beside pgai's worker at its best settings.

Each gets a table of its own with the same rows and the same provider (provider.rs, 1,536 numbers in an embedding), is told
of it, and is timed from then until every row has its embedding; attaching and pgai's create_vectorizer are told apart. Then
both again with one error 500 in ten requests and five seconds of 429 in the middle.

Usage: bench.py [--rows N] [--no-peer]
"""

import argparse
import contextlib
import os
import pathlib
import subprocess
import time

import session
from session import admin, figure, note

PGAI = pathlib.Path(os.environ["HELPER_CACHE"]) / "pgai-venv/bin/pgai"
LATENCY_MS = 50
DIMENSIONS = 1536
# The larger the batch the better for pgai; four at once are enough to keep a core busy.
PEER_BATCH, PEER_AT_ONCE = 2048, 4

options = argparse.ArgumentParser()
options.add_argument("--rows", type=int, default=20_000)
options.add_argument("--no-peer", action="store_true")
options = options.parse_args()


def build() -> pathlib.Path:
    target = os.environ["TARGET_GATEWAY"]
    subprocess.run(
        ["cargo", "build", "--quiet", "--release", "--locked", "--no-default-features", "--features", "gateway",
         "--target-dir", target, "--example", "embedding_provider"],
        check=True,
    )
    return pathlib.Path(target) / "release/examples/embedding_provider"


@contextlib.contextmanager
def provider(program: pathlib.Path, faults: bool):
    words = [str(program), str(LATENCY_MS), str(DIMENSIONS)] + (["faults"] if faults else [])
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.terminate()


def table(boss, name: str) -> None:
    boss.execute(f"drop table if exists public.{name}")
    boss.execute(f"create table public.{name} (id integer primary key, body text not null)")
    boss.execute(
        f"""insert into public.{name} select n, 'Product ' || n || ' is a thing of some use. It weighs ' || n %% 97
          || ' grams and comes in ' || n %% 13 || ' colours.' from generate_series(1, %s) n""",
        [options.rows],
    )
    boss.execute(f"vacuum analyze public.{name}")


def ours(boss, name: str, url: str) -> tuple[float, float]:
    """Seconds to attach the table, and from then on until all of it is indexed."""
    boss.execute(
        "select helper.set_provider('bench_embedding', 'openai', %s, options => '{\"allow_private\": true, \"max_retries\": 5}')",
        [url],
    )
    boss.execute("insert into helper.provider_keys (provider, key) values ('bench_embedding', 'sk-bench')")
    boss.execute("select helper.set_model('bench_embedding', 'm', 'embedding')")
    boss.execute("select helper.set_default('embedding', 'bench_embedding', 'm')")
    table(boss, name)
    workspace = boss.execute("select helper.create_workspace(%s)", [name]).fetchone()[0]
    begin = time.perf_counter()
    boss.execute(f"select helper.attach_table('public.{name}', 'id', 'body', workspace => %s)", [workspace])
    attached = time.perf_counter()
    boss.execute("set client_min_messages = error")
    boss.execute("select helper.wait_indexed(%s, '10 min')", [workspace])
    done = time.perf_counter()
    for what, sql in [
        ("rows without exactly one chunk", "select count(*) from helper.knowledge_sources where workspace_id = %s and (status <> 'ready' or chunk_count <> 1)"),
        ("rows lost or doubled", f"select {options.rows} - count(distinct v.source_id) from helper.knowledge_vectors v where v.workspace_id = %s"),
        ("embeddings too many", f"select count(*) - {options.rows} from helper.knowledge_vectors v where v.workspace_id = %s"),
    ]:
        assert boss.execute(sql, [workspace]).fetchone()[0] == 0, what
    boss.execute("select helper.detach_table(%s, 'table_row')", [f"public.{name}"])
    boss.execute("select helper.delete_workspace(%s)", [workspace])
    boss.execute("select helper.set_default('embedding', 'local', null)")
    return attached - begin, done - attached


def peer(boss, name: str, url: str) -> tuple[float, float]:
    table(boss, name)
    begin = time.perf_counter()
    vectorizer = boss.execute(
        f"""select ai.create_vectorizer('public.{name}'::regclass,
          loading => ai.loading_column('body'),
          embedding => ai.embedding_openai('m', {DIMENSIONS}, base_url => %s),
          chunking => ai.chunking_none(),
          formatting => ai.formatting_python_template('$chunk'),
          indexing => ai.indexing_none(),
          scheduling => ai.scheduling_none(),
          processing => ai.processing_default(batch_size => {PEER_BATCH}, concurrency => {PEER_AT_ONCE}),
          destination => ai.destination_table('{name}_embedding'))""",
        [url],
    ).fetchone()[0]
    made = time.perf_counter()
    environment = os.environ | {"OPENAI_API_KEY": "sk-bench"}
    count = f"select count(*) from public.{name}_embedding_store"
    while boss.execute(count).fetchone()[0] < options.rows and time.perf_counter() - made < 300:
        subprocess.run(
            [str(PGAI), "vectorizer", "worker", "-d", session.URL, "--once", "-i", str(vectorizer), "--log-level", "ERROR"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    done = time.perf_counter()
    stored = boss.execute(count).fetchone()[0]
    if stored == 0:
        raise SystemExit("pgai's worker has embedded nothing: there is nothing to compare with")
    if stored != options.rows:
        note(f"pgai's worker had embedded {stored} of {options.rows} rows when it was given up")
    boss.execute("select ai.drop_vectorizer(%s, drop_all => true)", [vectorizer])
    # Its start is not its work: a worker that finds nothing to do tells how long it takes.
    return made - begin, done - made


def start_of_peer() -> float:
    begin = time.perf_counter()
    subprocess.run([str(PGAI), "vectorizer", "worker", "-d", session.URL, "--once", "--log-level", "ERROR"],
                   env=os.environ | {"OPENAI_API_KEY": "sk-bench"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


program = build()
boss = admin()
start = 0.0
if not options.no_peer:
    subprocess.run([str(PGAI), "install", "-d", session.URL], check=True, stdout=subprocess.DEVNULL)
    start = min(start_of_peer() for _ in range(2))
undisturbed = 0.0
for faults, words in [(False, ""), (True, " with faults")]:
    name = "products_faults" if faults else "products"
    with provider(program, faults) as url:
        attach, seconds = ours(boss, name, url)
    rate = options.rows / seconds
    against, made = None, None
    if not options.no_peer:
        with provider(program, faults) as url:
            made, theirs = peer(boss, f"{name}_peer", url)
        against = options.rows / max(theirs - start, 0.001)
    figure(f"embedded rows a second{words}", rate, "rows/s", "pgai's worker, its start left out", against)
    if against:
        figure(f"embedded rows a second over pgai's{words}", rate / against, "", wanted=">= 3")
    if faults:
        figure("seconds with faults", seconds, "s", "undisturbed", undisturbed, wanted=f"<= {2 * undisturbed + 5:.1f}")
    else:
        undisturbed = seconds
        figure("attaching the table", attach, "s", "pgai's create_vectorizer", made)
