"""`stillroom explore`: python -m pytest tests/test_explore.py."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from huggingface_hub import HfApi

from builders.packing import unpack
from extract.cli import main
from extract.explore import Request, explore
from tests.hubserver import HubServer
from tests.runs import use_hub
from tests.test_logits_run import model  # noqa: F401  # a fixture: a folder with a tokenizer of 700 tokens

EVIL = "<script>alert(1)</script> & \x1b[31mred\u202e"
NUM_ROWS = 9


@pytest.fixture(scope="module")
def home(tmp_path_factory, model):  # noqa: F811
    """A folder with two datasets of the same chats, by seeds 0 and 1, and one of other chats."""
    home = tmp_path_factory.mktemp("explore")
    for name, answer in (("chats", "It is {}."), ("others", "It may be {}.")):
        lines = [
            {
                "id": f"row-{n}",
                "messages": [
                    {"role": "user", "content": f"What is {n} + {n}?" + EVIL * (n == 2)},
                    {"role": "assistant", "content": answer.format(2 * n) + EVIL * (n == 2)},
                ],
            }
            for n in range(NUM_ROWS)
        ]
        (home / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for output, source, seed in (("a", "chats", 0), ("b", "chats", 1), ("c", "others", 0)):
        job = ["--build", "logits", "--engine", "fake", "--source", home / f"{source}.jsonl", "--model", model]
        job += ["--seed", seed, "--chunk-rows", 4, "--output", home / output, "--cache-dir", home / "cache"]
        done = CliRunner().invoke(main, ["run", "--resume", *map(str, job)])
        assert done.exit_code == 0, done.output
    return home


def look(*arguments, code=0):
    done = CliRunner().invoke(main, ["explore", *map(str, arguments)])
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.stdout if code == 0 else done.stderr


def records(folder):
    return [row for path in sorted(folder.glob("data/**/*.parquet")) for row in pq.read_table(path).to_pylist()]


def plain_figures(rows):
    """The same figures by loops over tokens."""
    sizes, masses, entropies, surprises = [], [], [], []
    for row in rows:
        found = unpack(row)
        _, weights = found.weights()
        place = 0
        for t, size in enumerate(found.counts):
            ids, logits = found.ids[place : place + size], found.logits[place : place + size].astype(float)
            place += size
            log_p = logits - found.logsumexp[t]
            tail = found.sampled_logits[t] - found.logsumexp[t]
            sizes.append(size)
            masses.append(np.exp(log_p).sum())
            entropies.append(-(np.exp(log_p) * log_p).sum() - (weights[t] * tail).sum())
            target = row["input_ids"][row["positions"][t]]
            if target in ids:
                surprises.append(-log_p[ids.tolist().index(target)])
            elif target in found.sampled_ids[t]:
                surprises.append(-tail[found.sampled_ids[t].tolist().index(target)])
    return np.array(sizes), np.array(masses), np.array(entropies), np.array(surprises)


@pytest.mark.parametrize("device", [(), ("--device", "cpu")])
def test_figures_are_those_of_a_plain_computation(home, device):
    said = json.loads(look(home / "a", "--json", *device))
    sizes, masses, entropies, surprises = plain_figures(records(home / "a"))
    assert said["rows"] == NUM_ROWS and said["is_complete"]
    assert said["tokens"] == len(sizes)
    figures = said["histograms"]
    assert figures["nucleus size"]["mean"] == pytest.approx(sizes.mean())
    assert figures["nucleus size"]["median"] == np.quantile(sizes, 0.5, method="inverted_cdf")
    assert figures["nucleus mass"]["mean"] == pytest.approx(masses.mean(), abs=1e-6)
    assert figures["nucleus mass"]["p5"] == pytest.approx(np.quantile(masses, 0.05, method="inverted_cdf"), abs=1e-4)
    assert figures["entropy"]["mean"] == pytest.approx(entropies.mean(), abs=1e-4)
    assert said["share_text_stored"] == pytest.approx(len(surprises) / len(sizes))
    assert said["perplexity_of_stored"] == pytest.approx(np.exp(surprises.mean()), rel=1e-4)
    assert said["perplexity"] >= said["perplexity_of_stored"]
    size = sum(path.stat().st_size for path in (home / "a").glob("data/**/*.parquet"))
    assert said["bytes"] == pytest.approx(size)


def test_figures_for_people(home):
    out = look(home / "a", "--rows", "5")
    assert re.search(r"^rows +5$", out, re.MULTILINE)
    assert "a, complete" in out and "default, 704 ids" in out
    for name in ("nucleus size", "nucleus mass", "entropy", "surprise of the text"):
        assert re.search(rf"^{name}.*: mean [\d.]+ .*median", out, re.MULTILINE)
    assert "█" in out and "\x1b" not in out


def test_a_dataset_that_still_grows_says_how_far_it_is(home, tmp_path):
    """As after the first of three commits."""
    whole = home / "a"
    for path in [*whole.rglob("*.json"), whole / "README.md", sorted(whole.glob("data/**/*.parquet"))[0]]:
        target = tmp_path / path.relative_to(whole)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    card = (tmp_path / "README.md").read_text()
    assert "**Complete**" in card
    assert "growing: 1 chunks are here" in look(tmp_path)
    (tmp_path / "README.md").write_text("**Growing**: at least 33 % of 3 chunks are here. It loads as it is.")
    assert "growing: 1 of 3 chunks are here" in look(tmp_path)


def test_a_conversation_without_colours(home):
    out = look(home / "a", "--sample", "5", "--top", "2")
    assert "row 5 of data/train/0000/000000000004-000000000008.parquet" in out
    assert "id row-5" in out
    row = records(home / "a")[5]
    found = unpack(row)
    assert re.search(r"What is 5 \+ 5\?<\|im_end\|>\n<\|im_start\|>assistant\n⟦I <[\d.e-]+%⟧", out)
    shown = re.findall(r"^token (\d+), position (\d+)", out, re.MULTILINE)
    assert len(shown) == 2 and all(row["positions"][int(n)] == int(p) for n, p in shown)
    out = look(home / "a", "--id", "row-5", "--token", "1", "--top", "3")
    first = found.counts[0]
    best = 100 * np.exp(found.logits[first] - found.logsumexp[1])
    assert f"{best:.1f}% █" in out and "all others" in out and "← the text" in out
    assert re.findall(r"^token (\d+)", out, re.MULTILINE) == ["1"]


def test_a_conversation_in_colours_does_not_steer_the_terminal(home):
    (out, *_) = [part for part in explore(Request(str(home / "a"), indices=(2,), color=True)) if "assistant" in part]
    assert "\x1b[38;5;245m<|im_start|>" in out and "\x1b[38;5;203m" in out
    assert "\x1b[31m" not in out and "\u202e" not in out and "␛" in out


@pytest.mark.parametrize(("set_to", "is_colored"), [(None, True), ("1", False)])
def test_no_color_is_respected(monkeypatch, set_to, is_colored):
    from extract import explore_cli

    monkeypatch.setattr(explore_cli.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if set_to:
        monkeypatch.setenv("NO_COLOR", set_to)
    assert explore_cli._has_colors() is is_colored


def test_a_record_as_json(home):
    (row,) = json.loads(look(home / "a", "--sample", "2", "--json"))["rows"]
    assert row["id"] == "row-2" and "<script>alert(1)</script>" in row["text"]
    stored = records(home / "a")[2]
    assert [token["position"] for token in row["captured"]] == stored["positions"]
    for token in row["captured"]:
        p = [candidate["p"] for candidate in token["candidates"]]
        assert p == sorted(p, reverse=True) and 0 < token["p"] <= 1


class Page(HTMLParser):
    """Tags that stay open, what could be fetched, and the text of scripts."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.scripts, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag not in ("meta", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif "style" not in self.open:
            self.text += data


def test_a_page_is_whole_and_fetches_nothing(home, tmp_path):
    out = look(home / "a", "--html", tmp_path / "page.html", "--sample", "2", "--sample", "7")
    assert "9 rows in figures, 2 to read" in out
    content = (tmp_path / "page.html").read_text()
    page = Page()
    page.feed(content)
    assert page.open == [] and page.links == []
    assert not re.search(r"https?:|url\(|@import|\bimport\b|fetch\(", content)
    assert "default-src 'none'" in content
    data, _ = page.scripts  # the data, and what shows it: none of the conversation's own
    assert "alert(1)" in page.text and "\x1b" not in content and "\u202e" not in content
    rows, stored = json.loads(data), records(home / "a")
    assert [[token["position"] for token in row] for row in rows] == [stored[n]["positions"] for n in (2, 7)]
    assert all(len(token["candidates"]) <= 8 and 0 <= token["rest"] < 1 for row in rows for token in row)
    assert content.count("<svg") == 4


def test_a_page_of_no_row_in_particular_shows_some(home, tmp_path):
    assert "3 to read" in look(home / "a", "--html", tmp_path / "page.html")


def test_a_dataset_is_the_same_as_itself(home):
    said = json.loads(look(home / "a", "--compare", home / "a", "--json"))
    assert said["rows"] == NUM_ROWS and said["tokens_unmatched"] == 0
    assert said["kl"]["mean"] == 0 and said["same_top"] == 1
    assert said["tokens_that_differ_most"] == []


def test_two_teachers_differ(home):
    said = json.loads(look(home / "a", "--compare", home / "b", "--json"))
    assert said["kl"]["mean"] > 0 and said["nucleus_size"]["absolute_difference"] > 0
    worst = said["tokens_that_differ_most"]
    assert [token["kl"] for token in worst] == sorted((token["kl"] for token in worst), reverse=True)
    out = look(home / "a", "--compare", home / "b", "--top", "2")
    assert f"row {worst[0]['index']}, position {worst[0]['position']}: KL {worst[0]['kl']:.3g}" in out
    assert len(re.findall(r"^    [AB]: ", out, re.MULTILINE)) == 4


def test_tokens_after_other_text_are_not_compared(home):
    said = json.loads(look(home / "a", "--compare", home / "c", "--rows", "3", "--json"))
    both = [records(home / name)[:3] for name in ("a", "c")]
    total = sum(row["num_tokens"] for rows in both for row in rows)
    # "It " and what "is" and "may" begin with alike: nothing
    same = 0
    for one, two in zip(*both, strict=True):
        length = next(n for n, (i, j) in enumerate(zip(one["input_ids"], two["input_ids"], strict=False)) if i != j)
        same += sum(position < length for position in one["positions"])
    assert said["tokens"] == same > 0
    assert said["tokens_unmatched"] == total - 2 * same


def test_a_dataset_on_the_hub(home, tmp_path, monkeypatch):
    with HubServer(tmp_path) as hub:
        use_hub(monkeypatch, hub)
        HfApi().create_repo("tester/logits", repo_type="dataset")
        HfApi().upload_folder(repo_id="tester/logits", folder_path=home / "a", repo_type="dataset")
        there, here = (json.loads(look(name, "--json")) for name in ("tester/logits", home / "a"))
        assert there["histograms"] == here["histograms"] and there["revision"] != here["revision"]
        row = look("tester/logits", "--sample", "7").split("token 0")[0]
        assert row == look(home / "a", "--sample", "7").split("token 0")[0]


def test_without_a_tokenizer_ids_are_shown(home, tmp_path):
    for path in (home / "a").rglob("*"):
        target = tmp_path / "out" / path.relative_to(home / "a")
        target.mkdir(parents=True, exist_ok=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    job = json.loads((tmp_path / "out/_stillroom/job.json").read_text())
    job["job"]["model"] = "./gone"
    (tmp_path / "out/_stillroom/job.json").write_text(json.dumps(job))
    out = look(tmp_path / "out", "--sample", "3")
    assert "ids stand for text, as there is no tokenizer: --model ./gone" in out
    assert f"⟨{records(home / 'a')[3]['input_ids'][0]}⟩" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("{home}/none",), "{home}/none: there is no such folder"),
        (("{home}",), "{home} has no _stillroom/job.json"),
        (
            ("{home}/a", "--sample", "99"),
            "--sample 99: no row of that index in {home}/a, whose indices go from 0 to 8",
        ),
        (("{home}/a", "--id", "x"), "--id 'x': no row of that id"),
        (("{home}/a", "--sample", "1", "--token", "999"), "--token 999: the row has "),
        (("{home}/a", "--token", "1"), "--token needs a row"),
        (("{home}/a", "--html", "{home}/none/page.html"), "--html {home}/none/page.html: "),
        (("{home}/a", "--compare", "{home}/none"), "{home}/none: there is no such folder"),
        (("{home}/a", "--device", "tpu"), "Invalid value for '--device'"),
    ],
)
def test_what_cannot_be_is_one_line(home, arguments, line):
    said = look(*(argument.format(home=home) for argument in arguments), code=2)
    assert said.startswith(f"stillroom: {line.format(home=home)}"), said
    assert said.count("\n") == 1
