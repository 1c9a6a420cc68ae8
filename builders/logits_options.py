"""Options of a logits build: which tokens are captured, and what is kept of each distribution."""

from __future__ import annotations

from dataclasses import dataclass

from builders.options import option


@dataclass(frozen=True, kw_only=True)
class LogitsOptions:
    """The part of a job that `--build logits` reads. Distributions are of the tokens that the assistant generated."""

    top_p: float = option(0.98, "mass of the ids that are kept for certain", group="Logits", minimum=0)
    top_p_max_elements: int = option(100, "at most so many of them", group="Logits", minimum=1)
    num_sampled: int = option(
        16, "ids drawn from the rest, so that expectations stay unbiased", group="Logits", minimum=0
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
