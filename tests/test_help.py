"""Help, completion, and what they cost: python -m pytest tests/test_help.py."""

import json
import re
import shlex
import subprocess
import sys
from shutil import which

import click
import pytest

from builders.job_files import preset_names
from extract.cli import main
from extract.command import guarded
from tests.guides import write_tools
from tests.runs import CHECKOUT

COMMANDS = ["", *main.commands]
HEAVY = {"torch", "transformers", "datasets", "huggingface_hub", "pyarrow", "numpy", "pandas", "accelerate", "faiss"}


def help_of(name):
    """The help of a command as an 80-column terminal shows it."""
    command = main.commands[name] if name else main
    with click.Context(
        command, info_name=f"stillroom {name}".strip(), max_content_width=100, terminal_width=80
    ) as ctx:
        return command.get_help(ctx)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_80_columns(name):
    lines = help_of(name).splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert len(lines) > 5


@pytest.mark.parametrize("name", main.commands)
def test_every_option_has_its_help_and_its_default(name):
    entries = [re.sub(r"\s+", " ", part.split("\n\n")[0]) for part in re.split(r"\n  (?=--)", help_of(name))[1:]]
    shown = {entry.split()[0].rstrip(","): entry for entry in entries}
    assert shown.pop("--help").endswith("exit.")
    assert set(shown) == {p.opts[0] for p in main.commands[name].params if isinstance(p, click.Option)}
    for flag, entry in shown.items():
        assert re.search(r" \w+ .*\w+.* \[[^\[\]]+\]$", entry), f"{flag}: {entry}"


def test_options_of_a_run_stand_under_their_themes():
    text = help_of("run")
    themes = ["Options", "Source", "Output", "Text", "Images", "Model", "Logits", "Engine", "Run"]
    assert re.findall(r"(?m)^([A-Z]\w+):$", text) == themes
    assert text.index("\nModel:") < text.index("--pooling") < text.index("\nLogits:") < text.index("--top-p")


def test_every_command_is_in_a_theme_of_the_help_and_says_what_it_does():
    text = help_of("")
    assert re.findall(r"(?m)^([A-Z]\w+):$", text)[:2] == ["Options", "Make"]
    for name, command in main.commands.items():
        assert re.search(rf"(?m)^  {name}  +\w", text), name
        assert command.help and command.get_short_help_str(200).endswith("."), name


def completions(line, shell="bash"):
    """What a shell is offered for the last word of a line, as its own script asks for it."""
    words = line.split(" ")
    env = {"_STILLROOM_COMPLETE": f"{shell}_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    env |= {"COMP_CWORD": words[-1]} if shell == "fish" else {}
    command = [sys.executable, "-c", "from extract.cli import main; main(prog_name='stillroom')"]
    done = subprocess.run(command, env=env, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    return lines[1::3] if shell == "zsh" else [re.split(r"[,\t]", line)[1] for line in lines]


def test_the_shell_completes_commands_options_choices_and_presets():
    assert completions("stillroom ver") == ["verify"]
    assert completions("stillroom run --build ") == ["embeddings", "logits", "lengths"]
    assert completions("stillroom run --max-l") == ["--max-length"]
    assert completions("stillroom run --preset d") == preset_names()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_complete_the_same(shell):
    assert completions("stillroom ver", shell) == ["verify"]


ASK = {  # for what a shell completes after "stillroom ver", or that it asks us
    "bash": "complete -p stillroom",
    "zsh": "print ${_comps[stillroom]}",
    "fish": 'complete --do-complete "stillroom ver"',
}


@pytest.mark.parametrize("shell", ASK)
def test_the_readmes_line_switches_completion_on(shell, tmp_path):
    if which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (line,) = re.findall(rf"(?m)^(.*_STILLROOM_COMPLETE={shell}_source.*)$", (CHECKOUT / "README.md").read_text())
    tools = write_tools(tmp_path / "bin", CHECKOUT)
    before = "autoload -Uz compinit; compinit -u;" if shell == "zsh" else ""
    env = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(tmp_path)}
    script = "\n".join(filter(None, [before, line, ASK[shell]]))
    done = subprocess.run([shell, "-c", script], env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and ("verify" if shell == "fish" else "_stillroom_completion") in done.stdout, (
        done.stderr
    )


def test_a_reader_that_stops_reading_is_no_failure():
    """`stillroom explore … | head`: an exit code as of other tools, and not a word."""
    code = "import click; from extract.command import guarded; import sys\n"
    code += "sys.exit(guarded(lambda: [click.echo('x' * 99) for _ in range(10**6)] and 0))"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=CHECKOUT, capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines() == ["x" * 99, "141"] and done.stderr == ""


def test_a_pipe_that_breaks_elsewhere_is_a_failure(capsys):
    def fail():
        raise BrokenPipeError(32, "Broken pipe")

    assert guarded(fail) == 1 and "Broken pipe" in capsys.readouterr().err


SHOW = """
import json, sys
sys.argv = ["stillroom", *sys.argv[1:]]
from extract.cli import main
try:
    main()
except SystemExit:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
RUN = """
import json, runpy, sys
sys.argv = ["run.py", "--help"]
try:
    runpy.run_path("extract/run.py", run_name="__main__")
except SystemExit:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(("code", "arguments"), [(SHOW, ["--help"]), (SHOW, ["run", "--limit", "0"]), (RUN, [])])
def test_help_and_wrong_options_import_nothing_that_takes_time(code, arguments):
    """Not the seconds, which a busy machine decides: 0.2 s of CPU, where the imports of a run are 4 s."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    modules = json.loads(done.stderr.splitlines()[-1])
    assert "extract.cli" in modules
    assert HEAVY.intersection(modules) == set()
