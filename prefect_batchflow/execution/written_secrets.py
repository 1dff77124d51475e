"""The ways in which a text can have a secret: percent, plus, base64, hexadecimal, JSON, Python's repr and HTML, also mixed.

Lines can be wrapped in it, as MIME wraps base64.

Most texts have none. A part of each secret that no usual encoding changes is looked for first, which takes a microsecond; only
a text that has it, or that has encoded letters, meets the regular expression.
"""

from __future__ import annotations

import base64
import html
import re
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LEAST_PART = 4
"""Characters. A shorter part says little."""
_PLAIN = re.compile(r"[A-Za-z0-9]+")
_DIGITS = re.compile(r"[0-9]+")
_LETTER = re.compile(r"%(?:25)*(?:3\d|[46][1-9a-fA-F]|[57][0-9aA])|&(?:amp;)*#|\\(?:u00|x)[3-7]")
"""An encoded letter or digit, which no usual encoder makes."""
_SHORT_ESCAPES = {"\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f", "\v": "v", "\a": "a", "\0": "0"}
_ENTITIES = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos", "/": "sol", "+": "plus", "=": "equals"}
_ESCAPE = re.compile(r"\\+(?:u00|x)([2-7][0-9a-fA-F])")
_WRAP = r"(?:(?:\\+[rn]|[\r\n])+[ \t|]*)?"
"""The end of a line, and how the next one can begin."""
_LEAST_WRAPPED = 16
"""Characters. A shorter secret, such as 12345678, can be the end of one line and the beginning of the next by chance."""
_DOTS = ("...", "…", "\\u2026")
"""What stands for the part that a `repr` or a validation error leaves out, also in JSON."""
_LEAST_END = 12
"""Characters of a secret's beginning or end that is left beside such dots. Fewer can be a common prefix, such as `sk-proj-`."""
_ROUNDS = 3
"""So many encodings of letters, one in the other, are undone to find a secret."""


class WrittenSecrets:
    """Some secrets, at least one, in all the ways in which a text can have them."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # The longest first, because one secret can begin with another.
        self._secrets = sorted(secrets, key=len, reverse=True)
        parts = [_longest(_PLAIN, secret) for secret in self._secrets]
        for secret in self._secrets:
            parts += [_longest(_PLAIN, core) for core in _base64_cores(_bytes(secret))]
            # Digits are the same in both cases of hexadecimal digits.
            parts.append(_longest(_DIGITS, _bytes(secret).hex()))
        self._parts = tuple(sorted({part for part in parts if len(part) >= _LEAST_PART}))
        self._part_bytes = tuple(part.encode() for part in self._parts)
        self._always = any(len(part) < _LEAST_PART for part in parts)
        """A secret of special characters has no part to look for."""
        self._ends = [secret for secret in self._secrets if len(secret) >= 2 * _LEAST_END]
        self._can_be_wrapped = len(self._secrets[0]) >= _LEAST_WRAPPED
        self.longest = max(3 * len(_bytes(secret)) for secret in self._secrets)
        """Characters that a secret takes in its usual encodings."""

    def replaced(self, text: str, mask: str) -> str:
        """The text with each secret replaced."""
        if self._may_be_in(text):
            text = self._pattern.sub(lambda _: mask, text)
        for begin, end in reversed(self._cut_off_in(text)):
            text = f"{text[:begin]}{mask}{text[end:]}"
        return text

    def _may_be_in(self, text: str) -> bool:
        if self._always:
            return True
        for part in self._parts:
            if part in text:
                return True
        return self._is_wrapped_in(text) or self._is_encoded_in(text)

    def _cut_off_in(self, text: str) -> list[tuple[int, int]]:
        """Where a text has the beginning or the end of a long secret, and dots for the rest."""
        found: list[tuple[int, int]] = []
        if not self._ends or not any(dots in text for dots in _DOTS):
            return found
        for secret in self._ends:
            at = text.find(secret[:_LEAST_END])
            while at >= 0:
                length = _LEAST_END
                while length < len(secret) and text[at + length : at + length + 1] == secret[length]:
                    length += 1
                if text.startswith(_DOTS, at + length):
                    found.append((at, at + length))
                at = text.find(secret[:_LEAST_END], at + length)
            at = text.find(secret[-_LEAST_END:])
            while at >= 0:
                end, begin = at + _LEAST_END, at
                while begin > 0 and end - begin < len(secret) and text[begin - 1] == secret[begin - 1 - end]:
                    begin -= 1
                if text.endswith(_DOTS, 0, begin):
                    found.append((begin, end))
                at = text.find(secret[-_LEAST_END:], end)
        # Secrets can begin or end alike.
        apart: list[tuple[int, int]] = []
        for begin, end in sorted(found, key=lambda span: (span[0], -span[1])):
            if not apart or begin >= apart[-1][1]:
                apart.append((begin, end))
        return apart

    def is_in(self, encoded: bytes) -> bool:
        """Whether JSON in ASCII contains a secret."""
        has_dots = self._ends and (b"..." in encoded or b"\\u2026" in encoded)
        if has_dots and self._cut_off_in(encoded.decode("ascii", "replace")):
            return True
        if self._always:
            return self._pattern.search(encoded.decode("ascii", "replace")) is not None
        for part in self._part_bytes:
            if part in encoded:
                return self._pattern.search(encoded.decode("ascii", "replace")) is not None
        if b"\\n" in encoded and self._is_wrapped_in(encoded.decode("ascii", "replace")):
            return self._pattern.search(encoded.decode("ascii", "replace")) is not None
        if b"%" in encoded or b"&#" in encoded or b"\\x" in encoded or b"\\u00" in encoded:
            return self._is_encoded_in(encoded.decode("ascii", "replace"))
        return False

    def _is_wrapped_in(self, text: str) -> bool:
        """Whether a text has a secret over the end of a line."""
        if not self._can_be_wrapped or not ("\n" in text or "\r" in text or "\\n" in text):
            return False
        # More is left out than a line's end, which is quicker: the parts have letters and digits only.
        spaced = text.replace("\\n", " ").replace("\\r", " ").replace("\\", "").replace("|", "")
        joined = "".join(spaced.split())
        return any(part in joined for part in self._parts)

    def _is_encoded_in(self, text: str) -> bool:
        """Whether a text has a secret whose letters are encoded, too: `%73%6b` for `sk`."""
        for _ in range(_ROUNDS):
            if _LETTER.search(text) is None:
                return False
            text = _decoded(text)
            if any(part in text for part in self._parts):
                return True
        return False

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """All forms of all secrets. Each character stands for itself or for any of its escapes."""
        wraps = [_WRAP if len(secret) >= _LEAST_WRAPPED else "" for secret in self._secrets]
        alternatives = [wrap.join(map(_character, secret)) for secret, wrap in zip(self._secrets, wraps, strict=True)]
        firsts = {secret[0] for secret in self._secrets} | set("%&\\")
        for secret, wrap in zip(self._secrets, wraps, strict=True):
            for core in _base64_cores(_bytes(secret)):
                firsts |= {core[0], {"+": "-", "/": "_"}.get(core[0], core[0])}
                alternatives.append(wrap.join(map(_base64_character, core)) + r"[A-Za-z0-9+/_-]?(?:=|%3[dD]){0,2}")
            in_digits = _bytes(secret).hex()
            firsts |= {in_digits[0], in_digits[0].upper()}
            alternatives.append(f"(?i:{wrap.join(in_digits)})")
        # Most places of a text are left at once by their first character.
        begin = "".join(map(re.escape, sorted(firsts | ({"+"} if " " in firsts else set()))))
        return re.compile(f"(?=[{begin}])(?:{'|'.join(alternatives)})")


def _longest(pattern: re.Pattern[str], text: str) -> str:
    return max(pattern.findall(text), key=len, default="")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decoded(text: str) -> str:
    if "%" in text:
        text = unquote(text, errors="replace")
    if "&" in text:
        text = html.unescape(text)
    if "\\u00" in text or "\\x" in text:
        text = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)
    return text


def _base64_cores(secret: bytes) -> Iterator[str]:
    """The base64 of a secret behind 0, 1 or 2 other bytes, without the characters that depend on its neighbours."""
    for before in range(3):
        first, end = -(-8 * before // 6), 8 * (before + len(secret)) // 6
        yield base64.b64encode(b"\0" * before + secret).decode()[first:end]


def _base64_character(char: str) -> str:
    """One character of base64 or its url-safe form."""
    safe = {"+": "-", "/": "_"}.get(char)
    return _character(char) if safe is None else f"(?:{_character(char)}|{safe})"


def _character(char: str) -> str:
    """A regular expression for one character: itself, or escaped in any of the ways."""
    code, data = ord(char), _bytes(char)
    percent = "".join(f"%(?:25)*{_hex(byte, 2)}" for byte in data)
    # Each JSON text or repr in another doubles the backslashes.
    forms = [re.escape(char), percent, f"&(?:amp;)*#0*{code};", f"&(?:amp;)*#[xX]0*{_hex(code, 1)};"]
    utf16 = char.encode("utf-16-be", "surrogatepass")
    forms.append("".join(rf"\\+u{_hex(utf16[i] << 8 | utf16[i + 1], 4)}" for i in range(0, len(utf16), 2)))
    forms.append("".join(rf"\\+x{_hex(byte, 2)}" for byte in data))
    if code > 0xFF:
        forms.append(rf"\\+U{_hex(code, 8)}")
    elif code > 0x7F:
        forms.append(rf"\\+x{_hex(code, 2)}")
    if char in _SHORT_ESCAPES:
        forms.append(rf"\\+{_SHORT_ESCAPES[char]}")
    if char in _ENTITIES:
        forms.append(f"&(?:amp;)*{_ENTITIES[char]};")
    if char in "\"'/":
        forms.append(rf"\\+{char}")
    if char == "\\":
        forms.append(r"\\+")
    if char == " ":
        forms.append(r"\+")
    return f"(?:{'|'.join(forms)})"


def _hex(number: int, width: int) -> str:
    return "".join(digit if digit.isdigit() else f"[{digit}{digit.upper()}]" for digit in f"{number:0{width}x}")
