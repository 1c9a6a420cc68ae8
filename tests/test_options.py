"""Options as dataclass fields: python -m pytest tests/test_options.py."""

from dataclasses import dataclass

import pytest

from builders.options import ConfigError, check_fields, from_mapping, option, option_fields, value_type


@dataclass(frozen=True, kw_only=True)
class Oven:
    mode: str = option("low", "how hot", group="Oven", choices=("low", "high"))
    minutes: float = option(1.0, "how long, minutes", group="Oven", minimum=0.5)
    trays: int | None = option(None, "how many trays [all]", group="Oven", minimum=1, values=False)
    fan: bool = option(False, "with air", group="Oven")
    dishes: tuple[str, ...] = option((), "what is in it", group="Oven")

    def __post_init__(self):
        check_fields(self)


def test_a_field_carries_its_whole_definition():
    assert list(option_fields(Oven)) == ["mode", "minutes", "trays", "fan", "dishes"]
    assert option_fields(Oven)["trays"].metadata["values"] is False
    assert option_fields(Oven)["mode"].metadata["help"] == "how hot"


def test_types_come_from_the_annotations():
    assert [value_type(Oven, name) for name in option_fields(Oven)] == [
        (str, False),
        (float, False),
        (int, True),
        (bool, False),
        (tuple, False),
    ]


def test_toml_values_take_the_shape_of_the_field():
    oven = from_mapping(Oven, {"dishes": ["pie", "bread"], "minutes": 3})
    assert oven.dishes == ("pie", "bread")
    assert isinstance(oven.minutes, float)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "hot"}, "--mode is 'hot': choose one of low, high"),
        ({"minutes": 0.1}, "--minutes is 0.1: it must be at least 0.5"),
        ({"minutes": float("nan")}, "--minutes is nan: it must be at least 0.5"),  # every comparison with nan is false
        ({"trays": 0}, "--trays is 0: it must be at least 1"),
        ({"trays": "two"}, "--trays is 'two': expected int, got str"),
        ({"trays": True}, "--trays is True: expected int, got bool"),
        ({"fan": 1}, "--fan is 1: expected bool, got int"),
        ({"mode": None}, "--mode is None: expected str, got NoneType"),
        ({"dishes": "pie"}, "--dishes is 'pie': expected tuple, got str"),
    ],
)
def test_a_wrong_value_is_named_with_its_flag(options, message):
    with pytest.raises(ConfigError) as caught:
        from_mapping(Oven, options)
    assert str(caught.value) == message


def test_none_is_fine_where_the_field_may_be_open():
    assert Oven(trays=None).trays is None
