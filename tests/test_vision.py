"""Rows with images through tiny vision-language models: python -m pytest tests/test_vision.py."""

import dataclasses
import io
import json
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from click.testing import CliRunner
from PIL import Image

from builders.images import ImageView
from builders.job import Job
from builders.options import ConfigError
from builders.text import Text, TextView
from extract.batching import TokenBudget, token_batches
from extract.cli import main
from extract.dry_run import dry_run
from extract.embedder import Embedder
from extract.engines import load_engine
from extract.image_job import settle_images
from extract.images import decode
from extract.model_files import read_model_files
from extract.processor import load_processor, without_video
from extract.sample import Batch
from extract.settings import Settings
from tests.runs import Bench, kill_group, read_vectors
from tests.vision import picture, save_idefics3, save_qwen3_vl

INSTRUCTION = "Represent the user's input."
BOMB = (1 << 17, 1 << 17)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return save_qwen3_vl(tmp_path_factory.mktemp("qwen3_vl"))


@pytest.fixture(scope="module")
def idefics(tmp_path_factory):
    return save_idefics3(tmp_path_factory.mktemp("idefics3"))


@pytest.fixture(params=["qwen", "idefics"])
def model(request):
    return request.getfixturevalue(request.param)


def settled(folder, **options):
    """(job, files) as a run has them."""
    job = Job(**{"model": str(folder), "image_column": ("image",), "max_length": 1024, "dtype": "float32", **options})
    files = read_model_files(job)
    normalize = files.modules.is_normalized if job.normalize is None else job.normalize
    pooling = job.pooling or files.pooling
    return dataclasses.replace(settle_images(job, files), pooling=pooling, normalize=normalize), files


def open_both(folder, **options):
    job, files = settled(folder, **options)
    return load_processor(job, files), load_engine(job, files, "cpu")


def embed(processor, engine, texts, size=100):
    samples = [processor.sample(i, text) for i, text in enumerate(texts)]
    batches = [Batch(None, samples[i : i + size]) for i in range(0, len(samples), size)]
    return np.concatenate([vectors for _, vectors, _ in engine.run(batches, TokenBudget(10_000))])


def row(text="", *images):
    return Text("", text, (), images)


MIXED = [
    row("only text"),
    row("a text with an image", picture(0)),
    row("", picture(1, 130, 70, "JPEG")),
    row("a longer text than the others, of which the shortest is padded " * 4),
    row("two", picture(2), picture(3, 40, 200)),
    row("x"),
]


def test_the_image_and_the_text_both_change_the_vector(model):
    texts = [row("a cat", picture(0)), row("a cat", picture(9)), row("a dog", picture(0)), row("a cat")]
    vectors = embed(*open_both(model), texts)
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)[np.triu_indices(4, 1)]
    assert distances.min() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("pooling", ["last", "mean", "cls", "max"])
def test_a_batch_of_all_kinds_equals_one_by_one(model, pooling):
    processor, engine = open_both(model, pooling=pooling, normalize=False)
    together, alone = (embed(processor, engine, MIXED, size) for size in (6, 1))
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_order_of_images_counts(model):
    one, other = picture(0), picture(9)
    vectors = embed(*open_both(model, pooling="mean"), [row("", one, other), row("", other, one)])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-4


def test_tokens_are_counted_before_the_pixels_are_made(model):
    processor, engine = open_both(model)
    samples = [processor.sample(i, text) for i, text in enumerate(MIXED)]
    counted = [sample.num_tokens for sample in samples]
    ((batch, _, padded),) = engine.run([Batch(None, samples)], TokenBudget(10_000))
    ids = [processor.inputs(processor.sample(i, text).scene)["input_ids"].shape[1] for i, text in enumerate(MIXED)]
    assert counted == ids == [sample.num_tokens for sample in batch.samples]
    assert padded == max(counted) * len(counted)
    assert all(sample.scene.images == () for sample in samples)  # pixels are made once, and the bytes let go


def test_a_processor_without_a_rule_counts_grey_images(idefics, monkeypatch):
    texts = [*MIXED, row("", picture(0, 30, 90))]
    ruled = list(map(load_processor(*settled(idefics)).count, texts))
    monkeypatch.delattr(transformers.Idefics3Processor, "_get_num_multimodal_tokens")
    assert list(map(load_processor(*settled(idefics)).count, texts)) == ruled


def test_images_count_in_the_budget_of_a_batch(model):
    processor, engine = open_both(model)
    texts = [row("a text " * (i % 3), *[picture(i, 64 * (1 + i % 4), 96)] * (i % 3)) for i in range(24)]
    samples = [processor.sample(i, text) for i, text in enumerate(texts)]
    batches = [Batch(None, part) for part in token_batches(samples, TokenBudget(400))]
    padded = [padded for _, _, padded in engine.run(batches, TokenBudget(400))]
    assert len(padded) > 4
    assert max(padded) <= 400  # what the model ran, pixels and all


def conversation(text):
    images = [{"type": "image", "image": Image.open(io.BytesIO(image)).convert("RGB")} for image in text.images]
    content = [*images, *([{"type": "text", "text": text.text}] if text.text else [])]
    return [
        {"role": "system", "content": [{"type": "text", "text": INSTRUCTION}]},
        {"role": "user", "content": content},
    ]


@torch.inference_mode()
def by_hand(folder, texts, layer=-1):
    """Hidden states [T, D] of each, by transformers alone, in the convention of Qwen3-VL-Embedding."""
    kind = without_video(transformers.Qwen3VLProcessor)
    size = {"shortest_edge": 4 * 32 * 32, "longest_edge": 1800 * 32 * 32}
    processor = kind.from_pretrained(folder, backend="pil", size=size)
    model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(folder).eval().model
    for text in texts:
        inputs = processor.apply_chat_template(
            conversation(text), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        yield model(**inputs, output_hidden_states=True).hidden_states[layer][0].numpy()


BY_HAND = {"mean": lambda t: t.mean(0), "max": lambda t: t.max(0), "cls": lambda t: t[0], "last": lambda t: t[-1]}


@pytest.mark.parametrize(("how", "layer"), [("last", -1), ("mean", -1), ("cls", -1), ("max", -1), ("mean", 1)])
def test_qwen3_vl_is_what_transformers_gives(qwen, how, layer):
    expected = np.stack([BY_HAND[how](tokens) for tokens in by_hand(qwen, MIXED, layer)])
    vectors = embed(*open_both(qwen, pooling=how, layer=layer, normalize=False), MIXED, size=4)
    np.testing.assert_allclose(vectors, expected, atol=2e-5)


@torch.inference_mode()
@pytest.mark.parametrize(("how", "layer"), [("mean", -1), ("last", 1)])
def test_another_model_is_pooled_from_its_hidden_states(idefics, how, layer):
    processor = transformers.Idefics3Processor.from_pretrained(idefics, backend="pil")
    model, expected = transformers.Idefics3ForConditionalGeneration.from_pretrained(idefics).eval(), []
    for text in MIXED:
        (user,) = conversation(text)[1:]
        chat = [
            {"role": "user", "content": [*user["content"], *([] if text.text else [{"type": "text", "text": ""}])]}
        ]
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        states = model(**inputs, output_hidden_states=True).hidden_states[layer][0]
        expected.append(BY_HAND[how](states.numpy()))
    vectors = embed(*open_both(idefics, pooling=how, layer=layer, normalize=False), MIXED)
    np.testing.assert_allclose(vectors, np.stack(expected), atol=2e-5)


def test_what_is_left_open_is_what_qwen3_vl_embedding_does(qwen):
    job, _ = settled(qwen)
    assert (job.instruction, job.pooling, job.normalize) == (INSTRUCTION, "last", True)
    assert (job.min_pixels, job.max_pixels) == (4_096, 1_843_200)
    assert settled(qwen, instruction="Find the chart")[0].instruction == "Find the chart."
    prompt = load_processor(*settled(qwen)).sample(0, row("What is it?", picture(0))).scene.prompt
    assert prompt == (
        f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        "What is it?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_pixels_bound_the_tokens_of_an_image_and_belong_to_the_job(qwen, idefics):
    large = row("", picture(0, 640, 320))
    tokens = [
        load_processor(*settled(qwen, max_pixels=n)).sample(0, large).num_image_tokens for n in (None, 51_200, 12_800)
    ]
    assert tokens[0] == 20 * 10 - 1
    assert 40 <= tokens[1] <= 50
    assert 8 <= tokens[2] <= 12
    assert settled(qwen)[0].fingerprint != settled(qwen, max_pixels=51_200)[0].fingerprint
    with pytest.raises(ConfigError, match=r"--max-pixels: .* has its own rule for the size of images"):
        settled(idefics, max_pixels=51_200)


def test_only_the_text_is_cut(qwen):
    words = "one two three four five six seven"  # a token is a byte
    whole = load_processor(*settled(qwen)).sample(0, row(words, picture(0)))
    for truncate, left in (("end", words[:25]), ("start", words[8:]), ("middle", words[:13] + words[-12:])):
        processor = load_processor(*settled(qwen, max_length=whole.num_tokens - 8, truncate=truncate))
        cut = processor.sample(0, row(words, picture(0)))
        assert (cut.truncated, cut.num_tokens) == (True, whole.num_tokens - 8)
        assert cut.scene.prompt == whole.scene.prompt.replace(words, left)
        assert processor.inputs(cut.scene)["input_ids"].shape[1] == cut.num_tokens


def test_a_placeholder_in_the_text_is_no_image(model):
    processor, engine = open_both(model)
    token = processor.processor.image_token
    marked = row(f"{token}\nwhat is it?", picture(0))
    np.testing.assert_array_equal(*embed(processor, engine, [marked, row("what is it?", picture(0))], size=1))


def test_transparent_parts_are_white_and_photos_upright():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    content = io.BytesIO()
    clear.save(content, "PNG")
    assert decode(content.getvalue()).getpixel((0, 0)) == (255, 255, 255)
    turned = Image.new("L", (20, 10)).getexif()
    turned[0x0112] = 6
    assert decode(picture(0, 20, 10, "JPEG", exif=turned)).size == (10, 20)


CHAT = [
    {
        "role": "user",
        "content": [
            {"type": "image", "text": None},
            {"type": "text", "text": "Which is larger?"},
            {"type": "image", "text": None},
        ],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "The second."}]},
]


def test_images_of_a_conversation_come_in_its_order():
    view = ImageView(TextView(), ("images",))
    ((text),) = view.render({"messages": CHAT, "images": [{"bytes": b"one", "path": None}, {"bytes": b"two"}]})
    assert (text.images, text.text) == ((b"one", b"two"), "Which is larger?\n\nThe second.")
    own = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,b25l"}}]}]
    assert view.render({"messages": own, "images": None})[0].images == (b"one",)


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        ({"messages": CHAT, "images": [b"one"]}, "no_image", "2 images without content, the row 1"),
        ({"messages": CHAT, "images": [b"one"] * 3}, "no_image", "places 2 of the 3 images"),
        ({"messages": None, "images": []}, "no_image", "no image in images, and no text"),
        ({"messages": None, "images": "https://example.org/a.png"}, "no_image", "an address"),
        ({"messages": None, "images": "../secret.png"}, "no_image", "outside the folder"),
        ({"messages": None, "images": "gone.png"}, "no_image", "No such file"),
        ({"messages": None, "images": 7}, "bad_image", "7 is no image"),
        ({"messages": None, "images": "data:image/png;base64,!"}, "bad_image", "base64"),
    ],
)
def test_an_image_that_is_missing_is_named(tmp_path, data, reason, detail):
    (tmp_path / "source").mkdir()
    (tmp_path / "secret.png").write_bytes(picture(0))
    with pytest.raises(ValueError) as error:
        ImageView(TextView(), ("images",), tmp_path / "source").render(data)
    assert error.value.reason == reason
    assert detail in error.value.detail


def test_a_file_beside_the_source_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"one")
    view = ImageView(TextView(messages_column=None, template="{caption}"), ("image",), tmp_path)
    (text,) = view.render({"caption": "a cat", "image": {"bytes": None, "path": "a.png"}})
    assert (text.text, text.images) == ("a cat", (b"one",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"build": "logits"}, "--build logits does not go with --image-column"),
        ({"build": "lengths"}, "--build lengths does not go with --image-column"),
        *(
            ({"engine": engine}, f"^--engine {engine} takes no images: --image-column needs --engine transformers$")
            for engine in ("vllm", "openai", "tei", "triton")
        ),
        ({"fields": ("think",)}, "--fields"),
        ({"pooling": "logits-mean"}, "--pooling logits-mean"),
        ({"min_pixels": 9, "max_pixels": 4}, "--min-pixels is 9: --max-pixels is 4"),
        ({"image_column": (), "max_pixels": 4}, "name their column with --image-column"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Job(**{"image_column": ("image",), **options})


def test_a_model_that_takes_no_images_is_refused(minilm):
    with pytest.raises(ConfigError, match="takes no images: give a vision-language model"):
        load_processor(*settled(minilm, max_length=128))


def test_a_missing_pillow_names_its_command(qwen, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match=r"^--image-column needs Pillow: pip install 'stillroom\[vision\]'$"):
        settled(qwen)


def bomb():
    """A PNG of some bytes that claims 17 gigapixels."""
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", *BOMB, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BROKEN = {
    3: ("bad_image", b"no image at all"),
    7: ("bad_image", picture(7, kind="JPEG")[:-300]),  # its header is whole
    8: ("bad_image", picture(8, kind="JPEG")[:300]),
    11: ("image_too_large", bomb()),
    12: ("bad_image", picture(12, 500, 2)),  # Qwen takes sides of at most 200 to 1
    13: ("bad_image", b""),
    17: ("images_too_long", picture(17, 1200, 1200)),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Four times forty rows: text and image, text alone, image alone, nothing (14 and 34), and some that are broken."""
    rows = []
    for i in range(40):
        image = {"bytes": BROKEN[i][1] if i in BROKEN else picture(i, 64 + 32 * (i % 3), 64), "path": f"{i}.png"}
        rows.append(
            {"text": None if i % 5 == 4 else f"row {i} " * (1 + i % 7), "image": None if i % 4 == 2 else image}
        )
    path = tmp_path_factory.mktemp("images") / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows * 4), path)
    return path


@pytest.fixture(scope="module")
def built(source, qwen, tmp_path_factory):
    """The folder of a run that was killed in the middle of a unit, and went on."""
    bench = Bench(tmp_path_factory.mktemp("built"))
    job = ["--source", source, "--model", qwen, "--image-column", "image", "--max-length", 512, "--dtype", "float32"]
    job = [
        str(part) for part in [*job, "--chunk-rows", 80, "--output", "./out", "--resume", "--max-batch-tokens", 256]
    ]
    process = bench.start(*job)
    end = time.monotonic() + 120
    while not any(part.stat().st_size for part in bench.cache.rglob("*.part")) and time.monotonic() < end:
        time.sleep(0.005)
    kill_group(process)
    (partial,) = bench.cache.rglob("*.part")
    assert 0 < partial.stat().st_size < 80 * 100  # 64 bytes of vector and 16 of counts a row: no image is in it
    bench.run(*job)
    return bench.root / "out"


def test_a_killed_run_accounts_for_every_row(source, qwen, built):
    skipped = pa.concat_tables(map(pq.read_table, sorted(built.glob("skipped/**/*.parquet")))).to_pylist()
    reasons = {i: reason for i, (reason, _) in BROKEN.items()} | {14: "no_image", 34: "no_image"}
    expected = {40 * n + i: reason for n in range(4) for i, reason in reasons.items()}
    assert {line["index"]: line["reason"] for line in skipped} == expected
    assert all(line["detail"] and "0x" not in line["detail"] for line in skipped)  # the same bytes in each run
    index, vectors = read_vectors(built)
    assert index.tolist() == [i for i in range(160) if i not in expected]
    data = [d for i, d in enumerate(pq.read_table(source).to_pylist()[:40]) if i not in reasons]
    texts = [row((d["text"] or "").strip(), *([d["image"]["bytes"]] if d["image"] else [])) for d in data]
    alone = embed(*open_both(qwen, max_length=512), texts, size=1)
    np.testing.assert_allclose(vectors, np.tile(alone, (4, 1)), atol=1e-5)
    records = pa.concat_tables(map(pq.read_table, sorted(built.glob("data/**/*.parquet"))))
    assert records["num_images"].to_pylist() == [len(text.images) for text in texts] * 4


def test_the_card_speaks_of_images(built):
    card = (built / "README.md").read_text()
    assert "| images | `image`, before the text; scaled to at most 1,843,200 and at least 4,096 pixels" in card
    assert "| `num_images` | int32 |" in card
    assert "a vision-language model" in card


def test_the_dataset_alone_says_how_to_embed_a_query(source, built, tmp_path):
    embedder = Embedder.from_dataset(str(built))
    index, vectors = read_vectors(built)
    assert index[:3].tolist() == [0, 1, 2]  # 2 has no image
    first, content = pq.read_table(source).to_pylist()[:3], picture(0, 64, 64)
    (tmp_path / "a.png").write_bytes(content)
    for image in (content, tmp_path / "a.png", [Image.open(io.BytesIO(content))]):
        np.testing.assert_allclose(embedder.embed_multimodal(first[0]["text"], image), vectors[0], atol=1e-5)
    np.testing.assert_allclose(embedder.embed_text(first[2]["text"]), vectors[2], atol=1e-5)
    image_alone = embedder.embed_multimodal("", first[1]["image"]["bytes"])
    assert np.abs(image_alone - vectors[1]).max() > 1e-3
    with pytest.raises(ValueError, match="truncated"):
        embedder.embed_multimodal("row 7", BROKEN[7][1])
    with pytest.raises(ValueError, match="text 1 has nothing to embed"):
        embedder.embed_batch(["a", " "])
    query = Embedder.from_dataset(str(built), instruction="Find the chart")
    assert query.prompt == "Find the chart."
    assert np.abs(query.embed_text("a") - embedder.embed_text("a")).max() > 1e-3


def test_a_dry_run_counts_images(source, qwen, built, cache):
    options = {"source": str(source), "model": str(qwen), "image_column": ("image",), "max_length": 512}
    plan = dry_run(Job(**options), Settings(cache_dir=str(cache)))
    tokens = sum(sum(pq.read_table(path)["num_tokens"].to_pylist()) for path in built.glob("data/**/*.parquet"))
    torn = load_processor(*settled(qwen)).sample(0, row("row 7", BROKEN[7][1])).num_tokens  # known when it is decoded
    assert f"tokens    {tokens + 4 * torn:,}, from 160 rows" in plan
    assert "empty     20.0% of rows" in plan


def test_an_image_of_a_query_is_pillows_a_file_or_bytes(built, tmp_path):
    embedder = Embedder.from_dataset(str(built))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    content = picture(3, 96, 64, "JPEG", exif=exif)
    (tmp_path / "image.jpg").write_bytes(content)
    vector = embedder.embed_multimodal("a", content)
    for image in (Image.open(io.BytesIO(content)), tmp_path / "image.jpg", str(tmp_path / "image.jpg")):
        np.testing.assert_allclose(embedder.embed_multimodal("a", image), vector, atol=1e-5)
    cmyk = Image.open(io.BytesIO(content)).convert("CMYK")
    np.testing.assert_allclose(
        embedder.embed_multimodal("a", cmyk), embedder.embed_multimodal("a", cmyk.convert("RGB")), atol=1e-5
    )
    for image, message in (
        (b"x", "text 0: no image in PNG"),
        (BROKEN[7][1], "text 0: "),
        (7, "int is no image"),
    ):
        with pytest.raises(ValueError, match=message):
            embedder.embed_multimodal("a", image)
    with pytest.raises(ValueError, match="text 0 has nothing to embed"):
        embedder.embed_text("")


def test_a_search_by_image_finds_its_row(source, built, tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.png").write_bytes(picture(0, 64, 64))
    text = pq.read_table(source)["text"][0].as_py()
    asked = ["search", str(built), text, "--image", str(tmp_path / "a.png"), "--top-k", "1", "--json"]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    found = json.loads(done.output.splitlines()[-1])
    assert found["index"] % 40 == 0 and found["score"] == pytest.approx(1, abs=1e-4) and text.strip() in found["text"]
