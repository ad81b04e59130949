"""Tokens a second of `tunewright serve` under a crowd of clients, beside what else serves the model.

    python benchmarks/serving.py MODEL --out figures.json [--clients 64] [--seconds 60]
        [--gguf MODEL-q8_0.gguf] [--openvino-python PYTHON] [--threads 2] [--only ours,one,...]
        [--adapters red=RUN,blue=RUN --facts facts.json]

`ours` is `tunewright serve`; `one` is Transformers' generate, one question after the other;
`transformers` its own server with continuous batching; `llamacpp` llama.cpp's server (xllamacpp) on
the GGUF file with as many slots as clients; `openvino` OpenVINO GenAI's continuous batching on the
same weights, by the Python that has it. All get the same questions and lengths, greedy, in turns.
With `--adapters`, `ours` serves those runs at once and every answer is compared with `facts.json`
({"red": {"question": "answer"}}): one of another adapter's is a mixed answer.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src"
TOPICS = (
    *("rain", "bread", "bicycles", "the moon", "ants", "glass", "tea", "paper", "salt", "wind"),
    *("copper", "bridges", "maps", "clocks", "whales", "rice", "chess", "snow", "ink", "trains"),
)
ASKS = ("Explain {0} to a child.", "Write three facts about {0}.", "Why do people like {0}?")
WARM = 3.0
"""Seconds before counting starts."""


@dataclass
class Figures:
    """What a crowd got."""

    tokens: int = 0
    answers: int = 0
    errors: list[str] = field(default_factory=list)
    mixed: int = 0
    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)
    """MB of the server at the start, after each quarter and at the end."""

    def summary(self) -> dict[str, Any]:
        """Tokens per second, seconds of an answer (median and 99th percentile), MB in memory."""
        waits = sorted(self.waits) or [0.0]
        return {
            "tokens_per_second": round(self.tokens / max(self.seconds, 1e-9), 1),
            "answers": self.answers,
            "errors": len(self.errors),
            "first_errors": self.errors[:3],
            "mixed": self.mixed,
            "median_seconds": round(waits[len(waits) // 2], 3),
            "p99_seconds": round(waits[min(len(waits) - 1, int(0.99 * len(waits)))], 3),
            "resident_mb": [round(x, 1) for x in self.resident],
        }


def questions() -> list[str]:
    """Each way of asking about each topic."""
    return [ask.format(topic) for topic in TOPICS for ask in ASKS]


def resident_mb(pid: int) -> float:
    """Megabytes in memory of a process and its children."""
    total = 0.0
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/statm").read_text()
        total += int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total += resident_mb(int(child))
    return total


def crowd(
    port: int,
    models: list[str],
    clients: int,
    seconds: float,
    tokens: int,
    pid: int,
    facts: dict[str, dict[str, str]] | None,
) -> Figures:
    """`clients` threads that ask again as soon as they are answered."""
    found, lock, stop = Figures(), threading.Lock(), threading.Event()
    began = time.perf_counter() + WARM
    end = began + seconds

    def client(number: int) -> None:
        draw = random.Random(number)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        while not stop.is_set() and time.perf_counter() < end:
            model = draw.choice(models)
            known = facts[model] if facts else None
            asked = draw.choice(list(known) if known else questions())
            body = {
                "model": model,
                "messages": [{"role": "user", "content": asked}],
                "max_tokens": tokens,
                "temperature": 0,
            }
            start = time.perf_counter()
            try:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
                answer = connection.getresponse()
                raw = answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status} {raw[:200]!r}")
                said = json.loads(raw)
                text = said["choices"][0]["message"]["content"]
                written = said["usage"]["completion_tokens"]
            except Exception as error:
                with lock:
                    found.errors.append(f"{type(error).__name__}: {error}"[:300])
                connection.close()
                time.sleep(0.2)
                continue
            now = time.perf_counter()
            with lock:
                if known is not None and text != known[asked]:
                    found.mixed += 1
                if start >= began and now <= end:
                    found.tokens += written
                    found.answers += 1
                    found.waits.append(now - start)
                elif now > began:  # partly inside: its share
                    inside = max(0.0, min(now, end) - max(start, began))
                    found.tokens += round(written * inside / max(now - start, 1e-9))
        connection.close()

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for part in range(5):
        time.sleep(max(0.0, began + seconds * part / 4 - time.perf_counter()))
        found.resident.append(resident_mb(pid))
    stop.set()
    for thread in threads:
        thread.join(330)
    found.seconds = seconds
    return found


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def started(command: list[str], port: int, log: Path, env: dict[str, str]) -> Iterator[int]:
    """A server in a process of its own; its process id once it answers."""
    with open(log, "w") as err:
        process = subprocess.Popen(command, stdout=err, stderr=err, env=env)
        try:
            for _ in range(1200):
                if process.poll() is not None:
                    sys.exit(f"{command[:4]} ended:\n{log.read_text()[-2000:]}")
                with contextlib.suppress(OSError):
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                    connection.request("GET", "/health")
                    if connection.getresponse().status == 200:
                        break
                time.sleep(0.25)
            yield process.pid
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


def environment(threads: int) -> dict[str, str]:
    """Variables of a child: `threads` threads, no network, this checkout."""
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TUNEWRIGHT_LANG": "en"}
    return {**os.environ, **quiet, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(SOURCE)}


def of_server(name: str, args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The figures of one server."""
    port, facts = free_port(), None
    models = ["m"]
    if name == "ours":
        command = [sys.executable, "-m", "tunewright", "serve", "--port", str(port)]
        command += ["--at-once", str(args.clients), "--waiting", str(4 * args.clients)]
        command += ["--dtype", args.dtype]
        if args.adapters:
            pairs = [pair.split("=", 1) for pair in args.adapters.split(",")]
            models, facts = [n for n, _ in pairs], json.loads(Path(args.facts).read_text())
            command += [*[path for _, path in pairs], *[w for n in models for w in ("--name", n)]]
        else:
            command += [args.model, "--name", "m"]
    elif name == "transformers":
        command = [str(Path(sys.executable).with_name("transformers")), "serve", args.model]
        command += ["--continuous-batching", "--port", str(port), "--dtype", args.dtype]
        models = [args.model]
    else:
        slots = [str(args.gguf), str(port), str(args.clients), str(args.threads)]
        command = [sys.executable, str(Path(__file__)), "--llamacpp-child", *slots]
    log = work / f"{name}.log"
    with started(command, port, log, environment(args.threads)) as pid:
        found = crowd(port, models, args.clients, args.seconds, args.tokens, pid, facts)
    return found.summary()


def llamacpp_child(gguf: str, port: str, slots: str, threads: str) -> None:
    """llama.cpp's server until it is ended."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.model_alias = {"m"}
    params.hostnames, params.port = ["127.0.0.1"], int(port)
    params.n_parallel, params.n_ctx = int(slots), 256 * int(slots)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    params.warmup = False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(3600)


ONE = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, dtype, seconds, tokens, asked = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5])
tok = AutoTokenizer.from_pretrained(model)
m = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
count, n, began = 0, 0, None
with torch.inference_mode():
    while began is None or time.perf_counter() - began < seconds:
        ids = tok.apply_chat_template([{"role": "user", "content": asked[n % len(asked)]}],
                                      add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = m.generate(**ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        n += 1
        if began is None:
            began = time.perf_counter()
        else:
            count += out.shape[1] - ids["input_ids"].shape[1]
print(json.dumps({"tokens_per_second": round(count / (time.perf_counter() - began), 1), "answers": n - 1}))
"""

OPENVINO = """
import json, sys, time
import openvino_genai as g
path, seconds, tokens, clients, threads, hint, asked = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), sys.argv[6], json.loads(sys.argv[7])
s = g.SchedulerConfig(); s.max_num_seqs = clients; s.max_num_batched_tokens = 2048; s.cache_size = 2
pipe = g.LLMPipeline(path, "CPU", scheduler_config=s, INFERENCE_NUM_THREADS=threads, INFERENCE_PRECISION_HINT=hint)
c = g.GenerationConfig(); c.max_new_tokens = tokens; c.do_sample = False
count, began = 0, None
while began is None or time.perf_counter() - began < seconds:
    out = pipe.generate([asked[i % len(asked)] for i in range(clients)], c)
    if began is None:
        began = time.perf_counter()
    else:
        count += out.perf_metrics.get_num_generated_tokens()
print(json.dumps({"tokens_per_second": round(count / (time.perf_counter() - began), 1)}))
"""


def of_script(python: str, script: str, *words: object, threads: int) -> dict[str, Any]:
    """The figures that a script prints last."""
    env = environment(threads)
    if python != sys.executable:
        env.pop("PYTHONPATH")
    done = subprocess.run(
        [python, "-c", script, *map(str, words)],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Measure the servers one after another, print their figures and write them to `--out`."""
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parse.add_argument("model")
    parse.add_argument("--out", type=Path, required=True)
    parse.add_argument("--clients", type=int, default=64)
    parse.add_argument("--seconds", type=float, default=60.0)
    parse.add_argument("--tokens", type=int, default=48)
    parse.add_argument("--threads", type=int, default=2)
    parse.add_argument("--dtype", default="bfloat16")
    parse.add_argument("--gguf", type=Path)
    parse.add_argument("--openvino-python")
    parse.add_argument("--openvino-model", help="a GGUF file; by default --gguf")
    parse.add_argument("--adapters")
    parse.add_argument("--facts")
    parse.add_argument("--only", default="ours,one,transformers,llamacpp,openvino")
    args = parse.parse_args()
    work = args.out.resolve().parent
    work.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"clients": args.clients, "seconds": args.seconds, "dtype": args.dtype}
    asked = json.dumps(questions())
    for name in args.only.split(","):
        if name == "one":
            how = (args.model, args.dtype, args.seconds, args.tokens, asked)
            found[name] = of_script(sys.executable, ONE, *how, threads=args.threads)
        elif name == "openvino":
            path = args.openvino_model or args.gguf
            if not args.openvino_python or not path:
                continue
            hint = {"bfloat16": "bf16", "float32": "f32"}[args.dtype]
            how = (path, args.seconds, args.tokens, args.clients, args.threads, hint, asked)
            found[name] = of_script(args.openvino_python, OPENVINO, *how, threads=args.threads)
        elif name != "llamacpp" or args.gguf:
            found[name] = of_server(name, args, work)
        print(name, json.dumps(found.get(name)), flush=True)
    ours = found.get("ours", {}).get("tokens_per_second")
    for name in ("one", "transformers", "llamacpp", "openvino"):
        other = found.get(name, {}).get("tokens_per_second")
        if ours and other:
            found[f"ours_over_{name}"] = round(ours / other, 2)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--llamacpp-child"]:
        llamacpp_child(*sys.argv[2:])
    else:
        main()
