"""Rows, verdicts, the table and the JSON."""

import dataclasses
import statistics


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """One line of the table: who does what, and how it is measured.

    `measure()` answers a dict: the figure under `unit`, and more beside it."""
    who: str
    what: str
    unit: str
    measure: object
    # Of weightfs itself, or what it is compared with: without a figure the run
    # has failed. A peer may fail.
    needed: bool = True


@dataclasses.dataclass
class Check:
    """What a row is held to."""
    against: str
    ratio: float
    limit: float | None  # None: reported, and held to nothing
    at_most: bool = False
    # The figure of README.md's list; None: a wish beside them.
    figure: str | None = None

    @property
    def met(self):
        if self.limit is None:
            return True
        # As many digits as are printed.
        ratio, limit = round(self.ratio, 3), round(self.limit, 3)
        return ratio <= limit if self.at_most else ratio >= limit

    @property
    def verdict(self):
        return "" if self.limit is None else "met" if self.met else "MISSED"

    def text(self):
        if self.limit is None:
            return f"reported {self.against}"
        sign = "≤" if self.at_most else "≥"
        return f"{sign} {self.limit:g} {self.against}"


class Row:
    """The figures of a probe, round after round."""

    def __init__(self, case, condition, probe):
        self.case, self.condition, self.probe = case, condition, probe
        self.who, self.what, self.unit = probe.who, probe.what, probe.unit
        self.samples = {}  # round -> dict
        self.failures = []
        self.checks = []

    @property
    def values(self):
        return [sample[self.unit] for sample in self.samples.values()]

    @property
    def median(self):
        return statistics.median(self.values) if self.samples else None

    def others(self, name):
        return [sample[name] for sample in self.samples.values()
                if sample.get(name) is not None]

    def other(self, name):
        found = self.others(name)
        return statistics.median(found) if found else None


def broken(case, condition, why):
    """The row of a case that could not be set up."""
    row = Row(case.NAME, condition, Probe("–", "set-up", "", None))
    row.failures.append(why)
    return row


def ratio(row, *others, of=lambda *values: values[0]):
    """The median over the rounds of `row`'s figure by `of` the others' in the
    same round; None where one has none."""
    if row is None or any(other is None for other in others):
        return None
    found = []
    for number, sample in row.samples.items():
        if all(number in other.samples for other in others):
            below = of(*(other.samples[number][other.unit]
                         for other in others))
            if below > 0:
                found.append(sample[row.unit] / below)
    return statistics.median(found) if found else None


def hold(row, against, value, limit, at_most=False, figure=None):
    """Adds a check, if there is what it takes."""
    if row is not None and row.samples and value is not None:
        row.checks.append(Check(against, value, limit, at_most, figure))


def judge(case, condition, rows):
    by_name = {(row.what, row.who): row for row in rows}
    case.judge(lambda what, who: by_name.get((what, who)), condition)


def hold_to_peers(get, what, who, peers, limit):
    """weightfs against the best of its peers that got there."""
    row = get(what, who)
    found = [get(what, peer) for peer in peers]
    found = [peer for peer in found if peer is not None and peer.samples]
    if row is None or not row.samples or not found:
        return
    best = max(found, key=lambda peer: peer.median)
    hold(row, f"× {best.who}", ratio(row, best), limit)


# --- the table ---

def number(value):
    if value is None:
        return ""
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value)}"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else (
        2 if abs(value) >= 10 else 3)
    return f"{value:,.{digits}f}"


HEAD = ("case", "wire", "what", "who", "median", "from – to", "CPU s/GB",
        "ratio", "held to", "")


def lines_of(row):
    values = row.values
    spread = (f"{number(min(values))} – {number(max(values))}"
              if len(values) > 1 else "")
    figure = (f"{number(row.median)} {row.unit}" if values
              else "failed")
    if row.samples and not all(s.get("complete", True)
                               for s in row.samples.values()):
        figure += " *"
    first = [row.case, str(row.condition), row.what, row.who, figure, spread,
             number(row.other("cpu_per_gb")), "", "", ""]
    verdicts = [(number(check.ratio), check.text(), check.verdict)
                for check in row.checks]
    if verdicts:
        first[-3:] = verdicts[0]
    yield first
    for more in verdicts[1:]:
        yield ["", "", "", "", "", "", "", *more]
    for text in notes_of(row):
        yield ["", "", "", "", text, "", "", "", "", ""]


def notes_of(row):
    for failure in sorted(set(row.failures)):
        yield f"({row.failures.count(failure)} × {failure})"
    longest = max(row.others("longest"), default=0)
    if longest >= 1:
        yield f"(one wait of {longest:.1f} s)"
    notes = {}
    for sample in row.samples.values():
        for name, value in sample.get("notes", {}).items():
            notes.setdefault(name, []).append(value)
    for name, values in notes.items():
        yield f"({name}: {number(statistics.median(values))})"


def columns(lines):
    """Aligned; None is a rule, and what is in brackets may go over the columns
    that follow it."""
    widths = [max(len(line[i]) for line in lines
                  if line and not line[i].startswith("("))
              for i in range(len(lines[0]))]
    for line in lines:
        yield "─" * (sum(widths) + 2 * len(widths) - 2) if line is None else (
            "  ".join(cell.ljust(width) for cell, width
                      in zip(line, widths)).rstrip())


def table(rows):
    lines, before = [list(HEAD)], None
    for row in rows:
        for line in lines_of(row):
            group = (row.case, str(row.condition))
            if line[0] and group == before:
                line[0] = line[1] = ""
            elif line[0]:
                before = group
                lines.append(None)
            lines.append(line)
    return "\n".join([*columns(lines), "GB: 10⁹ bytes. Stopped at --limit: *",
                      "", *summary(rows)])


def summary(rows):
    """Only the figures that README.md lists."""
    held = {}
    for row in rows:
        for check in row.checks:
            if check.figure:
                held.setdefault(check.figure, []).append((row, check))
    lines = [["what weightfs is held to", "what", "who", "figure", "limit", ""]]
    for figure, checks in held.items():
        lines.append(None)
        for row, check in checks:
            lines.append([
                figure if lines[-1] is None else "", row.what, row.who,
                number(check.ratio), check.text(), check.verdict])
    found = [check for checks in held.values() for _, check in checks
             if check.limit is not None]
    if found:
        yield from columns(lines)
        yield f"{sum(c.met for c in found)} of {len(found)} met."


def complaints(rows):
    """What must not be, whatever the machine; peers may be as they are."""
    found = []
    for row in rows:
        where = f"{row.case}, {row.condition}, {row.what}, {row.who}"
        wrong = sum(row.others("wrong_bytes"))
        if wrong:
            found.append(f"{where}: {wrong} bytes are wrong")
        if row.probe.needed and row.failures:
            found.append(f"{where}: {row.failures[0]}")
        elif row.probe.needed and not row.samples:
            found.append(f"{where}: not measured")
    return found


def as_json(about, skipped, rows):
    listed = []
    for row in rows:
        listed.append({
            "case": row.case, "what": row.what, "who": row.who,
            "latency_ms": row.condition.latency,
            "bytes_per_second": row.condition.rate, "unit": row.unit,
            "median": row.median,
            "min": min(row.values, default=None),
            "max": max(row.values, default=None),
            "cpu_s_per_gb": row.other("cpu_per_gb"),
            "failures": row.failures,
            "samples": list(row.samples.values()),
            "checks": [{"against": check.against, "ratio": check.ratio,
                        "limit": check.limit, "at_most": check.at_most,
                        "met": check.met, "figure": check.figure or None}
                       for check in row.checks]})
    return {**about, "skipped": skipped, "rows": listed}
