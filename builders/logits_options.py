"""Options of a logits build: which tokens are captured, and what is kept of each distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from builders.options import ConfigError, option

ENCODINGS = ("default", "compact")
SELECTIONS = ("top-p", "global")
LEAST_THRESHOLD = 1 / 1024
MAX_TEMPERATURES = 8
MAX_COUNT = 255  # of ids of a token: counts are stored in 8 bits


@dataclass(frozen=True, kw_only=True)
class LogitsOptions:
    """The part of a job that `--build logits` reads. Distributions are of the tokens that the assistant generated."""

    top_p: float = option(0.98, "mass of the ids that are kept for certain", group="Logits", minimum=0)
    top_p_max_elements: int = option(100, "at most so many of them", group="Logits", minimum=1)
    num_sampled: int = option(
        16, "ids drawn from the rest, so that expectations stay unbiased", group="Logits", minimum=0
    )
    select: str = option(
        "top-p",
        "which ids are kept for certain: the nucleus of each token, or all over one threshold, with compact",
        group="Logits",
        choices=SELECTIONS,
    )
    global_threshold: float = option(
        1 / 256, "of --select global: likelier ids are exact, a drawn one weighs so much", group="Logits", minimum=0
    )
    temperatures: tuple[float, ...] = option(
        (1.0,), "temperatures that the drawn ids serve, as in 1,2 [1]", group="Logits"
    )
    encoding: str = option(
        "default",
        "how a record is written: compact takes half the bytes, for temperature 1 alone",
        group="Logits",
        choices=ENCODINGS,
    )
    chat_template: str | None = option(
        None,
        "file of the chat template, or the name of one that the tokenizer has [the tokenizer's own]",
        group="Logits",
    )
    template_date: str | None = option(
        None, "what a template is told of today's date, as in 2026-11-21 [the day the job is begun]", group="Logits"
    )
    end_of_turn: bool = option(True, "capture the token that ends a turn, too", group="Logits")
    tools_column: str = option("tools", "column that holds the tools of a chat, where there is one", group="Logits")

    def check_logits(self) -> None:
        """Check what options of a logits build say together.

        Raises:
            ConfigError: with the flag, the value and what would be right.
        """
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p is {self.top_p:g}: it must be over 0 and at most 1")
        if self.top_p_max_elements > MAX_COUNT:
            raise ConfigError(f"--top-p-max-elements is {self.top_p_max_elements}: it must be 1 to {MAX_COUNT}")
        if self.num_sampled > MAX_COUNT:
            raise ConfigError(f"--num-sampled is {self.num_sampled}: it must be 0 to {MAX_COUNT}")
        if not LEAST_THRESHOLD <= self.global_threshold <= 1:
            raise ConfigError(f"--global-threshold is {self.global_threshold:g}: it must be 1/1024 to 1")
        check_encoding(self.encoding, self.select, self.temperatures)

    @property
    def is_compact(self) -> bool:
        """Whether records need a rank table."""
        return self.encoding == "compact"


def check_encoding(encoding: str, select: str, temperatures: Sequence[float]) -> None:
    """Refuse a selection, or temperatures, that the encoding cannot hold.

    Raises:
        ConfigError: with the flag, the value and what would be right.
    """
    given = ",".join(f"{t:g}" for t in temperatures)
    rising = all(0 < t < u for t, u in zip(temperatures, [*temperatures[1:], float("inf")], strict=True))
    if not rising or 1 not in temperatures or len(temperatures) > MAX_TEMPERATURES:
        raise ConfigError(
            f"--temperatures is {given!r}: give 1 to {MAX_TEMPERATURES} rising numbers, 1 among them, as in 1,2"
        )
    if any(float(f"{t:g}") != t for t in temperatures):  # a column is named after it
        raise ConfigError(f"--temperatures is {given!r} and more digits: a temperature has at most six")
    if encoding == "compact" and len(temperatures) > 1:
        raise ConfigError(
            f"--temperatures {given}: --encoding compact keeps no logits of samples, so it serves temperature 1 alone; "
            "take --encoding default"
        )
    if encoding == "default" and select == "global":
        raise ConfigError(
            "--select global has as many samples as each token needs, and only --encoding compact holds that: give it too"
        )
