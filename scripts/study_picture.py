"""Draw a study's reports as SVG for the README: python scripts/study_picture.py STUDY STORAGE_URL > picture.svg."""

import sys

from tuner.storage import connect
from tuner.storage.read.queries import TrialRow, find_study, read_best, read_trials

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 340, 56, 44, 34, 150
LOW, HIGH = 0.5, 1.0


def place(epoch: float, value: float, epochs: int) -> tuple[float, float]:
    """Return the position of a report in the picture; values below the axis are clipped."""
    x = LEFT + (epoch - 1) / max(1, epochs - 1) * (WIDTH - LEFT - RIGHT)
    y = HEIGHT - BOTTOM - (max(value, LOW) - LOW) / (HIGH - LOW) * (HEIGHT - BOTTOM - TOP)
    return x, y


def curve(trial: TrialRow, epochs: int, colour: str, width: float) -> list[str]:
    """Return the line of a trial and the dot at its end."""
    points = [place(epoch, value, epochs) for epoch, value in trial.reports.items()]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    x, y = points[-1]
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{width + 1}" fill="{colour}"/>',
    ]


def picture(name: str, url: str) -> str:
    """Return the SVG of a study."""
    engine = connect(url)
    study = find_study(engine, name)
    trials = [trial for trial in read_trials(engine, study, with_reports=True) if trial.reports]
    best = read_best(engine, study, 1)[0].number
    epochs = study.record["epochs"]
    engine.dispose()
    colours = {"complete": ("#2563a8", 1.6), "pruned": ("#a8a8a8", 1.0)}
    lines = []
    for trial in sorted(trials, key=lambda trial: (trial.number == best, trial.outcome == "complete")):
        colour, width = ("#d9480f", 2.4) if trial.number == best else colours.get(trial.outcome, ("#a8a8a8", 1.0))
        lines += curve(trial, epochs, colour, width)
    for tenth in range(5, 11):
        x, y = place(1, tenth / 10, epochs)
        lines.append(f'<text x="{x - 10}" y="{y + 4:.1f}" text-anchor="end">{tenth / 10:.1f}</text>')
        lines.append(f'<line x1="{x}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#888" opacity="0.2"/>')
    for epoch in [1, *range(5, epochs + 1, 5)]:
        x, y = place(epoch, LOW, epochs)
        lines.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{epoch}</text>')
    counts = {outcome: sum(trial.outcome is outcome for trial in trials) for outcome in colours}
    legend = [
        ("#d9480f", f"best: trial {best}"),
        ("#2563a8", f"complete: {counts['complete']}"),
        ("#a8a8a8", f"pruned: {counts['pruned']}"),
    ]
    for at, (colour, text) in enumerate(legend):
        lines.append(f'<circle cx="{WIDTH - RIGHT + 18}" cy="{TOP + 20 * at + 6}" r="4" fill="{colour}"/>')
        lines.append(f'<text x="{WIDTH - RIGHT + 28}" y="{TOP + 20 * at + 10}">{text}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">epoch</text>')
    lines.append(f'<text x="{LEFT - 40}" y="{TOP - 16}">validation {study.record["objective"][0]}</text>')
    body = "\n".join(lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="#333"><rect width="100%" height="100%" fill="white"/>\n'
        f"{body}\n</svg>"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(picture(sys.argv[1], sys.argv[2]))
