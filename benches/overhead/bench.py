"""What a call of a language model from SQL costs over the provider's own time; see main.rs, which this builds and runs.

Usage: bench.py
"""

import os
import pathlib
import subprocess

from session import figure

command = [
    "cargo", "run", "--quiet", "--release", "--locked", "--no-default-features", "--features", "gateway",
    "--target-dir", os.environ["TARGET_GATEWAY"], "--example", "overhead",
]
# OpenAI's package, for a function of plpython in the server.
packages = next((pathlib.Path(os.environ["HELPER_CACHE"]) / "pgai-venv/lib").glob("python3*/site-packages"))
os.environ["BENCH_OPENAI"] = str(packages)
for line in subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines():
    name, value, unit, peer, against, wanted = line.split("\t")
    figure(name, float(value), unit, peer, float(against), wanted)
