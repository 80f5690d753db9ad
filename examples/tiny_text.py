"""The text under the tiny-v3 sample: fortunes, Python's manual, its help and its docstrings, as short documents."""

import ast
import codecs
import pydoc_data.topics
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SEPARATOR = "\n%\n"
"""What stands between two documents of a file: the mark that fortune files use themselves."""

LONGEST = 3000
"""Characters after which a document is cut at the next paragraph, so that no page dominates the held-out part."""

SHORTEST = 40
"""Documents with fewer characters say nothing and are left out."""

LEFT_OUT_FORTUNES = {
    "off": "offensive by its authors' own label",
    "ethnic": "jokes about peoples",
    "men-women": "jokes about men and women",
    "love": "mostly innuendo",
    "drugs": "drinking and drugs",
    "politics": "partisan",
    "knghtbrd": "chat logs, often crude",
    "translate-me": "crude",
    "songs-poems": "whole song texts, which have owners",
    "zippy": "one comic strip's texts, which has an owner",
    "pratchett": "one author's texts, who has heirs",
}
"""File name below the fortunes folder → why its text is not used."""

CRUDE_ROT13 = (
    "frk|frkl|frkf|frkhny|frkhnyyl|frkvfg|sh[px]x?|shpx\\j*|fuvg\\j*|ohyyfuvg|penc\\j*|nff|nffrf|nffubyr\\j*|ovgpu\\j*|"
    "onfgneq\\j*|juber\\j*|fyhg\\j*|cvff\\j*|sneg\\j*|gheq\\j*|qvpx|pbpx|pbpxf|gvg|gvgf|obbof?|oernfgf?|avccyr\\j*|"
    "anxrq|ahqr|ahqvfg\\j*|betnfz\\j*|betl|betvrf|rebgvp\\j*|cbea\\j*|cebfgvghg\\j*|encr|encrq|encvfg|ivetva\\j*|yrfovna\\j*|"
    "ubzbfrkhny\\j*|dhrre\\j*|snt|sntf|snttbg\\j*|avttre\\j*|arteb\\j*|wncf?|puvax|wrjf?|wrjvfu|anmv\\j*|uvgyre|zhfyvz\\j*|"
    "fhvpvqr|pbaqbz\\j*|pbagenprcg\\j*|zvfgerff\\j*|frqhp\\j*|yhfg\\j*|encvat|perzngr\\j*|juvccrq|cravf|intvan|grfgvpyr\\j*|"
    "fpebg\\j*|obaqntr|fnqvf\\j*|znfbpu\\j*|vaprfg|crqb\\j*|puvyqzbyrf\\j*|ubeal|trel|onyyf|fperjrq|ynvq|wrjrff|qlxr|tnl|tnlf|"
    "juvgrf|pbyberq|enpvfg|fynirel|xvyy|xvyyrq|zheqre\\j*|ubyybpnhfg|negvsvpvnyvafrzvangvba|oenffvrer|cnagvrf|cnagl|"
    "cbyvfu|vevfu|zrkvpnaf?|wrfhf|puevfg|puevfgvna\\j*|nyynu|vfynz\\j*|pngubyvp\\j*|certana\\j*|fcrez|ohgg|chxr|"
    "ergneq\\j*|zbeba\\j*|orqebbz\\j*|ybiref?|xvff\\j*|qehax\\j*|yfq|pbpnvar|qbcr|znevwhnan|jrapu\\j*|fphz\\j*|fcnfgvp|cbbc|"
    "haqerff\\j*|srgvfu|oybaqrf?|oblsevraq|tveysevraq|qnza\\j*|uryy"
)
"""Words that bar a fortune, rotated by 13 letters as fortune files themselves do: nobody should have to read them here."""

CRUDE = re.compile(r"\b(" + codecs.decode(CRUDE_ROT13, "rot13") + r")\b", re.IGNORECASE)

LEFT_OUT_PAGES = (
    "reference/",
    "library/stdtypes",
    "library/string",
    "library/pdb",
    "c-api/",
    "distutils/",
    "license",
)
"""Beginnings of manual pages that are not used: those behind the help topics, terms, and what few readers open."""

NO_DOCSTRINGS = {
    "test",
    "tests",
    "idle_test",
    "idlelib",
    "lib2to3",
    "site-packages",
    "pydoc_data",
    "__pycache__",
}
"""Folders of the standard library whose docstrings are not collected: tests, tables and installed packages."""


@dataclass(frozen=True)
class Document:
    """One short text."""

    source: str
    """``fortunes``, ``topics``, ``docstrings`` or ``manual``."""
    text: str
    """Stripped; never contains `SEPARATOR`."""


@dataclass(frozen=True)
class Corpus:
    """All the text, split by document."""

    train: tuple[Document, ...]
    heldout: tuple[Document, ...]


def collect_corpus(fortunes: Path, manual: Path, library: Path, heldout: float, seed: int) -> Corpus:
    """Everything, without repeated paragraphs, shuffled; the first ``heldout`` of all characters is held out.

    :param fortunes: folder with the fortune files, e.g. ``/usr/share/games/fortunes``
    :param manual: folder with the manual's reStructuredText, e.g. ``/usr/share/doc/python3.11/html/_sources``
    :param library: folder of the standard library's sources
    :param heldout: share of all characters, 0 to 1
    """
    found = [*read_fortunes(fortunes), *read_topics(), *read_docstrings(library), *read_manual(manual)]
    documents = [piece for document in drop_repeats(found) for piece in cut(document)]
    random.Random(seed).shuffle(documents)
    wanted = heldout * sum(len(document.text) for document in documents)
    taken, characters = 0, 0
    while characters < wanted:
        characters += len(documents[taken].text)
        taken += 1
    return Corpus(train=tuple(documents[taken:]), heldout=tuple(documents[:taken]))


def read_fortunes(folder: Path) -> Iterator[Document]:
    """The fortunes of every file that is not left out, less the crude ones."""
    for path in sorted(folder.iterdir()):
        if path.suffix or path.name in LEFT_OUT_FORTUNES or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace").replace("\t", "    ")
        for fortune in text.split(SEPARATOR):
            if "\b" not in fortune and "\ufffd" not in fortune and not CRUDE.search(fortune):
                yield Document("fortunes", fortune.strip("\n%"))


def read_topics() -> Iterator[Document]:
    """The pages behind Python's ``help('assert')`` and its like."""
    for _, page in sorted(pydoc_data.topics.topics.items()):
        yield Document("topics", page.strip())


def read_docstrings(library: Path) -> Iterator[Document]:
    """Every docstring of the standard library under its signature and its file's name."""
    for path in sorted(library.rglob("*.py")):
        place = path.relative_to(library)
        if NO_DOCSTRINGS.isdisjoint(place.parts) and not place.parts[0].startswith("config-"):
            tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
            yield from (Document("docstrings", text) for text in docstrings_of(tree, place.as_posix()))


def read_manual(folder: Path) -> Iterator[Document]:
    """The manual's pages as their authors wrote them."""
    for path in sorted(folder.rglob("*.rst.txt")):
        if not path.relative_to(folder).as_posix().startswith(LEFT_OUT_PAGES):
            yield Document("manual", path.read_text(encoding="utf-8").strip())


def docstrings_of(tree: ast.Module, place: str) -> Iterator[str]:
    """``# json/decoder.py``, the signature, the docstring: one text for each documented definition."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        words = ast.get_docstring(node)
        if not words or SEPARATOR in words:
            continue
        quoted = f'"""{words}\n"""' if "\n" in words else f'"""{words}"""'
        if isinstance(node, ast.Module):
            yield f"# {place}\n{quoted}"
        else:
            indented = "\n".join(f"    {line}".rstrip() for line in quoted.splitlines())
            yield f"# {place}\n{signature(node)}\n{indented}"


def signature(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """``def name(arguments):`` or ``class Name(bases):``"""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    return f"def {node.name}({ast.unparse(node.args)}):"


def drop_repeats(documents: list[Document]) -> Iterator[Document]:
    """The documents without any longer paragraph that stood in an earlier one: none can be both trained and held out."""
    seen: set[str] = set()
    for document in documents:
        kept = []
        for paragraph in document.text.split("\n\n"):
            body = re.sub(r"^# \S+\n", "", paragraph)
            key = " ".join(body.split()).lower()
            if len(key) < SHORTEST or key not in seen:
                kept.append(paragraph)
            seen.add(key)
        text = "\n\n".join(kept).strip()
        if len(text) >= SHORTEST and text.lower() not in seen:
            yield Document(document.source, text)


def cut(document: Document) -> Iterator[Document]:
    """The document in pieces of about `LONGEST` characters at most, cut between paragraphs."""
    piece = ""
    for paragraph in document.text.split("\n\n"):
        if piece and len(piece) + len(paragraph) > LONGEST:
            yield Document(document.source, piece.strip("\n"))
            piece = ""
        piece += ("\n\n" if piece else "") + paragraph
    if len(piece.strip()) >= SHORTEST:
        yield Document(document.source, piece.strip("\n"))


def join_documents(documents: tuple[Document, ...]) -> str:
    """One file's text: the documents with `SEPARATOR` between them and a newline at the end."""
    return SEPARATOR.join(document.text for document in documents) + "\n"


def split_documents(text: str) -> list[str]:
    """The documents' texts of what `join_documents` wrote."""
    return text.removesuffix("\n").split(SEPARATOR)


def sample_prompts(documents: tuple[Document, ...], count: int, seed: int) -> list[str]:
    """Openings of ``count`` documents, each on one line, 30 to 600 characters long, cut between words."""
    draw = random.Random(seed)
    prompts = []
    for document in draw.sample(documents, len(documents)):
        words = " ".join(document.text.split())
        opening = words[: draw.choice((60, 120, 200, 300, 450, 600))].rsplit(" ", 1)[0]
        if len(opening) >= 30 and opening.isprintable():
            prompts.append(opening)
        if len(prompts) == count:
            break
    return prompts
