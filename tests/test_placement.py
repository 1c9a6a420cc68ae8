"""Layers over several devices: python -m pytest tests/test_placement.py."""

import accelerate.utils
import pytest
import torch

from builders.options import ConfigError
from extract.engines.placement import parse_memory, spread
from extract.settings import Settings

GPU = 10 << 30
MEMORY = {0: GPU, 1: GPU, 2: GPU, 3: GPU, "cpu": 100 << 30}


@pytest.fixture
def four_gpus(monkeypatch):
    """What the libraries would say on such a machine; this one has none."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setattr(accelerate.utils, "get_max_memory", lambda: dict(MEMORY))

    def worker(rank, workers):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(workers))

    return worker


def test_limits_are_read():
    assert parse_memory(["0=60GiB", "cpu=200GB", "1=512mib"]) == {0: 60 << 30, "cpu": 200 * 10**9, 1: 512 << 20}
    for wrong in ("60GiB", "0=60", "gpu=1GiB", "0=-1GiB", "0=infGiB"):
        with pytest.raises(ConfigError, match="--max-memory is"):
            parse_memory([wrong])


def test_workers_share_the_devices_of_their_machine(four_gpus):
    devices = []
    for rank in range(2):
        four_gpus(rank, 2)
        given = spread("auto", ())
        assert given["device_map"] == "auto"
        assert all(given["max_memory"][name] < MEMORY[name] for name in given["max_memory"])
        devices.append([name for name in given["max_memory"] if name != "cpu"])
    assert devices == [[0, 1], [2, 3]]


def test_a_limit_is_taken_for_its_device(four_gpus):
    four_gpus(0, 1)
    assert spread("balanced", ["2=1GiB"])["max_memory"][2] == 1 << 30
    with pytest.raises(ConfigError, match=r"--max-memory 7=…: the devices of this worker are 0, 1, 2, 3, cpu"):
        spread("balanced", ["7=1GiB"])


def test_more_workers_than_devices_are_refused(four_gpus):
    four_gpus(0, 8)
    with pytest.raises(ConfigError, match="launch at most 4 workers"):
        spread("auto", ())


def test_a_limit_alone_is_refused():
    with pytest.raises(ConfigError, match="--max-memory limits --device-map"):
        Settings(max_memory=("0=1GiB",))
