"""What a comparison saw, as one self-contained HTML page."""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.plan import files

from ..page import document, section, table
from ..plots import number
from . import curves, maps
from .columns import Columns, choose, worst_of_tensors

if TYPE_CHECKING:
    from .compare import Evidence
    from .metrics import Accumulator, SegmentDifference
    from .sides import Side
    from .tolerances import Tolerance
    from .walk import Walked

OPEN = 24
"""Rows of a table that stand unfolded, at most."""
POINTS = 1500
"""Of a scatter plot, at most."""
BINS = 41
"""Of a histogram: an odd number, so that nothing stands in the middle."""
GIVEN, OWN = "given the left's values", "each side on its own values"
JUDGED = {
    "logits": "the logits keep their limits end to end",
    "segments": "every segment keeps its limits, given the left's values",
    "drift": "the logits keep their limits, each side on its own values",
}
"""Mode → what its verdict is about."""
STYLE = """
h1{overflow-wrap:anywhere}td{font-variant-numeric:tabular-nums}.over td{color:var(--warn)}details{margin:.8rem 0}summary{cursor:pointer}
.verdict{font-size:1.3rem;font-weight:600}.differ{color:var(--warn)}.told{white-space:pre-line;border-left:3px solid var(--warn);padding-left:.8rem;overflow-wrap:anywhere}
svg.tall{max-width:none}svg .at{fill:var(--warn);font-weight:600}.grid{stroke:var(--line);stroke-width:1}.axis{stroke:var(--ink);stroke-width:1}.limit{stroke:var(--warn);stroke-width:1;stroke-dasharray:5 4}.here{stroke:var(--warn);stroke-width:1.5}
""" + curves.STYLE + maps.STYLE  # fmt: skip


def write_report(path: Path, evidence: "Evidence") -> None:
    """Whole or not at all."""
    # A folder's name may hold bytes that are no text.
    files.write_bytes(path, render(evidence).encode(errors="replace"))


def render(evidence: "Evidence") -> str:
    sections: Sequence[Callable[[Evidence], str]] = (_verdict, _heat, _drift, _logits, _routing, _segments, _ranks)
    names = " and ".join(side.folder.name or str(side.folder) for side in (evidence.left, evidence.right))
    return document(f"Comparison: {names}", f"Comparison of {names}", "".join(one(evidence) for one in sections), STYLE)


def _verdict(seen: "Evidence") -> str:
    made = seen.comparison
    fault = made.first_divergent
    told = f"<p class=told>{escape(fault.told())}</p>" if fault else ""
    word = f"<p class='verdict {escape(made.verdict)}'>{escape(made.verdict)}</p>"
    notes = "".join(f"<p>Note: {escape(note)}</p>" for note in made.notes)
    sides = table(("side", "folder", "arithmetic", "plan"), [(name, side.folder, side.arithmetic, _plan(side)) for name, side in (("left", seen.left), ("right", seen.right))])
    sentence = f"Judged by mode {escape(made.mode)} over {made.tokens:,} tokens of {made.prompts:,} prompts: <q>same</q> means that {JUDGED[made.mode]}; <q>differ</q> names the first segment apart. The other limits below help to find it. Prompts and tokens are counted from 0."
    let_go = f" End to end, the furthest {made.tolerance.outliers:.3g} of the tokens are let go." if made.tolerance.outliers else ""
    limits = f"<h3>Limits</h3><p>Why these: {escape(made.tolerance.because)}.{let_go}</p>" + _limits(seen)
    return section("Verdict", sentence, word, told, notes, sides, limits, "<h3>Outputs</h3><p>Logits in each of the ways they were made; without outliers means without the share of tokens that the limits let go.</p>", _outputs(seen))


def _plan(side: "Side") -> str:
    return f"{side.plan.tensor} tensor × {side.plan.pipeline} pipeline"


def _limits(seen: "Evidence") -> str:
    """What is allowed, and the most that was found."""
    way, mode = (OWN, "drift") if seen.comparison.mode == "drift" else ("end to end", "logits")
    limits, sums = seen.limits, [one for one in seen.outputs(mode) if one.tokens]
    judged = [one.judged(limits.outliers) for one in sums]
    rows: list[tuple[str, float | None, float | None, str]] = [
        ("relative L2 of the logits", limits.relative_l2, _most(one["relative_l2"] for one in judged), way),
        ("KL of the logits, in nats", limits.kl, _most(one["kl"] for one in judged), way),
        (f"top-1 flips where the lead exceeds {limits.margin:.3g}", limits.top1_flips, _most(one.flipped / one.tokens for one in sums), way),
    ]
    found = [(gap.result(), limits.of(walked.name)) for walked in seen.segments for gap in walked.gaps.values()]
    for words, limit, metric in (("relative L2 of a segment", "segment", "relative_l2"), ("relative L2 of a token", "token", "token_relative_l2"), ("tokens to other experts", "experts", "experts_changed")):
        known = [(getattr(one, metric), getattr(mine, limit), f"{one.segment} {one.tensor}") for one, mine in found if getattr(one, metric) is not None]
        value, allowed, where = max(known, key=lambda row: _order(row[0]) / max(row[1], 1e-300), default=(None, getattr(limits, limit), ""))
        rows.append((f"{words}, {GIVEN}", allowed, value, where))
    over = [place for place, (_, allowed, value, _) in enumerate(rows) if allowed is not None and value is not None and not value <= allowed]
    return table(("limit", "allowed", "found", "where"), [(words, "not judged" if allowed is None else number(allowed), number(value), where) for words, allowed, value, where in rows], marked=over)


def _order(value: float) -> float:
    """What is not a number is the worst."""
    return inf if value != value else value


def _most(values: Iterable[float]) -> float | None:
    return max(values, key=_order, default=None)


def _outputs(seen: "Evidence") -> str:
    ways = ((seen.outputs("logits"), "end to end"), (seen.outputs("segments"), GIVEN), (seen.outputs("drift"), OWN))
    made = [_output(one, way, seen.limits) for sums, way in ways for one in sums if one.tokens]
    names = ("", "made", "tokens", "max abs", "relative L2", "– without outliers", "cosine", "SNR, dB", "KL, nats", "– without outliers", "top-1 agreement", "top-1 flips beyond the margin", "top-5 overlap", "worst token's KL", "– at")
    head, *rows = zip(names, *made, strict=True)
    return table(head, rows)


def _output(one: "Accumulator", way: str, limits: "Tolerance") -> tuple[str, ...]:
    made, judged, (far, prompt, token) = one.result(), one.judged(limits.outliers), one.worst
    return (
        *(made.name, way, f"{made.tokens:,}", number(made.max_abs), number(made.relative_l2), number(judged["relative_l2"]), _cosine(made.cosine), number(made.snr_db)),
        *(number(made.kl), number(judged["kl"]), f"{made.top1_agreement:.2%}", f"{made.top1_flips:.2%}", f"{made.top5_overlap:.2%}", number(far), f"prompt {prompt}, token {token}" if far > 0 else ""),
    )


def _cosine(value: float) -> str:
    return f"{value:.7f}" if abs(value) < inf else number(value)


def _marked(seen: "Evidence") -> str | None:
    return seen.comparison.first_divergent.segment if seen.comparison.first_divergent else None


def _columns(seen: "Evidence") -> Columns:
    """Of the prompt where it first goes wrong, or where the worst token is."""
    fault = seen.comparison.first_divergent
    worst = max((gap.worst[:2] for walked in seen.segments for gap in walked.gaps.values()), default=(0.0, 0))[1]
    prompt = worst if fault is None or fault.prompt is None else fault.prompt
    return choose(list(map(len, seen.rows)), prompt, len(seen.segments))


def _heat(seen: "Evidence") -> str:
    title = "Where: segments × tokens"
    if not any(walked.gaps for walked in seen.segments):
        return section(title, "No segment was walked.")
    columns, limits = _columns(seen), seen.limits
    rows = [maps.HeatRow(walked.name, limits.of(walked.name).token, columns.fold(worst_of_tensors([gap.by_token for gap in walked.gaps.values()]))) for walked in seen.segments]
    ids = seen.rows[columns.prompts[0]] if columns.single else []
    marked = _marked(seen)
    sentence = "Relative distance of each token's result, both sides given the left's values, the largest of a segment's tensors: blue is within the tolerance, orange beyond, fuller is further. A whole row is a wrong weight; some columns are tokens that something happens to: experts, positions, rare values."
    if limits.by_segment:
        sentence += " Segments with limits of their own are coloured by those."
    if marked:
        sentence += f" The first segment apart, {escape(marked)}, is outlined."
    return section(title, sentence, maps.heatmap(rows, columns, limits.token, marked, ids, _one_by_one(seen, columns.prompts[0])))


def _one_by_one(seen: "Evidence", prompt: int) -> int:
    """Tokens at a prompt's end that went in one by one: the steps behind the first that have one token."""
    steps = next((gap.by_token[prompt] for walked in seen.segments for gap in walked.gaps.values() if prompt in gap.by_token), [])
    return sum(len(step) == 1 for step in steps[1:])


def _drift(seen: "Evidence") -> str:
    title = "How it grows: drift along the model"
    walks = (("own", "own values", seen.drift), ("given", "left's values", seen.segments))
    names = [walked.name for walked in seen.drift or seen.segments]
    lines = [curves.Curve(f"{tensor}, {words}", f"{kind} {tensor}", _along(walk, names, tensor)) for kind, words, walk in walks for tensor in ("update", "hidden")]
    lines.append(curves.Curve("logits, own values", "own last", _along(seen.drift, names, "logits")))
    lines = [one for one in lines if one.values]
    if not lines:
        return section(title, "No segment was walked.")
    limits = [("tolerance end to end", seen.limits.relative_l2), ("of a segment", seen.limits.segment)]
    sentence = "Relative L2 of each segment's update and of the residual stream: solid with each side's own values, which end in the logits, dashed with the left's. A solid line that climbs slowly is rounding adding up; a step in both is a fault there. Points on the lower edge are equal, on the upper edge not a number."
    return section(title, sentence, curves.curves(lines, names, limits, _marked(seen)))


def _along(walk: "Sequence[Walked]", names: Sequence[str], tensor: str) -> dict[int, float]:
    place = {name: number for number, name in enumerate(names)}
    found = ((walked.name, walked.gaps[tensor].result()) for walked in walk if tensor in walked.gaps and walked.name in place)
    return {place[name]: one.relative_l2 for name, one in found if not _all_left_out(one)}


def _all_left_out(one: "SegmentDifference") -> bool:
    """Every token goes to other experts: there is no distance to tell."""
    return one.experts_changed == 1


def _logits(seen: "Evidence") -> str:
    import numpy as np

    title = "Logits: left against right"
    if not seen.pairs:
        return section(title, "No logits were kept.")
    left, right = (np.concatenate([pair[side].reshape(-1) for pair in seen.pairs]).astype(np.float64) for side in (0, 1))
    known = np.isfinite(left) & np.isfinite(right)
    lost, (left, right) = int((~known).sum()), (left[known], right[known])
    words = f" {lost:,} of {len(known):,} pairs are left out: they are not finite." if lost else ""
    if not len(left):
        return section(title, f"No pair of logits is finite.{words}")
    every = -(-len(left) // POINTS)
    spread = right - left
    reach = float(np.abs(spread).max()) or 1.0
    counts = np.histogram(spread / reach, BINS, (-1.0, 1.0))[0].tolist()
    sentence = f"A sample of {len(left):,} logits, spread evenly over tokens and vocabulary. Sound pairs lie on the diagonal; a band is rounding, a tilt a wrong scale, a cloud another model. Beside it how far they are off, its heights on a logarithmic scale: a lone bar far out is one wrong value among many right ones.{words}"
    return section(title, sentence, f"<div class=pair>{curves.scatter(left[::every], right[::every])}{curves.histogram(counts, -reach, reach)}</div>")


def _routing(seen: "Evidence") -> str:
    title = "Routing: who goes to other experts"
    walks = [{walked.name: walked for walked in walk if walked.moved} for walk in (seen.segments, seen.drift)]
    names = [walked.name for walked in seen.segments or seen.drift if any(walked.name in walk for walk in walks)]
    if not names:
        return section(title, "No layer routes, or one side does not tell where.")
    columns = _columns(seen)
    rows = [maps.Routed(name, *zip(*(_moved(walk.get(name), columns) for walk in walks), strict=True)) for name in names]
    whole = [_mean(row.shares[side] for row in rows) for side in (0, 1)]
    total = ", ".join(f"{share:.2%} {way}" for share, way in zip(whole, (GIVEN, OWN), strict=True) if share is not None)
    sentence = f"Which tokens go to other experts, layer by layer, and what share of all tokens that is (on average {total}). Given the same values only near-ties may move; on own values what came before moves more with every layer."
    return section(title, sentence, maps.routing(rows, columns, seen.limits.experts, _marked(seen)))


def _moved(walked: "Walked | None", columns: Columns) -> tuple[object, float | None]:
    import numpy as np

    if walked is None:
        return None, None
    steps = [step for found in walked.moved.values() for step in found]
    share = sum(int(step.sum()) for step in steps) / max(sum(map(len, steps)), 1)
    return columns.fold({prompt: [np.where(step, np.nan, 0.0) for step in found] for prompt, found in walked.moved.items()}), share


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _segments(seen: "Evidence") -> str:
    sentence = "Each result of each segment; rows beyond their tolerance stand out. Tokens that go to other experts are left out of the distances of an update."
    return section("All segments", sentence, *(part for walk, way in ((seen.segments, GIVEN), (seen.drift, OWN)) for part in _walk_table(walk, way, seen.limits)))


def _walk_table(walk: "Sequence[Walked]", way: str, limits: "Tolerance") -> tuple[str, str]:
    found = [gap.result() for walked in walk for gap in walked.gaps.values()]
    rows = [_segment(one) for one in found]
    # What grows along the chain is judged at its end.
    over = [] if way == OWN else [place for place, one in enumerate(found) if _beyond(one, limits.of(one.segment))]
    head = ("segment", "tensor", "max abs", "relative L2", "cosine", "SNR dB", "worst token", "at", "to other experts")
    folded = f"{way[0].upper()}{way[1:]}: {len(rows)} results"
    return (f"<h3>{folded}</h3>", table(head, rows, marked=over)) if len(rows) <= OPEN else ("", table(head, rows, folded, over))


def _segment(one: "SegmentDifference") -> tuple[object, ...]:
    at = "" if one.token is None else f"prompt {one.prompt}, token {one.token}"
    moved = "" if one.experts_changed is None else f"{one.experts_changed:.2%}"
    if _all_left_out(one):
        return one.segment, one.tensor, *[""] * 6, moved
    return one.segment, one.tensor, number(one.max_abs), number(one.relative_l2), _cosine(one.cosine), number(one.snr_db), number(one.token_relative_l2), at, moved


def _beyond(one: "SegmentDifference", limits: "Tolerance") -> bool:
    judged = ((one.relative_l2, limits.segment), (one.token_relative_l2, limits.token), (one.experts_changed, limits.experts))
    return any(value is not None and not value <= limit for value, limit in judged)


def _ranks(seen: "Evidence") -> str:
    """Nothing where neither side has several ranks."""
    if max(seen.left.plan.ranks, seen.right.plan.ranks) == 1:
        return ""
    title, ranks = "Ranks", sorted({rank for walked in seen.segments for rank in walked.parts})
    rows = [(walked.name, *(number(walked.parts.get(rank)) for rank in ranks), *(_disagreement(walked, side) for side in ("left", "right"))) for walked in seen.segments]
    sentence = "Largest difference of each rank's part before the collective joins them: a fault in one rank's weights shows in its column alone. Then the largest difference of a rank's result from the other ranks of its side, which is 0 where the collective works."
    if not ranks:
        sentence = "The plans differ, so that parts cannot be compared rank by rank. Below the largest difference of a rank's result from the other ranks of its side, which is 0 where the collective works."
    head = ("segment", *(f"rank {rank}" for rank in ranks), "left's ranks disagree", "right's ranks disagree")
    apart = [place for place, walked in enumerate(seen.segments) if any(value for side in walked.ranks.values() for value in side.values())]
    return section(title, sentence, table(head, rows, None if len(rows) <= OPEN else f"{len(rows)} segments", apart))


def _disagreement(walked: "Walked", side: str) -> str:
    found = walked.ranks.get(side, {})
    rank = max(found, key=lambda one: _order(found[one]), default=None)
    return "" if rank is None else f"{number(found[rank])} (rank {rank})" if found[rank] else "0"
