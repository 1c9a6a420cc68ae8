"""A vision-language model's processor: texts with images to prompts, their exact length, and the inputs of the model."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from builders.job import Job
from builders.options import ConfigError
from builders.row import RowError
from builders.text import Span, Text
from extract.image_job import token_side
from extract.images import decode, image_size
from extract.model_files import ModelFiles
from extract.sample import Sample, Scene
from extract.truncate import Range, keep_balanced, keep_end_cut, keep_middle_cut, keep_start_cut

PROBE = "stillroom-probe"  # stands for the text while a template is read
PLACEHOLDERS = ("image_token", "video_token", "audio_token", "boi_token")  # names of a processor's attributes
BLANK = (64, 64)  # a grey image that every processor takes


class VisionProcessor:
    """Makes samples of texts with images. A prompt is what the chat template prints: instruction, images, text, header.

    `processor` is a transformers processor with `image_processor` and `tokenizer`.
    """

    def __init__(self, processor: Any, job: Job) -> None:
        assert job.max_length is not None
        self.processor = processor
        self.max_length, self.truncate = job.max_length, job.truncate
        self.instruction, self.chat_template = job.instruction or "", job.chat_template
        self.backend: Any = processor.tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        tokens = (getattr(processor, name, None) for name in PLACEHOLDERS)
        self.reserved = [token for token in tokens if isinstance(token, str)]
        self.frame = lru_cache(maxsize=64)(self._frame)
        self.adds_special = not self.frame(0)[0].startswith(processor.tokenizer.bos_token or "\0")
        self.num_around = (
            0  # -1, as the placeholder counts with the prompt; more where lines stand around an image: Gemma 3
        )
        self._check()
        self.image_tokens = lru_cache(maxsize=8192)(self._image_tokens)

    def _check(self) -> None:
        """Refuse a model whose prompt would lack the instruction or the image, before a row is read."""
        if self.instruction not in self.frame(0)[0]:
            raise ConfigError(f"--instruction {self.instruction!r}: the model's chat template prints no system prompt")
        try:
            self.num_around = self._measure_blank(BLANK) - self._image_tokens(BLANK)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the model's processor takes no image: {' '.join(str(error).split())[:300]}") from error

    def _frame(self, num_images: int) -> tuple[str, str]:
        """What the chat template prints before and after the text, with a placeholder for each image."""
        content = [*({"type": "image"} for _ in range(num_images)), {"type": "text", "text": PROBE}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self.instruction:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": self.instruction}]})
        given = {"chat_template": self.chat_template} if self.chat_template else {}
        try:
            prompt = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **given)
        except Exception as error:  # a template is foreign code, and refuses in its own ways
            raise ConfigError(f"the model's chat template: {' '.join(str(error).split())[:300]}") from error
        head, found, tail = prompt.partition(PROBE)
        if not found or PROBE in tail:
            raise ConfigError("the model's chat template does not print a user's text once: give --chat-template FILE")
        return head, tail

    def sample(self, position: int, text: Text) -> Sample:
        """Make the sample of a row: at most `max_length` tokens, of which only those of the text are cut.

        Raises:
            RowError: `bad_image` or `image_too_large`; `images_too_long` where they leave no room for one token of the text.
        """
        text, ids, num_image_tokens = self._measure(text)
        room = self.max_length - num_image_tokens
        is_long = len(ids) > room
        if is_long:
            text, ids = self._cut(text, room)
        scene = Scene(self._prompt(text), text.images)
        return Sample(position, 0, ids, is_long, num_image_tokens=num_image_tokens, scene=scene)

    def count(self, text: Text) -> int:
        """Tokens of a text with its images before any cut. Raises as `sample`."""
        _, ids, num_image_tokens = self._measure(text)
        return len(ids) + num_image_tokens

    def _measure(self, text: Text) -> tuple[Text, list[int], int]:
        """Return the text without the model's placeholders, the ids of its prompt, and how many more its images take."""
        sizes = [image_size(image) for image in text.images]
        try:
            num_image_tokens = sum(map(self.image_tokens, sizes))
        except ValueError as error:  # such as sides of 200 to 1
            raise RowError("bad_image", str(error)) from None
        text = self._clean(text)
        return text, self._encode(self._prompt(text)).ids, num_image_tokens

    def _prompt(self, text: Text) -> str:
        return text.text.join(self.frame(len(text.images)))

    def inputs(self, scene: Scene) -> dict[str, Any]:
        """Decode the images and return the tensors that the model takes, with `input_ids` of one row.

        Raises:
            RowError: an image is broken, or the processor refuses it.
        """
        images = [decode(image) for image in scene.images]
        try:
            return dict(
                self.processor(
                    text=[scene.prompt],
                    images=images or None,
                    return_tensors="pt",
                    add_special_tokens=self.adds_special,
                )
            )
        except ValueError as error:
            raise RowError("bad_image", f"the processor refuses it: {' '.join(str(error).split())[:200]}") from error

    def _image_tokens(self, size: tuple[int, int]) -> int:
        """Tokens that an image of this (height, width) takes beside its placeholder, by the rule that vLLM asks, too."""
        rule = getattr(self.processor, "_get_num_multimodal_tokens", None)
        if rule is None:  # SmolVLM, LFM2-VL: 20 ms for each new size
            return self._measure_blank(size)
        return int(sum(rule(image_sizes=[size])["num_image_tokens"])) + self.num_around

    def _measure_blank(self, size: tuple[int, int]) -> int:
        from PIL import Image

        prompt, images = PROBE.join(self.frame(1)), [Image.new("RGB", size[::-1], "grey")]
        made = self.processor(text=[prompt], images=images, add_special_tokens=self.adds_special)
        return len(made["input_ids"][0]) - len(self._encode(prompt).ids)

    def _encode(self, prompt: str) -> Any:
        return self.backend.encode(prompt, add_special_tokens=self.adds_special)

    def _clean(self, text: Text) -> Text:
        """Take the model's own placeholders out of the text, as LLaVA's datasets have them: the images come first."""
        if not any(token in text.text for token in self.reserved):
            return text
        words = text.text
        for token in self.reserved:
            words = words.replace(token, "")
        words = words.strip()
        return replace(text, text=words, spans=(Span("text", 0, len(words)),))

    def _cut(self, text: Text, room: int) -> tuple[Text, list[int]]:
        """Cut the text so that the prompt has at most `room` tokens; characters of a kept token stay whole."""
        head, encoded = len(self.frame(len(text.images))[0]), self._encode(self._prompt(text))
        inside = [
            (max(start - head, 0), min(stop - head, len(text.text)))
            for start, stop in encoded.offsets
            if stop > max(start, head) and start < head + len(text.text)
        ]
        kept = len(inside) - (len(encoded.ids) - room)
        while kept > 0:
            ranges = keep(inside, kept, self.truncate, text.spans)
            words = "".join(
                text.text[inside[start][0] : inside[stop - 1][1]] for start, stop in ranges if start < stop
            )
            short = replace(text, text=words)
            ids = self._encode(self._prompt(short)).ids
            if len(ids) <= room:
                return short, ids
            kept -= len(ids) - room  # tokens at a cut may fall apart
        num_tokens = len(encoded.ids) - len(inside) + self.max_length - room
        raise RowError(
            "images_too_long", f"prompt and images have {num_tokens} tokens, --max-length is {self.max_length}"
        )


def keep(tokens: list[tuple[int, int]], room: int, truncate: str, spans: tuple[Span, ...]) -> list[Range]:
    """Ranges of tokens to keep, from their characters; see extract/truncate.py."""
    if truncate != "balanced":
        return {"end": keep_end_cut, "start": keep_start_cut, "middle": keep_middle_cut}[truncate](len(tokens), room)
    parts = []
    for span in spans:
        inside = [i for i, (start, _) in enumerate(tokens) if span.start <= start < span.stop]
        if inside:
            parts.append((inside[0], inside[-1] + 1))
    return keep_balanced(len(tokens), room, parts)


def load_processor(job: Job, files: ModelFiles) -> VisionProcessor:
    """Return what makes samples of the settled job's rows.

    Pixels are made by Pillow and numpy on every machine: torchvision, where installed, would give other values.

    Raises:
        ConfigError: the model has no processor for images.
    """
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    try:
        config = AutoConfig.from_pretrained(files.folder, trust_remote_code=job.trust_remote_code)
        known = PROCESSOR_MAPPING.get(type(config), None)
        loader = without_video(known) if known else AutoProcessor
        processor = loader.from_pretrained(files.folder, backend="pil", trust_remote_code=job.trust_remote_code)
    except (OSError, ValueError, ImportError, TypeError) as error:
        raise ConfigError(f"--model {job.model}: no processor: {' '.join(str(error).split())[:300]}") from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ConfigError(f"--model {job.model} takes no images: give a vision-language model, or no --image-column")
    if token_side(files.folder) is not None:
        size = {"shortest_edge": job.min_pixels, "longest_edge": job.max_pixels}
        processor.image_processor.size = type(processor.image_processor.size)(**size)
    return VisionProcessor(processor, job)


def without_video(kind: Any) -> Any:
    """A processor's class without its part for videos, which needs torchvision to be loaded at all."""
    from transformers.processing_utils import ProcessorMixin

    wanted = ["image_processor", "tokenizer"]
    if kind.get_attributes() != [*wanted, "video_processor"]:
        return kind

    class ImageProcessorOnly(kind):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return wanted

        @classmethod
        def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **options: Any) -> Any:
            return super().from_args_and_dict((*args, None), processor_dict, **options)  # SmolVLM's has no default

        def apply_chat_template(self, *args: Any, **options: Any) -> Any:
            return ProcessorMixin.apply_chat_template(self, *args, **options)  # SmolVLM's asks the part for videos

    ImageProcessorOnly.__name__ = kind.__name__  # which it saves and reads
    return ImageProcessorOnly
