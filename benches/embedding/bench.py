"""Tokens a second through helper.embed_many and through indexing, beside ONNX Runtime in single precision.

All three are given the same texts in turn, several rounds, on the same cores; the texts are what indexing embeds of some
paragraphs of SQuAD: each paragraph and each of its sentences, with the title. Tokens count special ones, not padding.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from session import DATA, admin, figure, jsonl, median, note, user, workspace


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--paragraphs", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    boss = admin()
    session = user("embedding")
    documents = random.Random(5).sample(jsonl(DATA / "squad/corpus.jsonl"), arguments.paragraphs)
    tokens = lambda: boss.execute("select (helper.status() -> 'gateway' ->> 'tokens')::bigint").fetchone()[0]

    def index() -> float:
        """Documents in a new workspace, so that nothing is known of them; tokens a second until they are searchable."""
        into = workspace(session, "embedding")
        before, start = tokens(), time.perf_counter()
        with session.cursor() as cursor:
            cursor.executemany(
                "select helper.add_document(%s, %s, workspace => %s)",
                [(document["title"], document["text"], into) for document in documents],
            )
        session.execute("select helper.wait_indexed(%s, '1 hour')", [into])
        rate = (tokens() - before) / (time.perf_counter() - start)
        index.last = into
        return rate

    index()
    # The texts as indexing made them.
    texts = []
    for title, content, offset, packed in boss.execute(
        """select concat_ws(e'\n', s.title, nullif(c.heading, '')), c.content, c.start_offset, v.sentences
        from helper.knowledge_chunks c join helper.knowledge_sources s on s.id = c.source_id
        join helper.knowledge_vectors v on v.workspace_id = c.workspace_id and v.chunk_id = c.id
        where c.workspace_id = %s order by c.id""",
        [index.last],
    ):
        texts.append(f"{title}\n{content}")
        for at in range(0, len(packed), 12 + 384):
            start, end = (int.from_bytes(packed[at + n : at + n + 4], "little") for n in (0, 4))
            texts.append(f"{title}\n{content[start - offset : end - offset]}")

    def embed() -> float:
        before, start = tokens(), time.perf_counter()
        session.execute("select count(*) from helper.embed_many(%s)", [texts])
        return (tokens() - before) / (time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as home:
        file = pathlib.Path(home) / "texts.jsonl"
        file.write_text("".join(json.dumps(text) + "\n" for text in texts))

        def peer(*options: str) -> dict:
            command = [sys.executable, "-W", "ignore", str(pathlib.Path(__file__).parent / "peer.py"), "--texts", str(file), *options]
            out = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout
            return json.loads(out.splitlines()[-1])

        batch = str(peer()["batch"])
        ours, indexed, theirs = [], [], []
        for _ in range(arguments.rounds):
            ours.append(embed())
            row = peer("--batch", batch)
            theirs.append(row["tokens"] / row["seconds"])
            indexed.append(index())
    note(f"{len(texts)} texts, {row['tokens']:,} tokens; ONNX Runtime in batches of {batch}")
    figure("helper.embed_many", median(ours), "tokens/s", "ONNX Runtime", median(theirs), f">= {median(theirs):.0f}")
    figure("indexing", median(indexed), "tokens/s", "ONNX Runtime", median(theirs))
    boss.execute("delete from helper.workspaces where name = 'embedding'")


main()
