"""The likeliest mistakes, each made with the real command: python -m pytest tests/test_errors.py.

Every one is one line on stderr that says what, which value and what to do. The exit code is 2 (the job is wrong) or 1 (it
could not be done), there is no traceback, and no job is left in the output. The tables are meant to be read: the mistake, the
arguments, the words that are expected, the exit code. A full disk is in test_disk.py, a quota in test_commit.py.
"""

from __future__ import annotations

import importlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extract.command import guarded
from extract.stop import KILLED, REPEAT_SECONDS
from tests.commands import Commands
from tests.embedserver import EmbedServer
from tests.hubserver import HubServer
from tests.runs import CHECKOUT, MINILM, Bench

LOG_LINE = re.compile(r"\d\d:\d\d:\d\d ")
NOWHERE = "http://127.0.0.1:9"  # a port where nobody listens
NO_TOKEN = {"HF_TOKEN": None}

EMBED = f"run --source chats.parquet --model {MINILM} --output ./out --chunk-rows 10"
FAKE = f"{EMBED} --engine fake"
LOGITS = f"{FAKE} --build logits"
HUB = f"{FAKE} --source user/chats"
SERVER = f"{EMBED} --engine openai --endpoint SERVER"


class Mistake(NamedTuple):
    what: str
    arguments: str
    words: str  # a regular expression in the line
    code: int = 2
    env: dict[str, str | None] = {}
    without: tuple[str, ...] = ()  # packages


OPTIONS = [
    Mistake("a slip in an option", f"{FAKE} --max-lenth 8", "No such option '?--max-lenth'?.*--max-length"),
    Mistake("a slip in a command", "verfy ./out", "No such command 'verfy'.*verify"),
    Mistake("no value", f"{FAKE} --seed", "'--seed' requires an argument"),
    Mistake("a value that is none of the choices", f"{FAKE} --dtype float8", "--dtype.*'float8' is not one of"),
    Mistake("a number under its range", f"{FAKE} --limit 0", "--limit is 0: it must be at least 1"),
    Mistake("a negative time", f"{FAKE} --max-runtime-minutes -5", "is -5.0: it must be at least 0"),
    Mistake("a share over 1", f"{LOGITS} --top-p 1.5", "--top-p is 1.5"),
    Mistake("go on and start over", f"{FAKE} --resume --restart", "--resume and --restart exclude each other"),
    Mistake(
        "a job of a number that there is not", f"{FAKE} --num-jobs 2 --job-index 2", "--job-index is 2: .* at most 1"
    ),
    Mistake(
        "a tracker that there is not", f"{FAKE} --tracker wandbb", "--tracker is 'wandbb': accelerate has .*wandb"
    ),
    Mistake("a tracker that is not installed", f"{FAKE} --tracker aim", "--tracker aim: .*: pip install aim"),
    Mistake("no source", f"run --job seed.toml --model {MINILM} --output ./out", "--source is missing: give"),
    Mistake("no output", f"run --source chats.parquet --model {MINILM}", "--output is missing: give"),
    Mistake("no model", "run --source chats.parquet --output ./out", "--model is missing: give"),
    Mistake("a slip in job.toml", "run --job slip.toml", "unknown option 'modle': did you mean 'model'"),
    Mistake("a wrong type in job.toml", "run --job type.toml", "--max-length is 'long': expected int, got str"),
    Mistake("job.toml is no TOML", "run --job no.toml", "--job no.toml is not valid TOML: Invalid value"),
    Mistake("a job file that is not there", "run --job none.toml", "--job none.toml: there is no such file"),
    Mistake("a preset that is not there", "run --preset nope", "--preset is 'nope': the presets are demo-embeddings"),
]
SOURCE = [
    Mistake("not on the Hub", f"{HUB} --source user/none", "--source user/none: no such dataset on the Hub"),
    Mistake("private, no token", f"{HUB} --source user/private", "private: .*private.*`hf auth login`", env=NO_TOKEN),
    Mistake("gated", f"{HUB} --source user/gated", "--source user/gated is gated: ask for access on its page"),
    Mistake("no such split", f"{HUB} --split test", "--split is 'test': user/chats has 'train'"),
    Mistake("no such configuration", f"{HUB} --source-config de", "--source-config is 'de': user/chats has 'default'"),
    Mistake("no such revision", f"{HUB} --revision v9", "--revision 'v9': user/chats has no such revision"),
    Mistake("no such file", f"{FAKE} --source none.parquet", "--source none.parquet: no such .parquet or .jsonl file"),
    Mistake("another format", f"{FAKE} --source rows.csv", "read as .parquet or .jsonl, not '.csv'"),
    Mistake("a damaged file", f"{FAKE} --source broken.parquet", "broken.parquet", 1),
    Mistake("no rows", f"{FAKE} --source empty.jsonl", "--source empty.jsonl has no rows in its split 'train'"),
    Mistake("lines that are no JSON", f"{FAKE} --source words.jsonl --text-template {{id}}", "words.jsonl"),
    Mistake("no such column", f"{FAKE} --text-template {{nope}}", "no column 'nope' for the text: the source has id"),
    Mistake(
        "no chats to keep",
        f"{FAKE} --source texts.jsonl --keep-messages",
        "--keep-messages: texts.jsonl has no column 'messages', it has id, text",
    ),
    Mistake("no chats", f"{LOGITS} --source texts.jsonl", "--messages-column is 'messages'.*has 'id', 'text'"),
    Mistake(
        "no chat has an answer",
        f"{LOGITS} --model chat-model --source questions.jsonl --output ./none",
        "--source questions.jsonl: none of its 3 rows gives a record: no_assistant_token 3",
    ),
]
MODEL = [
    Mistake("not on the Hub", f"{FAKE} --model user/none", "--model user/none: no such model on the Hub"),
    Mistake("gated", f"{FAKE} --model user/gated", "--model user/gated is gated: ask for access on its page"),
    Mistake("no such revision", f"{FAKE} --model user/chats --model-revision v9", "--model-revision 'v9': user/chats"),
    Mistake("a folder without a model", f"{FAKE} --model .", "--model .: . has no config.json"),
    Mistake(
        "a folder without weights", f"{EMBED} --model no-weights", "no-weights cannot be loaded: .*safetensors", 1
    ),
    Mistake("weights as pickle alone", f"{EMBED} --model pickled", "it has no weights in safetensors.*no pickle", 1),
    Mistake("Python code", f"{EMBED} --model with-code", "comes with Python code: .*--trust-remote-code", 1),
    Mistake("a damaged GGUF file", f"{EMBED} --model bad.gguf", "--model bad.gguf"),
    Mistake(
        "no tokenizer", f"{FAKE} --model no-tokenizer", "--model no-tokenizer: no tokenizer: its files are not there"
    ),
    Mistake("no chat template", LOGITS, f"--model {MINILM}: there is no chat template.*--chat-template"),
    Mistake("no chat template, counting", f"{FAKE} --build lengths", "no chat template.*--count text counts texts"),
    Mistake(
        "no chat template, looking", f"mask {MINILM} --source chats.parquet", "has no chat template: --chat-template"
    ),
    Mistake(
        "an encoder as teacher", f"{EMBED} --build logits --model encoder", "lacks 6 of the weights.*another kind", 1
    ),
    Mistake("too many ids", f"{LOGITS} --model large", "262,144"),
    Mistake("too long for it", f"{FAKE} --max-length 4096", "--max-length 4096: the model takes at most 256 tokens"),
    Mistake(
        "more dimensions than it has", f"{EMBED} --dimensions 999", "--dimensions 999: the model's vectors have 384"
    ),
    Mistake("a layer that it has not", f"{EMBED} --layer 99", "--layer is 99: the model has layers 0 to 6"),
    Mistake(
        "a prompt that it has not", f"{FAKE} --prompt-name query", "--prompt-name is 'query': the model's prompts are"
    ),
]
OUTPUT = [
    Mistake(
        "another job is there",
        f"{FAKE} --output ./done --resume --max-length 99",
        "done holds another job; it differs in max_length: 256 -> 99. Give the job that it holds.*--restart to delete it",
    ),
    Mistake(
        "neither --resume nor --restart", f"{FAKE} --output ./done", "done holds this job already: --resume goes on"
    ),
    Mistake(
        "a file is there",
        f"{FAKE} --output ./rows.csv/out",
        "--output rows.csv/out cannot be made: Not a directory",
        1,
    ),
    Mistake("no name", f"{FAKE} --output a/b/c", "--output 'a/b/c' is neither a Hub dataset"),
    Mistake(
        "no token", f"{FAKE} --output user/new", "--output user/new: .*hf auth login.*--output ./out", 1, NO_TOKEN
    ),
    Mistake("a wrong token", f"{FAKE} --output user/new", "hf auth login", 1, {"HF_TOKEN": "hf_wrong"}),
    Mistake("a token that may only read", f"{FAKE} --output user/new --seed 1", "the token may not write here", 1),
]
ENGINE = [
    Mistake(
        "no such device", f"{EMBED} --device cuda:77", "--device cuda:77: there is no such device; here are .*cpu"
    ),
    Mistake("a device with a slip", f"{EMBED} --device gpu", "--device gpu: there is no such device"),
    Mistake("vLLM not installed", f"{EMBED} --engine vllm", r"pip install 'stillroom\[vllm\]'", without=("vllm",)),
    Mistake(
        "Triton's client not installed",
        f"{EMBED} --engine triton --endpoint grpc://127.0.0.1:9",
        r"pip install 'stillroom\[triton\]'",
        without=("tritonclient",),
    ),
    Mistake("no address", f"{EMBED} --engine tei", "--engine tei needs --endpoint URL"),
    Mistake("an address without http", f"{EMBED} --engine tei --endpoint gpu1:8080", "gpu1:8080: expected a URL"),
    Mistake(
        "a server that is down", f"{EMBED} --engine tei --endpoint {NOWHERE}", f"not ready: {NOWHERE}: Connect", 1
    ),
    Mistake(
        "a model it does not serve", f"{SERVER} --endpoint-model other", "--endpoint-model other: .*serves the-model"
    ),
    Mistake("vLLM makes no logits", f"{EMBED} --build logits --engine vllm", "--engine vllm makes no logits"),
    Mistake("memory of no devices", f"{FAKE} --max-memory 0=1GiB", "--max-memory limits --device-map: give that, too"),
    Mistake(
        "no cache", f"{FAKE} --cache-dir rows.csv/x", "cache rows.csv/x cannot be written: Not a dir.*--cache-dir"
    ),
    Mistake(
        "lengths of other rows",
        f"{FAKE} --lengths ./lengths --source texts.jsonl --text-template {{text}}",
        "--lengths lengths",
    ),
    Mistake("lengths that are none", f"{FAKE} --lengths ./done", "--lengths"),
]
OTHERS = [
    Mistake("nothing to verify", "verify ./nowhere", "./nowhere: there is no such folder"),
    Mistake("not ours", "verify ./pickled", "pickled has no _stillroom/job.json: it was not made by stillroom"),
    Mistake("no such dataset", "status user/none", "user/none: the dataset is not there, or the token cannot see it"),
    Mistake("nothing to tell of", "status ./nowhere", "./nowhere: there is no such folder"),
    Mistake("vectors explored", "explore ./done", "done holds embeddings: explore shows datasets of --build logits"),
    Mistake("vectors exported", "export ./done ./there --to axolotl", "done"),
    Mistake("no such row", "explore ./logits --sample 999", "--sample 999: no row of that index"),
]
FAMILIES = {name: globals()[name] for name in ("OPTIONS", "SOURCE", "MODEL", "OUTPUT", "ENGINE", "OTHERS")}
TABLE = [pytest.param(m, id=f"{name.lower()}: {m.what}") for name, table in FAMILIES.items() for m in table]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}[SEP]{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<assistant>{% endif %}"


def chats(number: int) -> list[dict]:
    roles = (("user", "What follows {}?"), ("assistant", "It is one more than {}."))
    return [
        {"id": f"r{i}", "messages": [{"role": r, "content": t.format(i)} for r, t in roles]} for i in range(number)
    ]


def parquet(rows: list[dict]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def make_files(folder: Path) -> None:
    """What the arguments name, models apart."""
    (folder / "chats.parquet").write_bytes(parquet(chats(20)))
    (folder / "broken.parquet").write_bytes(parquet(chats(20))[:-100])
    questions = [{"messages": row["messages"][:1]} for row in chats(3)]
    texts = {
        "empty.jsonl": "",
        "words.jsonl": "these are\nno JSON\n",
        "rows.csv": "a,b\n",
        "texts.jsonl": '{"id": "1", "text": "a"}\n',
        "questions.jsonl": "".join(f"{json.dumps(row)}\n" for row in questions),
        "slip.toml": "modle = 'x'",
        "type.toml": "source = 'x'\nmax_length = 'long'",
        "no.toml": "source =",
        "seed.toml": "seed = 1",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "bad.gguf").write_bytes(b"GGUF" + bytes(60))


def make_models(folder: Path, minilm: Path) -> None:
    """Models that lack something."""
    without = shutil.ignore_patterns("*.safetensors", "*.bin", "modules.json")
    for name in ("no-weights", "pickled", "with-code", "no-tokenizer", "encoder", "chat-model", "large"):
        shutil.copytree(minilm, folder / name, ignore=without)
    (folder / "pickled/pytorch_model.bin").write_bytes(b"x")
    for path in [*(folder / "no-tokenizer").glob("*token*"), folder / "no-tokenizer/vocab.txt"]:
        path.unlink(missing_ok=True)
    shutil.copy(minilm / "model.safetensors", folder / "encoder")
    (folder / "with-code/own.py").write_text("raise SystemExit('this code has run')")
    change(folder / "with-code/config.json", model_type="own", auto_map={"AutoConfig": "own.C", "AutoModel": "own.M"})
    change(folder / "large/config.json", vocab_size=300_000)
    for name in ("encoder", "chat-model", "large"):
        change(folder / name / "tokenizer_config.json", chat_template=TEMPLATE, eos_token="[SEP]")


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        for name in ("chats", "private", "gated"):
            server.create_repo(f"user/{name}", name == "private")
            server.write(f"user/{name}", {"data/train-0.parquet": parquet(chats(20)), "config.json": b"{}"})
        server.gated.add("user/gated")
        yield server


@pytest.fixture(scope="module")
def server(minilm: Path) -> Iterator[EmbedServer]:
    with EmbedServer(minilm) as server:
        yield server


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, minilm: Path, hub: HubServer) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("work"), dict(hub.env()))
    make_files(bench.root)
    make_models(bench.root, minilm)
    return bench


@pytest.fixture(scope="module")
def commands(bench: Bench) -> Iterator[Commands]:
    with Commands(bench.root, bench.env) as commands:
        for more in ("./done", "./logits --build logits --model chat-model", "./lengths --build lengths --count text"):
            made = commands.run(*f"{FAKE} --output {more}".split())
            assert made.code == 0, made.err
        yield commands


def check(mistake: Mistake, code: int, out: str, err: str) -> None:
    lines = [line for line in err.splitlines() if not LOG_LINE.match(line)]
    assert len(lines) == 1, err
    assert lines[0].startswith("stillroom: ")
    assert re.search(mistake.words, lines[0]), lines[0]
    assert (code, out) == (mistake.code, "")
    assert "hf_test" not in err and "hf_wrong" not in err


@pytest.mark.parametrize("mistake", TABLE)
def test_a_mistake_is_one_line(mistake: Mistake, commands: Commands, server: EmbedServer, hub: HubServer) -> None:
    arguments = [word.replace("SERVER", server.url) for word in mistake.arguments.split()]
    hub.read_only = "only read" in mistake.what
    shutil.rmtree(commands.folder / "out", ignore_errors=True)
    check(mistake, *commands.run(*arguments, env=mistake.env, without=mistake.without))
    assert not (commands.folder / "out/_stillroom/job.json").exists(), "the right job would be refused there"


def test_there_are_forty_and_no_two_alike() -> None:
    assert len({m.values[0].arguments for m in TABLE}) >= 40
    assert len({m.id for m in TABLE}) == len(TABLE)


def test_a_python_that_lacks_a_package_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: importlib.import_module("no_such_package").main()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "No module named 'no_such_package'" in line and sys.executable in line and "pip install -e ." in line


def test_debug_has_the_traceback_too(commands: Commands) -> None:
    done = commands.run(*f"{FAKE} --source none.parquet --debug".split())
    assert done.code == 2
    assert "Traceback" in done.err and done.err.splitlines()[-1].startswith("stillroom: --source none.parquet")


def test_a_tokenizer_without_a_pad_token_is_no_mistake(commands: Commands) -> None:
    shutil.copytree(commands.folder / "chat-model", commands.folder / "no-pad")
    change(commands.folder / "no-pad/tokenizer_config.json", pad_token=None)
    done = commands.run(*f"{FAKE} --model no-pad --output ./no-pad-out".split())
    assert done.code == 0, done.err


def test_a_quiet_run_says_nothing_and_a_log_for_programs_is_json(commands: Commands) -> None:
    done = commands.run(*f"{FAKE} --output ./quiet --quiet".split())
    assert (done.code, done.out, done.err) == (0, "", "")
    done = commands.run(*f"{FAKE} --output ./json --log-format json".split())
    lines = [json.loads(line) for line in done.err.splitlines()]
    (last,) = [line["status"] for line in lines if line["message"].startswith("this run: ")]
    assert (last["state"], last["units_done"], last["rows"], last["pending"]) == ("complete", 2, 20, 0)
    assert {line["level"] for line in lines} == {"info"}
    assert "20 records of 20 rows" in lines[-2]["message"] and "load_dataset('./json')" in lines[-1]["message"]
    done = commands.run(*f"{FAKE} --output ./json --log-format json".split())
    assert done.code == 2 and json.loads(done.err)["level"] == "error"


def process(bench: Bench, arguments: str, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(CHECKOUT / "extract/run.py"), *arguments.split()[1:]]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=bench.env | env, cwd=bench.root, stdout=pipe, stderr=pipe, text=True)


REAL = [
    (OPTIONS[0], {}),
    (Mistake("the Hub is away", HUB, "--source user/chats: the Hub cannot be reached: ", 1), {"HF_ENDPOINT": NOWHERE}),
    *(
        pytest.param(family[i], {}, marks=pytest.mark.slow)
        for family, i in ((SOURCE, 4), (MODEL, 5), (OUTPUT, 3), (ENGINE, 0))
    ),
]


@pytest.mark.parametrize(("mistake", "env"), REAL)
def test_a_mistake_in_a_process_of_its_own(mistake: Mistake, env: dict[str, str], bench: Bench) -> None:
    started = process(bench, mistake.arguments, **env)
    out, err = started.communicate(timeout=120)
    check(mistake, started.returncode, out, err)


def hanging(bench: Bench, package: str) -> dict[str, str]:
    """The environment of a process in which a package takes a minute to import, and makes the file `hangs`."""
    folder = bench.root / f"slow-{package}"
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text("open('hangs', 'w').close()\nimport time\ntime.sleep(60)\n")
    (bench.root / "hangs").unlink(missing_ok=True)
    return {"PYTHONPATH": str(folder)}


def test_ctrl_c_while_python_imports_is_one_line(bench: Bench) -> None:
    started = process(bench, EMBED, **hanging(bench, "pyarrow"))
    wait_for(bench.root / "hangs", started)
    started.send_signal(signal.SIGINT)
    assert started.communicate(timeout=30) == ("", "stillroom: interrupted\n")
    assert started.returncode == 130


def test_ctrl_c_twice_does_not_wait_for_what_hangs(bench: Bench) -> None:
    started = process(bench, EMBED, **hanging(bench, "torch"))
    wait_for(bench.root / "hangs", started)
    for pause in (0.0, REPEAT_SECONDS + 0.2):
        time.sleep(pause)
        started.send_signal(signal.SIGINT)
    assert started.communicate(timeout=30) == ("", "")
    assert started.returncode == KILLED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_model_loads_ends_the_run_well(number: signal.Signals, bench: Bench) -> None:
    cache = bench.root / f"cache-{number.name}"
    started = process(bench, f"{EMBED} --output ./{number.name}", STILLROOM_CACHE=str(cache))
    wait_for(cache, started)  # from here on the run takes signals itself
    started.send_signal(number)
    _, err = started.communicate(timeout=120)
    assert started.returncode == 0, err
    assert f"stopped ({number.name})" in err.splitlines()[-1] and err.endswith("run again with --resume\n")
    assert "Traceback" not in err


def wait_for(path: Path, started: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert started.poll() is None and time.monotonic() < end, started.communicate()
        time.sleep(0.02)
