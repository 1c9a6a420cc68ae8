"""The job: python -m pytest tests/test_job.py."""

import json
from dataclasses import replace

import pytest

from builders.job import Job
from builders.job_files import job_from_dict, preset_names, read_preset, read_toml, stored_job
from builders.options import ConfigError, option_fields

SETTLED = Job(
    source="user/chats",
    output="user/vectors",
    model="user/model",
    revision="a" * 40,
    model_revision="b" * 40,
    max_length=256,
    pooling="mean",
    dtype="float32",
    instruction="",
    chunk_rows=100,
)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_job_with_source_model_and_output(name):
    job = job_from_dict(read_preset(name))
    assert job.source
    assert job.model
    assert job.output


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(
        ConfigError,
        match="the presets are demo-embeddings, demo-lengths, demo-logits, dolci-embeddings, dolci-logits",
    ):
        read_preset("nope")


def test_a_toml_file_builds_on_a_preset(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text('preset = "demo-embeddings"\nchunk_rows = 7\nfields = ["think", "response"]\n')
    job = job_from_dict(read_toml(path))
    assert (job.source, job.chunk_rows, job.fields) == ("demo:chat", 7, ("think", "response"))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no such file"), ("source = ", "is not valid TOML"), ("a\udcff", "is not valid TOML")],
)
def test_a_file_that_is_no_toml_says_so(tmp_path, content, message):
    path = tmp_path / "job.toml"
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        read_toml(path)


def test_an_unknown_key_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown option 'modle': did you mean 'model'\?"):
        job_from_dict({"modle": "user/model"})
    with pytest.raises(ConfigError, match=r"unknown option 'xyzzy': the options are .*max_length, .*model, "):
        job_from_dict({"xyzzy": "user/model"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 1, "sample_per_source": 1}, "--limit and --sample-per-source exclude each other"),
        ({"fields": ("think",), "text_template": "{text}"}, "--fields and --text-template exclude each other"),
        ({"config_name": "skipped"}, "--config-name 'skipped' is a folder of the output"),
        ({"config_name": "../x"}, "--config-name is '../x'"),
        ({"config_name": ""}, "--config-name is ''"),
        ({"split": "train[:10]"}, "--split is 'train\\[:10\\]'"),
        ({"text_template": "no placeholder"}, "names no {placeholder}"),
        ({"fields": ("think", "think")}, "each name makes one vector"),
        ({"fields": ("think",), "system": True}, "fields are texts of their own"),
        ({"empty_text": "  "}, "empty_text is '  '"),
        ({"build": "logits", "encoding": "compact", "temperatures": (1.0, 2.0)}, "it serves temperature 1 alone"),
        ({"build": "logits", "select": "global"}, "only --encoding compact holds that"),
        (
            {"build": "logits", "temperatures": (2.0,)},
            "--temperatures is '2': give 1 to 8 rising numbers, 1 among them",
        ),
        ({"build": "logits", "temperatures": (1.0, float("nan"))}, "--temperatures is '1,nan'"),
        ({"build": "logits", "temperatures": (1.0, 4 / 3)}, "at most six"),
        ({"build": "logits", "global_threshold": 2.0}, "--global-threshold is 2: it must be 1/1024 to 1"),
        ({"temperatures": ("1",)}, "--temperatures has '1': expected float, got str"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Job(**options)


def test_every_option_says_what_it_is_and_its_group():
    for name, spec in option_fields(Job).items():
        assert len(spec.metadata["help"]) > 8, name
        assert spec.metadata["group"] in ("Output", "Source", "Text", "Images", "Model", "Logits"), name
        assert "\n" not in spec.metadata["help"], name


def test_a_job_survives_json():
    job = replace(SETTLED, fields=("think", "response"), text_template=None, updated_from="c" * 40)
    assert stored_job(json.loads(json.dumps(job.to_dict()))) == job


def test_what_a_run_settles_is_no_option_and_no_difference():
    with pytest.raises(ConfigError, match="unknown option 'updated_from'"):
        job_from_dict({"updated_from": "c" * 40})
    assert "updated_from" not in option_fields(Job)
    updated = replace(SETTLED, updated_from="c" * 40)
    assert updated.fingerprint == SETTLED.fingerprint and not updated.differences(SETTLED)


def other_value(name, spec, value):
    if spec.metadata["choices"]:
        return next(c for c in reversed(spec.metadata["choices"]) if c != value)  # of engines: fake
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if name in ("pooling", "normalize"):
        return {"pooling": "cls+mean", "normalize": False}[name]
    free = {"limit": 5, "sample_per_source": 5, "dimensions": 5, "fields": ("think",), "text_template": "{text}"}
    free |= {"temperatures": (1.0, 2.0), "image_column": ("image",), "min_pixels": 5, "max_pixels": 5}
    return free.get(name, "other")


@pytest.mark.parametrize("name", [n for n in option_fields(Job) if n != "build"])  # a build has no other value yet
def test_the_fingerprint_covers_what_decides_values_and_nothing_else(name):
    spec = option_fields(Job)[name]
    mine = replace(SETTLED, image_column=("chart",)) if name.endswith("_pixels") else SETTLED
    mine = replace(mine, instruction=None) if name == "prompt_name" else mine
    other = replace(mine, **{name: other_value(name, spec, getattr(SETTLED, name))})
    assert (other.fingerprint != mine.fingerprint) == spec.metadata["values"]
    assert [line.split(":")[0] for line in mine.differences(other)] == ([name] if spec.metadata["values"] else [])


def test_the_fingerprint_leaves_out_where_things_are_and_how_they_run():
    free = {name for name, spec in option_fields(Job).items() if not spec.metadata["values"]}
    # a prompt's name is settled to its text, which is a value
    assert free == {"output", "private", "source", "model", "upload_size_mb", "prompt_name"}


def test_differences_show_both_values():
    assert SETTLED.differences(replace(SETTLED, max_length=512)) == ["max_length: 256 -> 512"]


def test_adopt_fills_what_was_left_open_and_keeps_what_was_said():
    asked = Job(source="user/chats", model="user/model", output="user/vectors", max_length=128)
    adopted = asked.adopt(SETTLED)
    assert adopted.max_length == 128
    assert adopted == replace(SETTLED, max_length=128)


def test_adopt_takes_the_hash_of_local_content_anew():
    asked = Job(source="./chats", model="./model")
    adopted = asked.adopt(replace(asked, revision="sha256:1", model_revision="sha256:2", dtype="float32"))
    assert (adopted.revision, adopted.model_revision, adopted.dtype) == (None, None, "float32")


def test_adopt_does_not_pin_another_source_or_model_to_a_sha_it_never_had():
    asked = Job(source="user/other", model="user/bigger", output="user/vectors")
    adopted = asked.adopt(SETTLED)
    assert (adopted.revision, adopted.model_revision) == (None, None)


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ({"sample_per_source": 5}, {"limit": 3}),
        ({"limit": 3}, {"sample_per_source": 5}),
        ({"text_template": "{text}"}, {"fields": ("think",)}),
    ],
)
def test_adopt_leaves_what_the_asked_job_excludes_so_that_it_shows_as_a_difference(stored, asked):
    settled = replace(SETTLED, **stored)
    assert len(settled.differences(Job(source="user/chats", model="user/model", **asked).adopt(settled))) == 2


def test_an_output_of_another_format_is_not_gone_on_with(tmp_path):
    """Its chunks have other columns than those that would stand beside them."""
    from builders.layout import Layout
    from extract.output_job import read_job
    from hub.folder import FolderRepo

    repo = FolderRepo(tmp_path)
    repo.commit({Layout().job: b'{"fingerprint": "", "job": {}}'}, [], "")
    with pytest.raises(ConfigError, match=r"format 1, and this stillroom writes format 2.*--restart"):
        read_job(repo, Layout())
