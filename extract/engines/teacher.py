"""The engine of a logits build: capture behind the one seam."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator

from builders.job import Job
from extract.batching import TokenBudget
from extract.engines.capture import CaptureEngine
from extract.engines.causal import CausalModel
from extract.engines.nucleus import Rule
from extract.engines.placement import spread
from extract.model_files import ModelFiles
from extract.sample import Batch
from extract.settings import Settings
from extract.token_logits import Conversation, TokenLogits


class TeacherEngine:
    """A causal language model of the transformers library. `dimension` is the number of ids that it knows."""

    def __init__(self, job: Job, files: ModelFiles, device: str, settings: Settings) -> None:
        assert job.dtype is not None
        spread_ = spread(settings.device_map, settings.max_memory) if settings.device_map else None
        self.model = CausalModel(
            files.location, job.dtype, device, spread_, job.max_length or 0, job.trust_remote_code
        )
        rule = Rule(
            job.top_p, job.top_p_max_elements, job.num_sampled, job.select, job.global_threshold, job.temperatures
        )
        self.capture = CaptureEngine(self.model, rule, job.seed)
        self.dimension = self.model.vocab_size
        self.max_batch_tokens = self.capture.max_batch_tokens

    def run(
        self, batches: Iterable[Batch], budget: TokenBudget
    ) -> Generator[tuple[Batch, list[TokenLogits], int], None, None]:
        """See Engine: the results are one TokenLogits for each sample."""
        sent: deque[Batch] = deque()

        def conversations() -> Iterator[list[Conversation]]:
            for batch in batches:
                sent.append(batch)
                yield [Conversation(s.index, s.input_ids, list(s.targets)) for s in batch.samples]

        for results in self.capture.capture(conversations(), budget):
            batch = sent.popleft()
            yield batch, results, batch.num_tokens if self.model.packed else batch.num_padded_tokens
