"""Tiny vision-language models with random weights, saved as real ones are, and pictures to show them."""

import io

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from extract.processor import without_video

TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 2048,
}
QWEN_TOKENS = ["endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad"]
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IDEFICS_TOKENS = ["<pad>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
IDEFICS_TOKENS += [f"<row_{i}_col_{j}>" for i in range(1, 5) for j in range(1, 5)]
IDEFICS_TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize }}: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def picture(seed, width=96, height=64, kind="PNG", **options):
    """The bytes of an image of random colours in blocks."""
    blocks = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    image, content = Image.fromarray(blocks).resize((width, height)), io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def byte_tokenizer(special, pad):
    """A token for each byte, and the special ones."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, eos_token=special[-1])


def save_qwen3_vl(folder):
    """Qwen3-VL of 2 + 2 layers and 16 dimensions: 32 x 32 pixels are a token, as in the real one."""
    special = [f"<|{name}|>" for name in QWEN_TOKENS]
    tokenizer = byte_tokenizer(special, special[0])
    images = transformers.models.qwen2_vl.image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil(
        patch_size=16,
        size={"shortest_edge": 65_536, "longest_edge": 16_777_216},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    kind = without_video(transformers.Qwen3VLProcessor)
    kind(image_processor=images, tokenizer=tokenizer, chat_template=QWEN_TEMPLATE).save_pretrained(folder)
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    ids = dict(zip(QWEN_TOKENS, tokenizer.convert_tokens_to_ids(special), strict=True))
    config = transformers.Qwen3VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "num_heads": 2,
            "intermediate_size": 24,
            "out_hidden_size": 16,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    return save(transformers.Qwen3VLForConditionalGeneration, config, folder)


def save_idefics3(folder):
    """Idefics3 (SmolVLM) of 2 + 2 layers: images are cut into tiles of 32 x 32 pixels, 4 tokens each, and an overview."""
    tokenizer = byte_tokenizer(IDEFICS_TOKENS, "<pad>")
    images = transformers.models.idefics3.image_processing_pil_idefics3.Idefics3ImageProcessorPil(
        size={"longest_edge": 96}, max_image_size={"longest_edge": 32}
    )
    processor = transformers.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=IDEFICS_TEMPLATE)
    processor.save_pretrained(folder)
    config = transformers.Idefics3Config(
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(tokenizer), "pad_token_id": 0},
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "image_size": 32,
            "patch_size": 8,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return save(transformers.Idefics3ForConditionalGeneration, config, folder)


def save(kind, config, folder):
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():  # the usual 0.02 leaves images without any weight beside the text
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder
