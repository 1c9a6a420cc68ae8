"""A logits dataset is opened with what reading it needs, from a folder or the Hub."""

from __future__ import annotations

import json
import shutil

import pytest

from builders.stored_logits import open_logits
from tests.hubserver import HubServer
from tests.logits_folder import VOCAB, tiny_chats, tiny_model, write_folder
from tests.runs import use_hub


@pytest.fixture(scope="module")
def chats():
    return tiny_chats(tiny_model(1))


@pytest.mark.parametrize("encoding", ["default", "compact"])
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_records_come_with_what_decodes_them(place, encoding, chats, tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "out", chats.records(encoding), encoding)
    with HubServer(tmp_path / "hub") as server:
        use_hub(monkeypatch, server)
        server.create_repo("user/logits")
        files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        server.write("user/logits", files, "all")
        stored = open_logits(str(folder) if place == "folder" else "user/logits")
        found = [stored.unpack(record) for record in stored.records()]
    assert (stored.form.encoding, stored.form.vocab_size, len(stored.chunks)) == (encoding, VOCAB, 2)
    assert [one.input_ids.tolist() for one in found] == [ids.tolist() for ids in chats.input_ids]
    assert [one.positions.tolist() for one in found] == [where.tolist() for where in chats.positions]
    assert (stored.ranks is None) == (encoding == "default")


def test_what_cannot_be_read_is_refused_in_one_line(chats, tmp_path):
    with pytest.raises(ValueError, match="no dataset of stillroom here"):
        open_logits(str(tmp_path))
    folder = write_folder(tmp_path / "out", chats.records("compact"), "compact")
    (folder / "_stillroom/ranks.bin").unlink()
    with pytest.raises(ValueError, match=r"has no _stillroom/ranks\.bin, without which nothing can be read"):
        open_logits(str(folder))
    shutil.rmtree(folder / "data")
    with pytest.raises(ValueError, match="no chunk in data/ yet"):
        open_logits(str(folder))
    job = folder / "_stillroom/job.json"
    content = json.loads(job.read_text())
    job.write_text(json.dumps(content | {"job": content["job"] | {"build": "embeddings"}}))
    with pytest.raises(ValueError, match="is a dataset of embeddings"):
        open_logits(str(folder))


def test_while_an_update_runs_readers_have_what_was_there_before(chats, tmp_path):
    folder = write_folder(tmp_path / "out", chats.records())
    job = folder / "_stillroom/job.json"
    content = json.loads(job.read_text())
    (folder / "_stillroom/previous.json").write_text(json.dumps(content))
    job.write_text(json.dumps(content | {"job": content["job"] | {"revision": "1" * 40, "updated_from": "0" * 40}}))
    assert len([*open_logits(str(folder)).records()]) == 3
