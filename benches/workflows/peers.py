"""What workflows are measured beside, installed in the cache once for each version: graphile-worker, and pgmq's SQL."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import threading

import psycopg

import session

HERE = pathlib.Path(__file__).parent
CACHE = pathlib.Path(os.environ["HELPER_CACHE"]) / "workflows-bench"


def installed(name: str, lock: pathlib.Path, *command: str) -> pathlib.Path:
    """The directory of a peer, made anew where its lock file is another one than last time."""
    home = CACHE / name
    done = home / "installed"
    if not done.exists() or done.read_bytes() != lock.read_bytes():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        for file in (lock, lock.with_name("package.json")):
            if file.exists():
                shutil.copy(file, home)
        subprocess.run(command, check=True, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.copy(lock, done)
    return home


class Graphile:
    """graphile-worker with a schema of its own in the cluster."""

    def __init__(self, root: psycopg.Connection):
        npm = ("npm", "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts")
        self.home = installed("graphile", HERE / "package-lock.json", *npm)
        root.execute("drop schema if exists graphile_worker cascade")
        subprocess.run(self.command("migrate"), check=True, env=self.environment())

    def command(self, mode: str) -> list[str]:
        return ["node", str(HERE / "graphile.mjs"), session.URL, mode]

    def environment(self) -> dict:
        return os.environ | {"PEER": str(self.home)}

    @contextlib.contextmanager
    def worker(self, mode: str):
        """A worker; ends when it is left."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(self.command(mode), text=True, env=self.environment(), **pipes) as process:
            while process.stdout.readline().strip() != "ready":
                if process.poll() is not None:
                    raise RuntimeError("graphile-worker ended")
            try:
                yield process
            finally:
                process.stdin.close()


class Pgmq:
    """pgmq's SQL, and workers that read and delete."""

    WORKERS, BATCH = 4, 50

    def __init__(self, root: psycopg.Connection):
        manifest = str(HERE / "pgmq/Cargo.toml")
        home = installed("pgmq", HERE / "pgmq/Cargo.lock", "cargo", "vendor", "--quiet", "--locked", "--manifest-path", manifest, "vendor")
        root.execute("drop schema if exists pgmq cascade")
        root.execute((home / "vendor/pgmq/src/install/embedded/sql/pgmq.sql").read_text())
        root.execute("select pgmq.create('bench')")

    def work(self) -> None:
        """Has workers take messages, delete them and commit, until all are gone."""

        def worker() -> None:
            with psycopg.connect(session.URL, autocommit=True) as connection:
                take = f"select count(*) from pgmq.delete('bench', array(select m.msg_id from pgmq.read('bench', 30, {self.BATCH}) m))"
                while connection.execute(take).fetchone()[0]:
                    pass

        workers = [threading.Thread(target=worker) for _ in range(self.WORKERS)]
        for thread in workers:
            thread.start()
        for thread in workers:
            thread.join()
