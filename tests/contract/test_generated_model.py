"""The model of the first run: the same from the same seed, and fair to Chinese."""

from __future__ import annotations

import asyncio
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cacheplane.engines import make_gguf
from cacheplane.engines.llamacpp import LlamaCppEngine
from cacheplane.engines.make_gguf import corpus_texts, write_model
from cacheplane.engines.tokenizer import gb2312_characters, learn

from .conftest import REPOSITORY, Server


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(model_file: Path, tmp_path: Path) -> None:
    again = write_model(tmp_path / "again.gguf", preset="nano", seed=1234)
    other = write_model(tmp_path / "other.gguf", preset="nano", seed=1235)
    assert (tmp_path / "again.gguf").read_bytes() == model_file.read_bytes()
    assert other.sha256 != again.sha256
    assert again.size_bytes < 10_000_000
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["again.gguf", "other.gguf"]


def test_it_does_not_depend_on_the_hash_seed_of_the_process(model_file: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from cacheplane.engines.make_gguf import write_model;"
        "write_model(Path(sys.argv[1]), preset='nano', seed=1234)"
    )
    path = tmp_path / "model.gguf"
    subprocess.run(
        [sys.executable, "-c", program, str(path)], cwd=REPOSITORY, env={"PYTHONHASHSEED": "77"}, check=True
    )
    assert path.read_bytes() == model_file.read_bytes()


@pytest.mark.parametrize("limit_bytes", [0, 100_000, 4_000_000])
def test_a_full_disk_is_one_sentence_and_nothing_is_left(tmp_path: Path, limit_bytes: int) -> None:
    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    program = (
        "import sys; from django.core.management import execute_from_command_line;"
        "from django.conf import settings; settings.configure(); import django; django.setup();"
        "from django.core.management import call_command, CommandError;"
        "from cacheplane.engines.management.commands.make_model import Command;"
        "Command().run_from_argv(['manage.py', 'make_model', '--preset', 'nano', '--out', sys.argv[1]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model.gguf")],
        cwd=REPOSITORY,
        preexec_fn=small_files_only,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("CommandError: The model could not be written to")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_too_small_for_every_character_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        learn(corpus_texts(), vocabulary_size=8000)


def test_the_shipped_texts_are_long_enough_to_show_something() -> None:
    english = (make_gguf.CORPUS / "handbook.en.txt").read_text(encoding="utf-8")
    chinese = (make_gguf.CORPUS / "handbook.zh.txt").read_text(encoding="utf-8")
    assert len(english.encode()) >= 34_000
    assert len(chinese) >= 4_000


@pytest.mark.anyio
async def test_every_gb2312_character_alone_is_one_token(bundled: Server, pool: None) -> None:
    characters = gb2312_characters()
    assert len(characters) == 7445
    engine: LlamaCppEngine = bundled.adapter()
    costly = []
    for start in range(0, len(characters), 32):
        some = characters[start : start + 32]
        tokens = await asyncio.gather(*(engine.tokenize(char) for char in some))
        costly += [char for char, ids in zip(some, tokens, strict=True) if len(ids) != 1]
    assert costly == []


@pytest.mark.parametrize("seed", range(8))
def test_in_running_text_a_character_costs_at_most_one_token(bundled: Server, seed: int) -> None:
    characters = gb2312_characters()
    random.Random(seed).shuffle(characters)
    text = "".join(characters)
    assert len(bundled.tokenize(text)) <= len(text)
    # Wherever the text is cut, each piece keeps the promise: no character owes its price to its neighbours.
    for start in range(0, len(text), 97):
        piece = text[start : start + 97]
        assert len(bundled.tokenize(piece)) <= len(piece)


def test_between_words_of_the_shipped_text_too(bundled: Server) -> None:
    words = "灯塔守塔人渡轮码头旅客"
    characters = gb2312_characters()
    for start in range(0, len(characters), 60):
        text = "".join(words[i % len(words)] + char for i, char in enumerate(characters[start : start + 60]))
        assert len(bundled.tokenize(text)) <= len(text)


def test_text_survives_the_way_through_the_tokenizer(bundled: Server) -> None:
    for text in [*corpus_texts(), "瞭望 \U0001f6a2 naïve\ttabs\r\n  spaces", "".join(gb2312_characters())]:
        assert bundled.ask("/detokenize", {"tokens": bundled.tokenize(text)})["content"] == text


def test_answers_are_printable_ascii(bundled: Server) -> None:
    told = bundled.ask(
        "/completion", {"prompt": "灯塔 and ferry", "n_predict": 400, "temperature": 1.0, "seed": 5}
    )
    assert told["tokens_predicted"] == 400, "it practically never ends by itself"
    assert all(32 <= ord(char) < 127 for char in told["content"])
