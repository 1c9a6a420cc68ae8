"""Teacher logits of a causal language model: nucleus, tail draws and logsumexp of each wanted token.

The backbone runs on whole conversations; the head only on the rows that predict a wanted token, a block of rows at a time, so
that no more logits exist than one block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from extract.batching import TokenBudget
from extract.engines import EngineError
from extract.engines.causal import CausalModel
from extract.engines.draws import uniforms
from extract.engines.nucleus import Chosen, Rule, Selector
from extract.engines.transfer import send
from extract.engines.transformers import CPU_BATCH_TOKENS, DEVICE_BATCH_TOKENS, IN_FLIGHT, in_order
from extract.token_logits import Conversation, TokenLogits

# tokens per block of logits on a CPU: 13 MB at 49k ids. float32: with 32 the head takes twice as long, with 128 no less;
# bfloat16: 227 ms per 1,024 tokens with 64, 159 with 128
CPU_HEAD_ROWS, CPU_HALF_HEAD_ROWS = 64, 128
DEVICE_HEAD_BYTES = 2**28  # of one block of float32 logits

Fetch = Callable[[], list[TokenLogits]]


class CaptureEngine:
    """Applies a rule to the logits of a model. Draws depend on (seed, row, position) alone.

    Raises:
        ConfigError: the vocabulary has over 262,144 ids.
    """

    def __init__(self, model: CausalModel, rule: Rule, seed: int) -> None:
        self.model, self.rule, self.seed = model, rule, seed
        self.max_batch_tokens = CPU_BATCH_TOKENS if model.is_cpu else DEVICE_BATCH_TOKENS
        cpu_rows = CPU_HEAD_ROWS if model.dtype == torch.float32 else CPU_HALF_HEAD_ROWS
        self.head_rows = cpu_rows if model.is_cpu else max(64, DEVICE_HEAD_BYTES // (4 * model.vocab_size))
        self.of_thread = threading.local()
        self._selector()  # refuses a large vocabulary before anything runs

    def capture(
        self, batches: Iterable[Sequence[Conversation]], budget: TokenBudget
    ) -> Generator[list[TokenLogits], None, None]:
        """Yield, in order, one TokenLogits for each conversation of each batch. Out of memory halves the budget and goes on.

        Raises:
            ValueError: a position has no token, or none before it.
            EngineError: a conversation does not fit into memory, or its logits are not finite.
        """
        if not self.model.is_cpu:
            yield from in_order(lambda batch: self._launch(batch, budget), batches, IN_FLIGHT)
            return
        cores = torch.get_num_threads()  # one batch per core, one thread each: no core waits for another
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            run = lambda batch: self._launch(batch, budget)()  # noqa: E731
            yield from in_order(lambda batch: pool.submit(run, batch).result, batches, cores + 1)

    def _launch(self, batch: Sequence[Conversation], budget: TokenBudget) -> Fetch:
        """Queue a batch on the device and return what waits for it. A batch that does not fit is run in halves."""
        _check_positions(batch)
        try:
            return self._run(batch)
        except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises a plain one
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
        longest = max(conversation.num_tokens for conversation in batch)
        if len(batch) == 1:
            raise EngineError(
                f"one conversation of {longest} tokens does not fit into memory: give a smaller --max-length"
            )
        budget.halve(longest * len(batch))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(batch) // 2
        first, second = self._launch(batch[:half], budget), self._launch(batch[half:], budget)
        return lambda: first() + second()

    @torch.inference_mode()
    def _run(self, batch: Sequence[Conversation]) -> Fetch:
        device, select = self.model.head_device, self._selector()
        numbers = [uniforms(self.seed, c.row, np.array(c.positions, np.int64)) for c in batch]
        u_T = send(torch.from_numpy(np.concatenate([np.empty(0), *numbers])), device)
        hidden_TD = self._hidden([c for c in batch if c.positions])
        blocks = [slice(i, i + self.head_rows) for i in range(0, max(1, len(u_T)), self.head_rows)]
        parts = [select(self.model.logits(hidden_TD[block]), u_T[block]) for block in blocks]
        chosen = Chosen(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
        if device.type == "cpu":
            return lambda: self._split(chosen, batch)
        host = Chosen(*(torch.empty(c.shape, dtype=c.dtype, pin_memory=c.is_cuda) for c in chosen))
        for there, here in zip(chosen, host, strict=True):
            here.copy_(there, non_blocking=True)
        done = torch.Event(device)
        done.record()

        def fetch() -> list[TokenLogits]:
            done.synchronize()
            return self._split(host, batch)

        return fetch

    def _hidden(self, batch: Sequence[Conversation]) -> Tensor:
        """Hidden states [T, D] one position before each wanted token, conversation after conversation."""
        device = self.model.head_device
        if not batch:
            return torch.empty(0, self.model.width, dtype=self.model.dtype, device=device)
        hidden, starts = self.model.hidden([c.input_ids for c in batch])
        places = [np.array(c.positions) - 1 + start for c, start in zip(batch, starts, strict=True)]
        index = send(torch.from_numpy(np.concatenate(places)), hidden.device)
        return hidden[index].to(device, non_blocking=True)

    def _selector(self) -> Selector:
        """The buffers of this thread."""
        if not hasattr(self.of_thread, "selector"):
            self.of_thread.selector = Selector(self.rule, self.model.vocab_size, self.model.head_device)
        selector: Selector = self.of_thread.selector
        return selector

    def _split(self, chosen: Chosen, batch: Sequence[Conversation]) -> list[TokenLogits]:
        columns = [column.numpy() for column in chosen]
        stops = np.cumsum([len(c.positions) for c in batch])
        found = []
        for conversation, stop in zip(batch, stops, strict=True):
            part = [column[stop - len(conversation.positions) : stop] for column in columns]
            bad = np.flatnonzero(~np.isfinite(part[Chosen._fields.index("logsumexp")]))
            if len(bad):
                place = f"row {conversation.row}, token {conversation.positions[bad[0]]}"
                raise EngineError(f"{place}: the model's logits are not finite; try --dtype float32")
            found.append(_ragged(part, self.rule))
        return found


def _ragged(part: Sequence[np.ndarray], rule: Rule) -> TokenLogits:
    """Drop what fills the columns up to their width."""
    nucleus_ids, nucleus_logits, counts, logsumexp, sampled_ids, sampled_logits, sampled_counts, *at = part
    kept = np.arange(nucleus_ids.shape[1]) < counts[:, None]
    width = rule.slots if rule.select == "top-p" else int(sampled_counts.max(initial=0))
    return TokenLogits(
        nucleus_ids[kept],
        nucleus_logits[kept],
        counts.astype(np.uint8 if rule.max_kept <= 255 else np.uint16),
        logsumexp.copy(),
        sampled_ids[:, :width].copy(),
        sampled_logits[:, :width].copy(),
        sampled_counts.astype(np.uint16),
        *(column.copy() for column in at),
    )


def _check_positions(batch: Sequence[Conversation]) -> None:
    for c in batch:
        if c.positions and not 1 <= min(c.positions) <= max(c.positions) < c.num_tokens:
            wrong = min(c.positions) if min(c.positions) < 1 else max(c.positions)
            raise ValueError(f"row {c.row}: position {wrong} is not one of 1 to {c.num_tokens - 1}")
