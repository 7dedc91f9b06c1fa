"""How long two hundred replies take that nobody waits for, from a provider that needs 5 s for each: one worker process has
all of them under way at once, and holds no transaction open while it waits.

The peer is the provider itself: the time between the first request that it had and the last reply that it gave.
"""

import argparse
import asyncio
import json
import threading
import time

from session import admin, figure, note, user, workspace

REPLIES = 200
SECONDS = 5.0


class Provider:
    """Speaks OpenAI's protocol; each reply is streamed after its time."""

    def __init__(self):
        self.asked, self.answered = [], []
        self.ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True).start()
        self.ready.wait(10)

    async def serve(self):
        server = await asyncio.start_server(self.connection, "127.0.0.1", 0, backlog=2 * REPLIES)
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        async with server:
            await server.serve_forever()

    async def connection(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length"))
                await reader.readexactly(length)
                self.asked.append(time.perf_counter())
                await asyncio.sleep(SECONDS)
                for body in self.events():
                    writer.write(body)
                await writer.drain()
                self.answered.append(time.perf_counter())
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    @staticmethod
    def events():
        yield b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        delta = [{"index": 0, "delta": {"role": "assistant", "content": "Done."}, "finish_reason": None}]
        stop = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
        usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
        events = [{**chunk, "choices": delta}, {**chunk, "choices": stop}, {**chunk, "choices": [], "usage": usage}]
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        yield f"{len(text):x}\r\n{text}\r\n0\r\n\r\n".encode()


def ours(boss) -> set:
    """Transactions of our processes: whose, and since when."""
    looked = boss.execute(
        "select pid, xact_start from pg_stat_activity where backend_type like 'helper_ai%' and xact_start is not null"
    )
    return set(looked.fetchall())


def main() -> None:
    argparse.ArgumentParser().parse_args()
    provider, boss, person = Provider(), admin(), user("replies")
    workspace(person, "Replies")
    options = '{"allow_private": true, "max_retries": 0}'
    boss.execute("select helper.set_provider('replies', 'openai', %s, options => %s)", [f"http://127.0.0.1:{provider.port}/v1", options])
    boss.execute("insert into helper.provider_keys (provider, key) values ('replies', 'sk-none')")
    boss.execute("select helper.set_model('replies', 'm', options => '{\"context_window\": 8000}')")
    ask = "select count(helper.ask_async('Question ' || n, knowledge => false, model => 'replies/m')) from generate_series(1, %s) n"
    left = "select count(*) from helper.messages m where m.role = 'assistant' and m.status in ('pending', 'streaming')"
    done = "select count(*) from helper.messages m where m.role = 'assistant' and m.status = 'done'"
    before = boss.execute(done).fetchone()[0]
    began = time.perf_counter()
    person.execute(ask, [REPLIES])
    looks, held, last = 0, 0, set()
    while boss.execute(left).fetchone()[0]:
        if time.perf_counter() - began > 120:
            raise SystemExit("the replies do not end")
        # While all wait: what is seen twice, 100 ms apart, is held.
        if len(provider.asked) == REPLIES and not provider.answered:
            now = ours(boss)
            looks, held, last = looks + 1, max(held, len(now & last)), now
        time.sleep(0.1)
    took = time.perf_counter() - began
    assert boss.execute(done).fetchone()[0] - before == REPLIES, "not all of them are done"
    workers = boss.execute("select count(*) from pg_stat_activity where backend_type like 'helper_ai worker%'").fetchone()[0]
    own = provider.answered[-1] - provider.asked[0]
    figure(f"{REPLIES} replies left to the worker, {SECONDS:.0f} s each: until the last", took, "s", "the provider's own time", own, "<= 8")
    figure("transactions held open while all wait", held, wanted="<= 0")
    note(f"{looks} looks at pg_stat_activity; {workers} worker process{'' if workers == 1 else 'es'}; all asked within {provider.asked[-1] - provider.asked[0]:.2f} s")
    boss.execute("select helper.remove_provider('replies')")


main()
