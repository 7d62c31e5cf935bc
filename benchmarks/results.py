"""Write docs/results.md, and the marked parts of other pages, from the measurements in results/.

    python benchmarks/results.py [--check]

The text is in docs/*.jinja. A part stands between ``<!-- NAME, by benchmarks/results.py -->`` and ``<!-- /NAME -->``, and its text
is in docs/NAME.md.jinja. ``--check`` writes nothing and fails where a page is old.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from slimcodec.evaluation.bd_rate import bd_rate, compare, improving, relative_at
from slimcodec.evaluation.results import Interval, MeasuredCurve, Result, load_all
from slimcodec.files import atomic_write

ROOT = Path(__file__).parent.parent
RESULTS, DOCS = ROOT / "results", ROOT / "docs"
PEERS = {"avif": "AVIF", "avif-444": "AVIF 4:4:4", "heic": "HEIC", "webp": "WebP", "jxl": "JPEG XL", "jpeg2000": "JPEG 2000", "jpeg": "JPEG"}  # fmt: skip
RATES = (0.05, 0.1, 0.2, 0.35)
#: pages with parts that are written here
PARTLY = (ROOT / "README.md", DOCS / "integrations.md")
PART = re.compile(r"(<!-- ([\w-]+), by benchmarks/results.py -->\n).*?(<!-- /\2 -->)", re.DOTALL)


def stored(name: str) -> Any:
    """A measurement that is not a result of ``slim bench``."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def percent(ends: Interval | None) -> str:
    return "–" if ends is None else f"{ends[0]:.0f} %"


def fewer_bits(
    anchor: MeasuredCurve, curve: MeasuredCurve, measure: str, rate: str = "bpp"
) -> Interval | None:
    """How many per cent fewer bits ``curve`` needs than ``anchor`` at an equal measure, with the interval."""
    compared = compare(bd_rate, anchor, curve, measure, rate)
    if compared.value is None:
        return None
    low, high = compared.interval or (compared.value, compared.value)
    return -compared.value, -high, -low


def machine(result: Result) -> dict[str, Any]:
    """The preset ``machine`` with its controls."""
    judge = result.judges[0]
    guided = next(c for c in result.curves if c.slim and c.slim.enhanced and c.slim.guidance)
    none, wrong = result.controls(guided)
    columns = [(guided, "bpp"), (none, f"top1 {judge}"), (guided, f"top1 {judge}")]
    columns += [(wrong, f"kept {judge}"), (wrong, f"drawn_in {judge}")]
    digits = ["{:.3f}"] + ["{:.1f}"] * 4
    rows = [
        [form.format(curve.points[n].summary[name][0]) for form, (curve, name) in zip(digits, columns, strict=True)]  # type: ignore[index]
        for n in range(len(guided.points))
    ]  # fmt: skip

    return {
        "rows": rows,
        "count": len(result),
        "top1": f"{result.uncompressed[f'top1 {judge}'].mean():.0f}",
        "alone": f"{result.uncompressed['caption alone'].mean():.0f}",
    }


def judged() -> dict[str, Any]:
    """What two judges keep on two sets of photos, by steps 0 and by ``machine``; the worst of the four is quoted."""
    rows: list[tuple[str, list[str]]] = []
    shares: dict[str, list[Interval]] = {"steps 0": [], "machine": []}
    fewer: list[tuple[str, str, str, str]] = []
    savings: list[Interval] = []
    for name, file in (
        ("development", "dev-imagenet1k-machine.json"),
        ("set aside", "set-aside-machine.json"),
    ):
        result = load_all([str(RESULTS / file)])[0]
        curves = {curve.name: curve for curve in result.curves}
        plain = curves["slim steps 0"]
        guided = next(c for c in result.curves if c.slim and c.slim.enhanced and c.slim.guidance)
        for judge in result.judges:
            for label, curve in (("steps 0", plain), ("machine", guided)):
                found = [relative_at(result, curve, judge, rate) for rate in RATES]
                shares[label].append(found)  # type: ignore[arg-type]
                rows.append((f"{len(result)} {name}, {judge}, {label}", [percent(ends) for ends in found]))
            for peer in ("avif", "avif-444"):
                if peer in curves:
                    compared = [fewer_bits(curves[peer], c, f"top1 {judge}") for c in (plain, guided)]
                    fewer.append((PEERS[peer], judge, *map(spread, compared)))  # type: ignore[arg-type]
                    savings += compared[:1]  # type: ignore[arg-type]
    worst = {
        label: [
            min((found[n] for found in all_four if found[n]), key=lambda ends: ends[0], default=None)
            for n in range(len(RATES))
        ]  # type: ignore[index, misc]
        for label, all_four in shares.items()
    }
    return {
        "rows": rows,
        "fewer": fewer,
        "savings": savings,
        "set_aside": len(result),
        "worst": {label: [spread(ends) for ends in found] for label, found in worst.items()},
    }


def effort() -> dict[str, Any]:
    """What the encoder's effort keeps: the worse judge at each effort, bits against effort 0, and the control."""
    report = stored("evidence.json")
    judges, qualities = list(report["classifiers"]), sorted({point["quality"] for point in report["points"]})
    whole = {judge: report["uncompressed"][judge][0] for judge in judges}

    def curve(level: int, *, wrong: bool = False) -> list[dict[str, Any]]:
        chosen = (p for p in report["points"] if p["effort"] == level and p["wrong_class"] == wrong)
        return sorted(chosen, key=lambda point: point["quality"])

    def kept(point: dict[str, Any], judge: str) -> float:
        return 100 * point[f"{judge} right"][0] / whole[judge]

    plain = [
        {"bpp": point["bpp"], **{f"top1 {judge}": point[f"{judge} right"] for judge in judges}}
        for point in curve(0)
    ]
    rows = []
    for level in dict.fromkeys(point["effort"] for point in report["points"]):
        points = curve(level)
        shares = []
        for judge in judges:
            pairs = [(point["bpp"][0], bits_at(plain, judge, point[f"{judge} right"][0])) for point in points]
            # points beyond the plain curve say nothing
            logs = [np.log(bpp / wanted) for bpp, wanted in pairs if wanted is not None]
            shares.append(f"{100 * (1 - np.exp(np.mean(logs))):.0f} %")
        worst = [f"{min(kept(point, judge) for judge in judges):.0f} %" for point in points]
        milliseconds = np.mean([point["encode_ms"][0] for point in points])
        rows.append((level, f"{milliseconds:.0f}", worst, shares if level else ["–"] * len(judges)))
    default = max(point["effort"] for point in report["points"] if point["wrong_class"])
    control = [
        (
            f"{right['bpp'][0]:.3f}",
            f"{untouched['psnr'][0]:.2f}, {right['psnr'][0]:.2f}",
            *(
                percent(value)
                for judge in judges
                for value in (
                    untouched[f"{judge} right"],
                    right[f"{judge} right"],
                    false[f"{judge} right"],
                    false[f"{judge} drawn in"],
                )
            ),
        )
        for untouched, right, false in zip(curve(0), curve(default), curve(default, wrong=True), strict=True)
    ]
    return {
        "judges": judges,
        "count": report["photos"],
        "rates": [
            f"{np.mean([c[n]['bpp'][0] for c in (curve(0), curve(default))]):.2f}"
            for n in range(len(qualities))
        ],
        "rows": rows,
        "default": default,
        "control": control,
    }


def other_tasks() -> list[tuple[str, ...]]:
    """What evidence and guidance do to classes that the tagger does not name, by collection and quality."""
    rows = []
    for name, found in stored("other-tasks.json")["collections"].items():
        top1 = found["top1_percent"]
        for quality in dict.fromkeys(key.split()[0] for key in found["bpp"]):
            ways = [way for way in found["bpp"] if way.split()[0] == quality]
            sizes = ", ".join(f"{found['bpp'][way]:.3f}" for way in ways[:2])
            head = f"{name}: {found['classes']} classes, {found['photos']} photos"
            rows.append((head, sizes, percent(top1["uncompressed"]), *(spread(top1[way]) for way in ways)))
    return rows


def flux2() -> dict[str, Any]:
    """The compressor on FLUX.2's latent space beside slim-tiny, peers, and uniform quantisation of its latents."""
    result = load_all([str(RESULTS / "dev-imagenet1k-flux2.json")])[0]
    ours = load_all([str(RESULTS / "dev-imagenet1k-machine.json")])[0]
    alone, times = stored("flux2-uniform.json"), stored("speed-flux2.json")
    named = {"slim steps 0": "steps 0", "slim steps 0 + caption + guidance 0.4": "`machine`"}
    chosen = [
        (f"{bundle}, {label}", source, curve)
        for bundle, source in (("slim-flux2", result), ("slim-tiny", ours))
        for name, label in named.items()
        for curve in source.curves
        if curve.name == name
    ] + [(PEERS[curve.name], result, curve) for curve in result.curves if curve.name in PEERS]
    rows = [
        (name, judge, [percent(relative_at(source, curve, judge, rate)) for rate in RATES])
        for name, source, curve in chosen
        for judge in source.judges
    ]
    kept = {
        name: [
            percent(
                min(relative_at(source, curve, judge, rate) or (0.0, 0.0, 0.0) for judge in source.judges)
            )
            for rate in (0.1, 0.2)
        ]
        for name, source, curve in chosen
    }
    plain = next(curve for curve in result.curves if curve.name == "slim steps 0")
    points = [point.summary for point in plain.points]
    uniform = []
    for row in alone["uniform"]:
        bits = [bits_at(points, judge, row[judge]["top1_percent"][0]) for judge in result.judges]
        cells = [f"{row[judge]['kept_percent'][0]:.0f} %" for judge in result.judges]
        shares = ["–" if found is None else f"{100 * found / row['bpp']:.0f} %" for found in bits]
        uniform.append((row["step"], row["bpp"], *cells, *shares))
    return {
        "judges": result.judges,
        "count": len(result),
        "ours": len(ours),
        "rows": rows,
        "kept": kept,
        "uniform": uniform,
        "round_trip": [f"{alone['round_trip'][judge]['kept_percent'][0]:.0f} %" for judge in result.judges],
        "times": times,
    }


def bits_at(points: list[dict[str, Any]], judge: str, wanted: float) -> float | None:
    """The bits per pixel at which a curve has a top-1, between its points, by the logarithm of the rate; None beyond them."""
    rates, scores = (np.array([point[name][0] for point in points]) for name in ("bpp", f"top1 {judge}"))
    rates, scores = improving(rates, scores)
    if not scores[0] <= wanted <= scores[-1]:
        return None
    return float(np.exp(np.interp(wanted, scores, np.log(rates))))


def spread(ends: Interval | None) -> str:
    """A share with its interval."""
    return "–" if ends is None else f"{ends[0]:.0f} % ({ends[1]:.0f} to {ends[2]:.0f})"


def measured() -> dict[str, Any]:
    """Everything that the templates name."""
    result, _ = load_all([str(RESULTS / "dev-imagenet1k.json"), str(RESULTS / "dev-imagenet1k-peers.json")])
    judge = result.judges[0]
    curves = {curve.name: curve for curve in result.curves}
    slim, anchors = curves["slim steps 0"], [curves[name] for name in PEERS if name in curves]
    top1 = f"top1 {judge}"
    kept = {
        curve.name: [percent(relative_at(result, curve, judge, bpp)) for bpp in RATES]
        for curve in (slim, *anchors)
    }
    whole = stored("experiments/round_trip.json")["round_trip"][judge]["kept_percent"][0]
    fewer = [
        (
            PEERS[anchor.name],
            spread(fewer_bits(anchor, slim, top1)),
            spread(fewer_bits(anchor, slim, top1, "bpp_less_grey")),
            spread(fewer_bits(anchor, slim, "psnr")),
        )
        for anchor in anchors
    ]
    speed, exact, both_sets = stored("speed.json"), stored("exactness.json"), judged()
    savings = [fewer_bits(curves["avif"], slim, top1), *both_sets["savings"]]
    sizes = {point.quality: f"{size[0]:,.0f}" for point in slim.points if (size := point.summary["bytes"])}
    return {
        "count": f"{len(result):,}",
        "judge": judge,
        "bundle": slim.bundle["id"] if slim.bundle else "",
        "slim_effort": slim.slim.effort if slim.slim else 0,
        "top1": f"{result.uncompressed[top1].mean():.1f}",
        "fewer": fewer,
        "rates": [f"{rate:.2f}" for rate in RATES],
        "kept": [("SLIM", kept[slim.name], f"{whole:.1f} %")]
        + [(PEERS[a.name], kept[a.name], "100 %") for a in anchors],
        "machine": machine(load_all([str(RESULTS / "dev-imagenet1k-machine.json")])[0]),
        "judged": both_sets,
        # of the worst of judges, sets of photos and settings of AVIF
        "fewest": spread(min(saving for saving in savings if saving)),
        "flux2": flux2(),
        "effort": effort(),
        "other_tasks": other_tasks(),
        "speed": speed,
        "cost": stored("entropy_cost.json"),
        "latents": stored("latent-training.json"),
        "long_run": stored("long-run.json"),
        "throughput": stored("throughput.json"),
        "exact": {
            "files": exact["files"],
            "configurations": sum(row["read"] is not None for row in exact["rows"]),
            "wrong": sum(row[way] or 0 for row in exact["rows"] for way in ("read", "written", "own")),
        },
        "lowest": min(sizes),
        "smallest": sizes[min(sizes)],
        "highest": max(sizes),
        "largest": sizes[max(sizes)],
        "encode": f"{speed['milliseconds']['encode']:.0f}",
        "encode_fast": f"{speed['milliseconds']['encode_effort_0']:.0f}",
        "decode": f"{speed['milliseconds']['decode_steps_0']:.0f}",
    }


def pages() -> dict[Path, str]:
    """The pages with their text of today's measurements."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(DOCS), undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    values = measured()

    def text(name: str, page: Path) -> str:
        """A template's text; ``up`` leads from the page to the root."""
        up = "" if page.parent == ROOT else "../"
        return environment.get_template(f"{name}.md.jinja").render(values, up=up)

    results = DOCS / "results.md"
    written = {results: f"{text('results', results)}\n"}
    for page in PARTLY:

        def part(found: re.Match[str], page: Path = page) -> str:
            return f"{found[1]}\n{text(found[2], page).rstrip()}\n\n{found[3]}"

        written[page], count = PART.subn(part, page.read_text(encoding="utf-8"))
        if not count:
            raise SystemExit(f"{page.name}: the marks around its measured parts are missing")
    return written


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is old")
    check = parser.parse_args().check
    for path, text in pages().items():
        if check and path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path.relative_to(ROOT)} is older than results/: run python benchmarks/results.py")
        if not check:
            atomic_write(path, text.encode())


if __name__ == "__main__":
    main()
