"""Learn a byte-level BPE vocabulary in which a character of GB2312 never costs more than one token.

Pure: text in, merges out. The guarantee holds by construction. The merge list opens with the merges that put
every GB2312 character together from its UTF-8 bytes; an engine applies merges in the order of the list, and a
lead byte can only begin a character, so by the time it reaches a learnt merge each such character is whole.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

Pair = tuple[str, str]

# The words inside which merges are learnt: near enough to the engine's own split ("qwen2"), whose classes of
# letters the standard library cannot spell. A difference costs a merge that is never used, nothing else.
_WORDS = re.compile(r"[^\S\r\n]?[^\W\d_]+|\d|[^\S\r\n]?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """`tokens` in id order, spelled in the byte-level alphabet; `merges` in rank order."""

    tokens: list[str]
    merges: list[Pair]


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte, GPT-2's table: printable bytes are themselves."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    stand_ins = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(stand_ins)) for byte in range(256)]


_ALPHABET = byte_alphabet()


def spell(text: str) -> str:
    """The UTF-8 bytes of a text in the byte-level alphabet."""
    return "".join(_ALPHABET[byte] for byte in text.encode())


def gb2312_characters() -> list[str]:
    """Every character that Python's gb2312 codec writes with two bytes, in the codec's order."""
    cells = (bytes((row, cell)) for row in range(0xA1, 0xFF) for cell in range(0xA1, 0xFF))
    return [char for cell in cells if (char := cell.decode("gb2312", errors="ignore"))]


def character_merges(characters: Iterable[str]) -> list[Pair]:
    """The merges that build each character from its bytes, all first steps before all second ones."""
    spelled = sorted({spell(char) for char in characters})
    first = dict.fromkeys((word[0], word[1]) for word in spelled if len(word) > 1)
    second = dict.fromkeys((word[:2], word[2]) for word in spelled if len(word) > 2)
    return [*first, *second]


def learn(texts: Iterable[str], *, vocabulary_size: int, frequency_min: int = 2) -> Vocabulary:
    """Bytes, then all GB2312 characters, then the merges that these texts repay.

    At most `vocabulary_size` tokens. Raises ValueError when bytes and characters alone are more. Equal texts
    give equal answers: ties between pairs go to the one that sorts first.
    """
    characters = gb2312_characters()
    whole = {char: spell(char) for char in characters}
    merges = character_merges(characters)
    tokens = dict.fromkeys([*_ALPHABET, *(left + right for left, right in merges)])
    if len(tokens) > vocabulary_size:
        raise ValueError(f"{vocabulary_size} tokens are too few: bytes and characters need {len(tokens)}")
    words = _split(texts, whole)
    for pair in _best_pairs(words, frequency_min=frequency_min):
        if len(tokens) == vocabulary_size:
            break
        merges.append(pair)
        tokens[pair[0] + pair[1]] = None
    return Vocabulary(tokens=list(tokens), merges=merges)


def _split(texts: Iterable[str], whole: dict[str, str]) -> Counter[tuple[str, ...]]:
    counts = Counter(word for text in texts for word in _WORDS.findall(text))
    words: Counter[tuple[str, ...]] = Counter()
    for word, count in counts.items():
        symbols: list[str] = []
        for char in word:
            symbols += [whole[char]] if char in whole else spell(char)
        words[tuple(symbols)] += count
    return words


def _best_pairs(words: Counter[tuple[str, ...]], *, frequency_min: int) -> Iterable[Pair]:
    """Byte-pair encoding: again and again the pair seen most often, which is then one symbol."""
    spelled = [list(word) for word in words]
    weights = list(words.values())
    pairs: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, word in enumerate(spelled):
        _count(word, weights[index], index, pairs, where)
    queue = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(queue)
    while queue:
        count, best = heapq.heappop(queue)
        if pairs[best] != -count:
            continue  # its count has changed since, and stands in the queue again
        if -count < frequency_min:
            return
        yield best
        changed: set[Pair] = set()
        for index in list(where[best]):
            changed.update(_count(spelled[index], -weights[index], index, pairs, where))
            spelled[index] = _join(spelled[index], best)
            changed.update(_count(spelled[index], weights[index], index, pairs, where))
        for pair in changed:
            heapq.heappush(queue, (-pairs[pair], pair))


def _count(
    word: list[str], weight: int, index: int, pairs: Counter[Pair], where: defaultdict[Pair, set[int]]
) -> list[Pair]:
    """Add a word's pairs with their weight, or take them away with a negative one; returns the pairs."""
    found = list(zip(word, word[1:], strict=False))
    for pair in found:
        pairs[pair] += weight
        if weight > 0:
            where[pair].add(index)
        else:
            where[pair].discard(index)
    return found


def _join(word: list[str], pair: Pair) -> list[str]:
    joined: list[str] = []
    index = 0
    while index < len(word):
        if tuple(word[index : index + 2]) == pair:
            joined.append(pair[0] + pair[1])
            index += 2
        else:
            joined.append(word[index])
            index += 1
    return joined
