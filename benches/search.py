"""Search over 200,000 chunks of 200 workspaces of very different size, as an application's user under row-level security.

Usage: search.py [--chunks N]

The chunks are made up of real sentences (SQuAD): each is some sentences drawn at random from its workspace's pool, its
embedding their mean with noise, its terms theirs. They are copied straight into the extension's tables. Peers in the
same run, over the same embeddings in a table of their own with a member policy as Supabase's guide has it: pgvector's
HNSW index as it is by default, the same with iterative scans, and an exact scan of the tenant's rows by index.
"""

import argparse
import random
import re
import struct
import time
import uuid

import numpy

from session import DATA, admin, become, figure, jsonl, median, milliseconds, note, quantile, user

WORKSPACES = 200
K = 10
MASK = (1 << 64) - 1


def keys(workspace: bytes, config: str, letters: numpy.ndarray, lengths: numpy.ndarray) -> numpy.ndarray:
    """Keys of lexemes as in src/core/terms.rs, for all of them at once."""
    prime = numpy.uint64(0x0100_0000_01B3)
    start = 0xCBF2_9CE4_8422_2325
    for byte in workspace + config.encode() + b"\0":
        start = ((start ^ byte) * 0x0100_0000_01B3) & MASK
    state = numpy.full(len(lengths), start, dtype=numpy.uint64)
    for at in range(letters.shape[1]):
        state = numpy.where(at < lengths, (state ^ letters[:, at].astype(numpy.uint64)) * prime, state)
    for shift, factor in ((30, 0xBF58_476D_1CE4_E5B9), (27, 0x94D0_49BB_1331_11EB)):
        state = (state ^ (state >> numpy.uint64(shift))) * numpy.uint64(factor)
    return (state ^ (state >> numpy.uint64(31))).view(numpy.int64)


class Copy:
    """A COPY in binary on a session of its own, so that several tables are filled at once."""

    def __init__(self, table: str, columns: str):
        self.session = admin()
        self.session.execute("set session_replication_role = replica")
        self.cursor = self.session.cursor()
        self.context = self.cursor.copy(f"copy {table} ({columns}) from stdin (format binary)")
        self.copy = self.context.__enter__()
        self.copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
        self.rows = []

    def row(self, *values: bytes) -> None:
        self.rows.append(struct.pack(">h", len(values)) + b"".join(struct.pack(">i", len(v)) + v for v in values))
        if len(self.rows) >= 500:
            self.flush()

    def flush(self) -> None:
        self.copy.write(b"".join(self.rows))
        self.rows = []

    def end(self) -> None:
        self.flush()
        self.copy.write(struct.pack(">h", -1))
        self.context.__exit__(None, None, None)
        self.session.close()


def identifier(random_bytes: bytes) -> bytes:
    """A uuid of version 7; the time is not of this world, but in order."""
    return random_bytes[:6] + bytes([random_bytes[6] & 15 | 112, random_bytes[7]]) + bytes([random_bytes[8] & 63 | 128]) + random_bytes[9:]


def integer(value: int) -> bytes:
    return struct.pack(">i", value)


class Material:
    """Sentences with their embeddings and lexemes, made by the database."""

    def __init__(self, boss, most: int):
        self.sentences = []
        for document in jsonl(DATA / "squad/corpus.jsonl"):
            self.sentences += [s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z])", document["text"]) if 40 <= len(s) <= 300]
        random.Random(1).shuffle(self.sentences)
        self.sentences = self.sentences[:most]
        rows = boss.execute("select helper.embed_many(%s)::text", [self.sentences]).fetchall()
        self.vectors = numpy.array([numpy.fromstring(row[0][1:-1], sep=",") for row in rows], dtype=numpy.float32)
        scales = numpy.abs(self.vectors).max(axis=1) / 127
        small = numpy.round(self.vectors / scales[:, None]).astype(numpy.int8)
        self.packed = [struct.pack("<f", scale) + row.tobytes() for scale, row in zip(scales, small)]
        vocabulary: dict[str, int] = {}
        self.terms = [([], []) for _ in self.sentences]
        for at, lexeme, count in boss.execute(
            """select x.n::int - 1, t.lexeme, cardinality(t.positions)
            from unnest(%s::text[]) with ordinality x (text, n), unnest(to_tsvector('english', x.text)) t""",
            [self.sentences],
        ):
            self.terms[at][0].append(vocabulary.setdefault(lexeme, len(vocabulary)))
            self.terms[at][1].append(count)
        encoded = [word.encode() for word in vocabulary]
        self.lengths = numpy.array([len(word) for word in encoded])
        self.letters = numpy.zeros((len(encoded), self.lengths.max()), dtype=numpy.uint8)
        for row, word in zip(self.letters, encoded):
            row[: len(word)] = list(word)


def sizes(chunks: int) -> list[int]:
    """Workspaces by Zipf's law, the largest first."""
    shares = [1 / rank for rank in range(1, WORKSPACES + 1)]
    return [max(20, round(chunks * share / sum(shares))) for share in shares]


def fill(boss, chunks: int) -> list[dict]:
    material = Material(boss, 4000)
    model = boss.execute("select helper.status() -> 'gateway' ->> 'model'").fetchone()[0]
    dice = numpy.random.default_rng(11)
    tables = ("knowledge_sources", "knowledge_chunks", "knowledge_vectors", "knowledge_terms")
    # Indexes that nothing needs meanwhile are made again afterwards, all at once.
    indexes = boss.execute(
        """select i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid) from pg_index i
        where i.indrelid = any (%s::regclass[]) and not exists (select from pg_constraint c where c.conindid = i.indexrelid)""",
        [[f"helper.{table}" for table in tables]],
    ).fetchall()
    for name, _ in indexes:
        boss.execute(f"drop index {name}")
    boss.execute("drop table if exists public.bench_items, public.bench_members")
    boss.execute("create table public.bench_items (id uuid primary key, workspace_id uuid not null, embedding halfvec(384) not null)")
    boss.execute("create table public.bench_members (workspace_id uuid, user_id uuid, primary key (user_id, workspace_id))")
    boss.execute("alter table public.bench_items alter embedding set storage plain")
    sources = Copy("helper.knowledge_sources", "workspace_id, id, source_type, title, content, status, input_hash, chunk_count, indexed_at")
    parts = Copy("helper.knowledge_chunks", "workspace_id, id, source_id, ordinal, heading, content, token_count, start_offset, end_offset, content_hash")
    vectors = Copy("helper.knowledge_vectors", "workspace_id, chunk_id, source_id, model, embedding, sentences")
    terms = Copy("helper.knowledge_terms", "workspace_id, chunk_id, source_id, config, length, terms")
    items = Copy("public.bench_items", "id, workspace_id, embedding")
    workspaces = []
    for number, size in enumerate(sizes(chunks)):
        workspace = identifier(dice.bytes(16))
        table = keys(workspace, "english", material.letters, material.lengths)
        pool = dice.permutation(len(material.sentences))[: max(60, min(len(material.sentences), size))]
        embeddings = numpy.empty((size, 384), dtype=numpy.float16)
        ids = []
        total = 0
        for at in range(size):
            if at % 10 == 0:
                source = identifier(dice.bytes(16))
                sources.row(workspace, source, b"kb_article", b"Document", b"-", b"ready", b"-", integer(10), struct.pack(">q", 0))
            chosen = dice.choice(pool, size=int(dice.integers(4, 9)), replace=False)
            mean = material.vectors[chosen].mean(axis=0)
            mean = mean / numpy.linalg.norm(mean) + dice.normal(0, 0.3 / 384**0.5, 384).astype(numpy.float32)
            embeddings[at] = mean / numpy.linalg.norm(mean)
            text = " ".join(material.sentences[s] for s in chosen)
            packed, offset = [], 0
            for s in chosen:
                end = offset + len(material.sentences[s])
                packed.append(struct.pack("<II", offset, end) + material.packed[s])
                offset = end + 1
            words = numpy.concatenate([material.terms[s][0] for s in chosen]).astype(numpy.int64)
            found, counts = numpy.unique(words, return_inverse=True)
            counts = numpy.bincount(counts, weights=numpy.concatenate([material.terms[s][1] for s in chosen])).astype(numpy.int64)
            order = numpy.argsort(table[found])
            length = int(counts.sum())
            total += length
            id = identifier(dice.bytes(16))
            ids.append(uuid.UUID(bytes=id))
            # Ordinals with gaps: no two are neighbours, which search would merge.
            parts.row(workspace, id, source, integer(2 * (at % 10)), b"", text.encode(), integer(len(text) // 4), integer(0), integer(len(text)), b"-")
            half = struct.pack(">hh", 384, 0) + embeddings[at].astype(">f2").tobytes()
            vectors.row(workspace, id, source, model.encode(), half, b"".join(packed))
            terms.row(
                workspace, id, source, b"english", integer(length),
                table[found][order].astype("<i8").tobytes() + numpy.minimum(counts[order], 255).astype(numpy.uint8).tobytes(),
            )
            items.row(id, workspace, half)
        person = uuid.UUID(bytes=identifier(dice.bytes(16)))
        workspaces.append({"id": uuid.UUID(bytes=workspace), "user": person, "size": size, "ids": ids, "vectors": embeddings})
        boss.execute("insert into helper.workspaces (id, name, slug) values (%s, %s, %s)", [workspaces[-1]["id"], f"bench {number}", f"bench-{number}"])
        boss.execute("insert into helper.workspace_members (workspace_id, user_id, role) values (%s, %s, 'member')", [workspaces[-1]["id"], person])
        boss.execute("insert into helper.knowledge_stats (workspace_id, config, chunks, terms) values (%s, 'english', %s, %s)", [workspaces[-1]["id"], size, total])
    for copy in (sources, parts, vectors, terms, items):
        copy.end()
    boss.execute("set maintenance_work_mem = '1GB'")
    for _, definition in indexes:
        boss.execute(definition)
    # What triggers do for rows that come one by one.
    boss.execute("insert into helper.knowledge_loose select workspace_id, model, chunk_id from helper.knowledge_vectors")
    boss.execute("select helper.pack_vectors()")
    for table in tables:
        boss.execute(f"vacuum analyze helper.{table}")
    return workspaces


def known(boss) -> list[dict]:
    """The workspaces of an earlier run; their embeddings are read when they are asked."""
    return [
        {"id": id, "user": person, "size": size}
        for id, person, size in boss.execute(
            """select w.id, m.user_id, s.chunks::int from helper.workspaces w
            join helper.workspace_members m on m.workspace_id = w.id
            join (select workspace_id, sum(chunks) as chunks from helper.knowledge_stats group by 1) s on s.workspace_id = w.id
            where w.slug like 'bench-%' order by s.chunks desc"""
        )
    ]


def read(boss, workspace) -> None:
    rows = boss.execute("select id, embedding::text from public.bench_items where workspace_id = %s", [workspace["id"]]).fetchall()
    workspace["ids"] = [row[0] for row in rows]
    workspace["vectors"] = numpy.array([numpy.fromstring(row[1][1:-1], sep=",") for row in rows], dtype=numpy.float16)


def peer(boss, workspaces) -> None:
    """pgvector under a member policy."""
    for workspace in workspaces:
        boss.execute("insert into public.bench_members values (%s, %s)", [workspace["id"], workspace["user"]])
    boss.execute("create index on public.bench_items (workspace_id)")
    boss.execute("set max_parallel_maintenance_workers = 2")
    boss.execute("create index bench_items_hnsw on public.bench_items using hnsw (embedding halfvec_cosine_ops)")
    boss.execute("alter table public.bench_items enable row level security")
    boss.execute(
        """create policy members on public.bench_items for select using (workspace_id in (
          select m.workspace_id from public.bench_members m
          where m.user_id = ((select current_setting('request.jwt.claims'))::jsonb ->> 'sub')::uuid))"""
    )
    boss.execute("grant select on public.bench_items, public.bench_members to authenticated")
    boss.execute("vacuum analyze public.bench_items")
    boss.execute("analyze public.bench_members")


def processor(session) -> float:
    """Milliseconds of processor time that the session's backend has used; 0 where the system does not tell."""
    try:
        with open(f"/proc/{session.info.backend_pid}/schedstat") as told:
            return int(told.read().split()[0]) / 1e6
    except OSError:
        return 0.0


def recall(found, similarity, ids) -> float:
    """Share of the ten nearest that were found; one as near as the tenth counts, whichever it is."""
    best = numpy.sort(similarity)[::-1][: min(K, len(ids))]
    known = dict(zip(ids, similarity))
    return sum(known.get(id, -2) >= best[-1] - 5e-4 for id in found[:K]) / len(best)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--chunks", type=int, default=200_000)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--keep", action="store_true", help="leave what was made, for BENCH_KEEP=1 and --reuse")
    parser.add_argument("--reuse", action="store_true", help="measure again what --keep left")
    arguments = parser.parse_args()
    boss = admin()
    start = time.perf_counter()
    workspaces = known(boss) if arguments.reuse else fill(boss, arguments.chunks)
    note(f"{sum(w['size'] for w in workspaces):,} chunks in {len(workspaces)} workspaces of {workspaces[-1]['size']} to {workspaces[0]['size']:,}, made in {time.perf_counter() - start:.0f} s")
    if not arguments.no_peer and not arguments.reuse:
        start = time.perf_counter()
        peer(boss, workspaces)
        note(f"the peer's index was made in {time.perf_counter() - start:.0f} s")
    boss.execute("checkpoint")
    session = user("search")
    plain = user("search")
    plain.prepare_threshold = 1
    questions = [row["text"] for row in jsonl(DATA / "squad/queries.jsonl")]
    random.Random(3).shuffle(questions)
    groups = {
        "small": [w for w in workspaces if w["size"] <= 400],
        "middle": [w for w in workspaces if 1000 <= w["size"] <= 3000],
        "large": workspaces[:1],
    }
    targets = {"small": 1.5, "middle": 3, "large": 6}
    for name, group in groups.items():
        if not group:
            continue
        times = {key: [] for key in ("embed", "vector", "text", "hybrid", "hnsw", "iterative", "exact")}
        work = {key: 0.0 for key in times}

        def timed(key, connection, sql, values):
            rows, before = [], processor(connection)
            times[key].append(milliseconds(lambda: rows.extend(connection.execute(sql, values).fetchall())))
            work[key] += (processor(connection) - before) / arguments.questions
            return rows

        recalls = {key: [] for key in ("vector", "hnsw", "iterative", "exact")}
        for n, question in enumerate(questions[: arguments.questions]):
            workspace = group[n % len(group)]
            if "ids" not in workspace:
                read(boss, workspace)
            for connection in (session, plain):
                become(connection, workspace["user"])
            embedding = timed("embed", session, "select helper.embed(%s)::text", [question])[0]
            query = numpy.fromstring(embedding[0][1:-1], sep=",", dtype=numpy.float32).astype(numpy.float16).astype(numpy.float32)
            similarity = workspace["vectors"].astype(numpy.float32) @ query
            for method in ("vector", "text", "hybrid"):
                rows = timed(
                    method, session, "select chunk_id from helper.search(%s, workspace => %s, k => %s, method => %s)",
                    [question, workspace["id"], K, method],
                )
                if method == "vector":
                    recalls["vector"].append(recall([row[0] for row in rows], similarity, workspace["ids"]))
            if arguments.no_peer:
                continue
            near = "select id from public.bench_items order by embedding <=> %s::halfvec(384) limit 10"
            ways = {
                "hnsw": ("off", near, [embedding[0]]),
                "iterative": ("relaxed_order", near, [embedding[0]]),
                "exact": (
                    "off",
                    "with mine as materialized (select id, embedding from public.bench_items where workspace_id = %s) "
                    "select id from mine order by embedding <=> %s::halfvec(384) limit 10",
                    [workspace["id"], embedding[0]],
                ),
            }
            for way, (iterative, sql, values) in ways.items():
                plain.execute(f"set hnsw.iterative_scan = {iterative}")
                rows = timed(way, plain, sql, values)
                recalls[way].append(recall([row[0] for row in rows], similarity, workspace["ids"]))
        embed = median(times["embed"])
        peers = not arguments.no_peer
        mean = lambda values: sum(values) / len(values) if values else float("nan")
        sizes_told = f"{min(w['size'] for w in group):,} to {max(w['size'] for w in group):,}"
        note(f"{name}: workspaces of {sizes_told} chunks; embedding a question takes {embed:.1f} ms")
        figure(f"{name}: recall@10", mean(recalls["vector"]), "", "HNSW", mean(recalls["hnsw"]) if peers else None, ">= 0.99")
        if peers:
            note(f"recall@10 with iterative scans {mean(recalls['iterative']):.3f}, by the tenant's index {mean(recalls['exact']):.3f}")
        figure(f"{name}: vector part, p50", median(times["vector"]) - embed, "ms", "by the tenant's index", median(times["exact"]) if peers else None, f"<= {targets[name]}")
        # Told apart from how busy the machine is.
        figure(f"{name}: vector part, processor", work["vector"] - work["embed"], "ms", "by the tenant's index", work["exact"] if peers else None)
        for method in ("vector", "text", "hybrid"):
            figure(f"{name}: search {method}, p50", median(times[method]), "ms")
            figure(f"{name}: search {method}, p95", quantile(times[method], 0.95), "ms")
        if peers:
            for way in ("hnsw", "iterative", "exact"):
                note(f"peer {way}: p50 {median(times[way]):.2f} ms, p95 {quantile(times[way], 0.95):.2f} ms")
    if arguments.keep or arguments.reuse:
        return
    boss.execute("drop table if exists public.bench_items, public.bench_members")
    boss.execute("set session_replication_role = replica")
    for table in ("loose", "blocks", "vectors", "terms", "chunks", "sources", "stats"):
        boss.execute(f"truncate helper.knowledge_{table} cascade")
    boss.execute("delete from helper.workspace_members where workspace_id in (select id from helper.workspaces where slug like 'bench-%')")
    boss.execute("delete from helper.workspaces where slug like 'bench-%'")


main()
