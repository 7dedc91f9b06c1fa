"""How well search finds and the local answer answers, on half of SQuAD's dev set.

Usage: retrieval.py [--quick]    (a fixed sample of 1,500 questions)

Peers in the same run: bm25s with Snowball stems and English stop words, and exact search over sentence-transformers'
embeddings of the same paragraphs by the same model.
"""

import argparse
import hashlib
import math
import os
import pathlib
import random
import re
import sys

import bm25s
import numpy
import Stemmer

from session import DATA, admin, figure, jsonl, note, user, workspace

DEPTH = 10


def load(session, into, documents) -> None:
    with session.cursor() as cursor:
        cursor.executemany(
            "select helper.add_document(%s, %s, 'kb_article', %s, workspace => %s)",
            [(document["title"], document["text"], document["id"], into) for document in documents],
        )
    session.execute("select helper.wait_indexed(%s, '1 hour')", [into])


def quality(places: list[int | None]) -> dict[str, float]:
    """Measures of the places, from 0, at which the one right paragraph was found."""
    share = lambda most: sum(place is not None and place < most for place in places) / len(places)
    mean = lambda value: sum(value(place) for place in places if place is not None and place < 10) / len(places)
    return {
        "hit@1": share(1),
        "hit@5": share(5),
        "MRR@10": mean(lambda place: 1 / (place + 1)),
        "nDCG@10": mean(lambda place: 1 / math.log2(place + 2)),
    }


def place(found: list[str], right: str) -> int | None:
    found = list(dict.fromkeys(found))
    return found.index(right) if right in found else None


class Words:
    """bm25s over the same paragraphs."""

    def __init__(self, documents, **options):
        self.ids = [document["id"] for document in documents]
        self.stemmer = Stemmer.Stemmer("english")
        self.index = bm25s.BM25(method="lucene", **options)
        self.index.index(self.tokens([f"{d['title']}\n{d['text']}" for d in documents]), show_progress=False)

    def tokens(self, texts):
        return bm25s.tokenize(texts, stopwords="en", stemmer=self.stemmer, show_progress=False)

    def search(self, texts):
        found, _ = self.index.retrieve(self.tokens(texts), k=DEPTH, show_progress=False)
        return [[self.ids[at] for at in row] for row in found]


class Encoder:
    """sentence-transformers; what it made of the same texts before is kept beside its environment, as it takes minutes."""

    def __init__(self):
        self.model = None

    def __call__(self, texts: list[str]) -> numpy.ndarray:
        home = pathlib.Path(os.environ["HELPER_MODEL"])
        stamp = hashlib.sha256("\0".join([str(home), *texts]).encode()).hexdigest()[:16]
        kept = pathlib.Path(sys.prefix) / f"{home.name}-{stamp}.npy"
        if kept.exists():
            return numpy.load(kept)
        if self.model is None:
            import sentence_transformers

            self.model = sentence_transformers.SentenceTransformer(str(home), device="cpu")
        vectors = self.model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        part = kept.with_suffix(".part.npy")
        numpy.save(part, vectors)
        part.rename(kept)
        return vectors


def plain(text: str) -> str:
    return " ".join(text.lower().split())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()

    documents = jsonl(DATA / "squad/corpus.jsonl")
    queries = jsonl(DATA / "squad/queries.jsonl")
    right = dict(line.split("\t") for line in (DATA / "squad/qrels.tsv").read_text().splitlines())
    if arguments.quick:
        queries = random.Random(7).sample(queries, 1500)
    texts = [query["text"] for query in queries]
    wanted = [right[query["id"]] for query in queries]

    boss = admin()
    session = user("retrieval")
    whole = workspace(session, "squad")
    load(session, whole, documents)
    names = {
        str(id): external
        for id, external in session.execute(
            "select id, external_id from helper.knowledge_sources where workspace_id = %s", [whole]
        )
    }
    chunks = session.execute("select count(*) from helper.knowledge_chunks where workspace_id = %s", [whole]).fetchone()[0]
    note(f"{len(documents)} paragraphs, {chunks} chunks, {len(queries)} questions")

    # The peers.
    words = quality([place(f, r) for f, r in zip(Words(documents).search(texts), wanted)])
    lucene = quality([place(f, r) for f, r in zip(Words(documents, k1=0.9, b=0.4).search(texts), wanted)])
    encode = Encoder()
    paragraphs = encode([f"{d['title']}\n{d['text']}" for d in documents])
    asked = encode(texts)
    similarity = asked @ paragraphs.T
    order = numpy.argsort(-similarity, axis=1)[:, :DEPTH]
    exact = quality([place([documents[at]["id"] for at in row], r) for row, r in zip(order, wanted)])

    found = {}
    for method in ("vector", "text", "hybrid"):
        places = []
        for text, r in zip(texts, wanted):
            rows = session.execute(
                "select source_id from helper.search(%s, workspace => %s, k => 10, method => %s)", [text, whole, method]
            )
            places.append(place([names[str(id)] for (id,) in rows], r))
        found[method] = quality(places)
    for measure in words:
        bound = f">= {exact[measure] - 0.005:.4f}" if measure in ("hit@1", "hit@5") else ""
        figure(f"vector {measure}", found["vector"][measure], "", "exact search", exact[measure], bound)
    for measure in words:
        bound = f">= {max(words['hit@5'], lucene['hit@5']) - 0.01:.4f}" if measure == "hit@5" else ""
        figure(f"text {measure}", found["text"][measure], "", "bm25s", words[measure], bound)
        note(f"bm25s with k1 0.9, b 0.4: {lucene[measure]:.3f}")
    for measure, bound in zip(words, (">= 0.86", ">= 0.975", "", "")):
        best = max(words[measure], lucene[measure], exact[measure])
        figure(f"hybrid {measure}", found["hybrid"][measure], "", "the best peer", best, bound)

    answers(boss, session, whole, documents, queries, wanted, similarity, encode)


def ask(session, into, texts):
    return [
        session.execute(
            "select r.answer, r.citations, r.grounded from helper.answer(%s, workspace => %s) r", [text, into]
        ).fetchone()
        for text in texts
    ]


def answers(boss, session, whole, documents, queries, wanted, similarity, encode) -> None:
    texts = [query["text"] for query in queries]
    replies = ask(session, whole, texts)

    def holds(answer: str, query) -> bool:
        answer = plain(re.sub(r" \[\d+\]", "", answer))
        return any(plain(gold) in answer for gold in query["answers"])

    given = [reply for reply in replies if reply[2]]
    hits = sum(holds(reply[0], query) for reply, query in zip(replies, queries) if reply[2])
    length = sum(len(reply[0]) for reply in given) / max(1, len(given))
    # The sentence that is nearest to the question in the whole corpus, by the same model.
    sentences = [
        (document["title"], sentence)
        for document in documents
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(\[])", document["text"])
    ]
    vectors = encode([f"{title}\n{sentence}" for title, sentence in sentences])
    asked = encode(texts)
    nearest = [[sentences[at][1] for at in numpy.argsort(-(asked[n] @ vectors.T))[:4]] for n in range(len(texts))]
    one = sum(holds(found[0], query) for found, query in zip(nearest, queries)) / len(queries)
    four = sum(holds("\n".join(found), query) for found, query in zip(nearest, queries)) / len(queries)
    figure("answers that hold the right one", hits / len(queries), "", "the nearest sentence", one)
    note(f"the 4 nearest sentences: {four:.3f}, {sum(sum(map(len, f)) for f in nearest) / len(nearest):.0f} characters; ours: {length:.0f} characters")

    contents = dict(
        (str(id), content)
        for id, content in session.execute(
            "select id, content from helper.knowledge_sources where workspace_id = %s", [whole]
        )
    )
    all_citations = wrong = right = 0
    for (answer, citations, _), r in zip(replies, wanted):
        for citation in citations:
            all_citations += 1
            content = contents[citation["source_id"]]
            verbatim = content[citation["start_offset"] : citation["end_offset"]] == citation["quote"]
            said = f"{' '.join(citation['quote'].split())} [{citation['number']}]" in answer
            wrong += not (verbatim and said)
    figure("wrong citations", wrong, f"of {all_citations:,}", wanted="<= 0")

    # Questions that the documents cannot answer: every other article is left out.
    titles = sorted({document["title"] for document in documents})
    kept = set(titles[::2])
    half = workspace(session, "squad, half")
    load(session, half, [document for document in documents if document["title"] in kept])
    article = {document["id"]: document["title"] for document in documents}
    absent = [n for n in range(len(queries)) if article[wanted[n]] not in kept]
    refused_absent = [not reply[2] for reply in ask(session, half, [texts[n] for n in absent])]
    refused = sum(not reply[2] for reply in replies) / len(replies)
    # A threshold on the best similarity that refuses as many of the answerable questions.
    best = similarity.max(axis=1)
    columns = [at for at, document in enumerate(documents) if document["title"] in kept]
    threshold = numpy.quantile(best, refused)
    peer = float(numpy.mean(similarity[absent][:, columns].max(axis=1) < threshold))
    figure("answerable questions refused", refused, "")
    figure("unanswerable questions refused", sum(refused_absent) / len(absent), "", "a threshold that refuses as many answerable ones", peer)
    boss.execute("delete from helper.conversations where workspace_id = any (%s)", [[whole, half]])
    for gone in (whole, half):
        boss.execute("delete from helper.workspaces where id = %s", [gone])


main()
