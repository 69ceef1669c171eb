"""Write a small Llama-architecture GGUF with random weights: a fresh machine has a real engine to run.

Its answers are noise and say so by being noise; its prefill, KV state, token counts and timings are real.
Nothing is downloaded: the weights come from a seed and the tokenizer is learnt from the texts beside this
file. The same seed and texts give the same bytes on the same numpy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from cacheplane.engines.tokenizer import Vocabulary, learn

CORPUS = Path(__file__).parent / "corpus"

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXT_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

# A turn's text never depends on a later turn, so every cut between turns is a prefix of what follows.
CHAT_TEMPLATE = (CORPUS / "chat_template.jinja").read_text(encoding="utf-8")

_ANSWER_SPREAD = 3.0  # of the logits: wide enough that answers vary, narrow enough that none gets stuck


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """The shape of a model. `window_tokens` is the longest context it declares."""

    embedding: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    quantization: str
    window_tokens: int = 131_072

    @property
    def head_size(self) -> int:
        return self.embedding // self.heads


PRESETS = {
    "nano": Preset(
        embedding=128, layers=3, heads=4, kv_heads=2, feed_forward=352, vocabulary=12_288, quantization="q8_0"
    ),
    "bench": Preset(
        embedding=640,
        layers=10,
        heads=10,
        kv_heads=2,
        feed_forward=1728,
        vocabulary=16_384,
        quantization="q8_0",
    ),
}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    path: Path
    size_bytes: int
    sha256: str
    vocabulary_tokens: int
    """Tokens that can occur; the rest of the matrix is padding."""


def write_model(path: Path, *, preset: str, seed: int, say: Say = lambda sentence: None) -> Made:
    """Generate the model and put it at `path` in one step: a reader sees the old file or the whole new one.

    Raises OSError when the folder cannot be written or the disk is full; nothing is left behind then.
    """
    shape = PRESETS[preset]
    say(f"learning a tokenizer of {shape.vocabulary:,} tokens")
    vocabulary = learn(
        corpus_texts(), vocabulary_size=shape.vocabulary - len(CONTROL_TOKENS) - len(TEXT_TOKENS)
    )
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        _write(temporary, preset, vocabulary, np.random.default_rng(seed), say)
        made = _measure(temporary, path, vocabulary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _fsync(path.parent)
    return made


def corpus_texts() -> list[str]:
    """The texts the project ships, in the order of their names."""
    return [file.read_text(encoding="utf-8") for file in sorted(CORPUS.glob("*.txt"))]


def _measure(temporary: Path, path: Path, vocabulary: Vocabulary) -> Made:
    _fsync(temporary)
    with temporary.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size_bytes = file.tell()
    return Made(path=path, size_bytes=size_bytes, sha256=sha256, vocabulary_tokens=len(vocabulary.tokens))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, preset: str, vocabulary: Vocabulary, random: np.random.Generator, say: Say) -> None:
    shape = PRESETS[preset]
    writer = gguf.GGUFWriter(path, "llama")
    try:
        _add_shape(writer, preset, shape)
        audible = _add_tokenizer(writer, vocabulary, shape)
        for name, tensor in _tensors(shape, audible, random):
            if name.endswith("attn_norm.weight"):
                say(f"drawing the weights of layer {int(name.split('.')[1]) + 1} of {shape.layers}")
            _add_tensor(writer, name, tensor, shape)
        say("writing the file")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_shape(writer: gguf.GGUFWriter, preset: str, shape: Preset) -> None:
    writer.add_name(f"cacheplane-{preset}")
    writer.add_description("Random weights for trying and testing; its answers are noise.")
    writer.add_context_length(shape.window_tokens)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(500_000.0)
    writer.add_vocab_size(shape.vocabulary)
    q8 = shape.quantization == "q8_0"
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_Q8_0 if q8 else gguf.LlamaFileType.MOSTLY_F16))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: Vocabulary, shape: Preset) -> np.ndarray:
    """Returns which rows of the output matrix may speak: printable ASCII, and never the end by chance."""
    learnt = vocabulary.tokens
    named = [*learnt, *CONTROL_TOKENS, *TEXT_TOKENS]
    unused = [f"<|unused_{number}|>" for number in range(shape.vocabulary - len(named))]
    kinds = (
        [gguf.TokenType.NORMAL] * len(learnt)
        + [gguf.TokenType.CONTROL] * len(CONTROL_TOKENS)
        + [gguf.TokenType.USER_DEFINED] * len(TEXT_TOKENS)
        + [gguf.TokenType.UNUSED] * len(unused)
    )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")  # the split before merging, by the name the engine knows it under
    writer.add_token_list([*named, *unused])
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_token_merges([f"{left} {right}" for left, right in vocabulary.merges])
    writer.add_bos_token_id(named.index("<|endoftext|>"))
    writer.add_eos_token_id(named.index("<|im_end|>"))
    writer.add_pad_token_id(named.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    return np.array(
        [index < len(learnt) and _is_plain(token) for index, token in enumerate([*named, *unused])]
    )


def _is_plain(token: str) -> bool:
    space = "\u0120"  # how the byte-level alphabet spells it
    return all(33 <= ord(char) < 127 or char == space for char in token)


def _tensors(
    shape: Preset, audible: np.ndarray, random: np.random.Generator
) -> Iterator[tuple[str, np.ndarray]]:
    """Scales keep activations of order one through all layers: attention then depends on the whole prompt."""

    def draw(rows: int, columns: int, spread: float) -> np.ndarray:
        return random.standard_normal((rows, columns), dtype=np.float32) * np.float32(spread)

    size, inner = shape.embedding, shape.feed_forward
    unit = size**-0.5
    yield "token_embd.weight", draw(shape.vocabulary, size, 1.0)
    answers = draw(shape.vocabulary, size, _ANSWER_SPREAD * unit)
    yield "output.weight", answers * audible[:, None].astype(np.float32)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", np.ones(size, np.float32)
        yield block + "attn_q.weight", draw(shape.heads * shape.head_size, size, 1.6 * unit)
        yield block + "attn_k.weight", draw(shape.kv_heads * shape.head_size, size, 1.6 * unit)
        yield block + "attn_v.weight", draw(shape.kv_heads * shape.head_size, size, 1.5 * unit)
        yield block + "attn_output.weight", draw(size, shape.heads * shape.head_size, 1.5 * unit)
        yield block + "ffn_norm.weight", np.ones(size, np.float32)
        yield block + "ffn_gate.weight", draw(inner, size, unit)
        yield block + "ffn_up.weight", draw(inner, size, unit)
        yield block + "ffn_down.weight", draw(size, inner, inner**-0.5)
    yield "output_norm.weight", np.ones(size, np.float32)


def _add_tensor(writer: gguf.GGUFWriter, name: str, tensor: np.ndarray, shape: Preset) -> None:
    if tensor.ndim == 1:
        writer.add_tensor(name, tensor)
    elif shape.quantization == "q8_0":
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, tensor.astype(np.float16))
