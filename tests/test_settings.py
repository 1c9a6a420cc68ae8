"""How a run goes: python -m pytest tests/test_settings.py."""

from pathlib import Path

import pytest

from builders.job import Job
from builders.options import ConfigError, from_mapping, option_fields
from extract.settings import Settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume": True, "restart": True}, "--resume and --restart exclude each other"),
        ({"num_jobs": 2, "job_index": 2}, "--job-index is 2: with --num-jobs 2 it is at most 1"),
        ({"max_batch_tokens": 0}, "--max-batch-tokens is 0: it must be at least 1"),
        ({"max_runtime_minutes": -1}, "--max-runtime-minutes is -1.0: it must be at least 0"),
        ({"resume": "yes"}, "--resume is 'yes': expected bool, got str"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(Settings, options)


def test_the_cache_is_the_flag_else_the_environment_else_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path))
    assert Settings(cache_dir="~/here").cache == Path("/home/someone/here")
    assert Settings().cache == tmp_path
    monkeypatch.delenv("STILLROOM_CACHE")
    assert Settings().cache == Path("/home/someone/.cache/stillroom")


def test_every_test_has_a_cache_of_its_own(cache):
    assert Settings().cache == cache


def test_every_option_says_what_it_does_and_no_name_is_also_a_jobs():
    assert not set(option_fields(Settings)) & set(option_fields(Job))
    assert all(len(spec.metadata["help"]) > 8 for spec in option_fields(Settings).values())
