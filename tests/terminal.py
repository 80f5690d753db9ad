"""A command in a terminal of its own: what it wrote there, and what a person sees when it has ended."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIECES = re.compile(r"\x1b\[(?P<numbers>[?\d;]*)(?P<letter>[A-Za-z])|(?P<text>.)", re.DOTALL)


@dataclass
class Screen:
    """The part of a terminal that progress uses: text, line ends, going up, erasing a line. It grows downwards for ever."""

    width: int
    lines: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    column: int = 0
    overflows: int = 0
    """Cells written past the right edge, where a terminal begins another line."""

    def feed(self, text: str) -> "Screen":
        for piece in PIECES.finditer(text):
            if piece["text"] is None:
                self.control(piece["letter"], piece["numbers"])
            else:
                self.write(piece["text"])
        return self

    def control(self, letter: str, numbers: str) -> None:
        if letter == "A":
            self.row = max(0, self.row - int(numbers or 1))
        elif letter == "K":
            self.lines[self.row] = "" if numbers == "2" else self.lines[self.row][: self.column]

    def write(self, cell: str) -> None:
        if cell == "\r":
            self.column = 0
            return
        if cell == "\n":
            self.row, self.column = self.row + 1, 0
            self.lines += [""] * (self.row + 1 - len(self.lines))
            return
        if self.column == self.width:
            self.overflows += 1
            self.write("\n")
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + cell + line[self.column + 1 :]
        self.column += 1


@dataclass(frozen=True)
class Shown:
    code: int
    raw: str
    """What went to the terminal."""
    out: str
    """What went to stdout, where that was piped."""
    screen: Screen

    @property
    def plain(self) -> str:
        """Without colours and moves."""
        return re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", self.raw)


def in_terminal(arguments: list[object], width: int = 80, out_piped: bool = False, **environment: str) -> Shown:
    """Run ``python arguments…`` with stderr, and stdout unless it is piped, on a terminal of 24 lines."""
    keyboard, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
    words = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(
        words, stdin=terminal, stdout=subprocess.PIPE if out_piped else terminal, stderr=terminal, cwd=ROOT,
        env=inherited | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | environment,
    ) as process:  # fmt: skip
        os.close(terminal)
        raw = b"".join(_read(keyboard))
        out = process.stdout.read().decode() if out_piped else ""
    os.close(keyboard)
    text = raw.decode()
    return Shown(process.returncode, text, out, Screen(width).feed(text))


def _read(keyboard: int):
    while True:
        try:
            piece = os.read(keyboard, 65536)
        except OSError:  # the other end is closed
            return
        if not piece:
            return
        yield piece
