#!/usr/bin/env python3
"""Compares what engines read with what stands on the pages of pages.py, in one table.

quality.py --pages DIR [--results NAME=DIR]… [--peers rapidocr,rapidocr-upright,tesseract,tesseract-6] [--threads N] [--json FILE] [--worst N]

A result is NAME.txt for each page's NAME.gt.txt. Peers write theirs below DIR/peers/PEER once and are not run again while it is there:
rapidocr is rapidocr-onnxruntime as it comes, rapidocr-upright the same without its angle classifier, tesseract the program
with English data and one thread, tesseract-6 the same told that the page is one block.

  CER     edit distance in characters / characters that stand there; any run of white space counts as one blank
  glyphs  the same with all white space left out of both
  WER     edit distance in words / words
  bag     words missing or too many, whichever is more, in any order / words: how much of WER isn't reading order

Each kind's figure is the sum of its pages' distances over the sum of their lengths, in percent.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import time

PEERS = ("rapidocr", "rapidocr-upright", "tesseract", "tesseract-6")


def distance(a, b) -> int:
    """Levenshtein's distance of two sequences, bit-parallel (Hyyro 2003 after Myers 1999): one column per step."""
    if not a or not b:
        return max(len(a), len(b))
    places = collections.defaultdict(int)
    for index, item in enumerate(a):
        places[item] |= 1 << index
    full, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    up, down, score = full, 0, len(a)
    for item in b:
        match = places.get(item, 0)
        diagonal = (((match & up) + up) ^ up) | match | down
        right = down | (full & ~(diagonal | up))
        left = up & diagonal
        score += bool(right & last) - bool(left & last)
        right = (right << 1 | 1) & full
        up = (left << 1) & full | (full & ~(diagonal | right))
        down = right & diagonal
    return score


def compare(truth: str, found: str) -> dict[str, tuple[int, int]]:
    """Errors and length of each measure."""
    words, read = truth.split(), found.split()
    spaced, glyphs = " ".join(words), "".join(words)
    missing, surplus = collections.Counter(words), collections.Counter(read)
    bag = max((missing - surplus).total(), (surplus - missing).total())
    return {
        "CER": (distance(spaced, " ".join(read)), len(spaced)),
        "glyphs": (distance(glyphs, "".join(read)), len(glyphs)),
        "WER": (distance(words, read), len(words)),
        "bag": (bag, len(words)),
    }


def run_rapidocr(pages: list[pathlib.Path], out: pathlib.Path, angle: bool, threads: int) -> None:
    from rapidocr_onnxruntime import RapidOCR

    engine = RapidOCR(intra_op_num_threads=threads, inter_op_num_threads=1)
    for page in pages:
        begun = time.perf_counter()
        lines, _ = engine(str(page), use_cls=angle)
        spent = time.perf_counter() - begun
        (out / f"{page.stem}.txt").write_text("\n".join(line[1] for line in lines or []) + "\n", encoding="utf-8")
        (out / f"{page.stem}.seconds").write_text(str(spent))


def run_tesseract(pages: list[pathlib.Path], out: pathlib.Path, mode: int) -> None:
    for page in pages:
        begun = time.perf_counter()
        command = ["tesseract", str(page), "-", "-l", "eng", "--psm", str(mode), "--dpi", "200"]
        done = subprocess.run(command, capture_output=True, check=True, env={"OMP_THREAD_LIMIT": "1", "PATH": "/usr/local/bin:/usr/bin:/bin"})
        (out / f"{page.stem}.txt").write_bytes(done.stdout.replace(b"\f", b""))
        (out / f"{page.stem}.seconds").write_text(str(time.perf_counter() - begun))


def run_peer(name: str, pages: list[pathlib.Path], folder: pathlib.Path, threads: int) -> pathlib.Path:
    out = folder / "peers" / name
    out.mkdir(parents=True, exist_ok=True)
    missing = [page for page in pages if not (out / f"{page.stem}.txt").exists()]
    if missing and name.startswith("rapidocr"):
        run_rapidocr(missing, out, name == "rapidocr", threads)
    elif missing:
        run_tesseract(missing, out, 6 if name.endswith("-6") else 3)
    return out


def measure(pages: list[pathlib.Path], results: pathlib.Path) -> dict[str, dict]:
    """By kind: each measure in percent, seconds per page where they were noted, and the pages with their word errors."""
    kinds: dict[str, dict] = {}
    for page in pages:
        entry = kinds.setdefault(page.stem.split("-")[0], {"sums": collections.Counter(), "seconds": [], "pages": []})
        path = results / f"{page.stem}.txt"
        found = path.read_text(encoding="utf-8") if path.exists() else ""
        compared = compare(page.with_suffix("").with_suffix(".gt.txt").read_text(encoding="utf-8"), found)
        for name, (errors, length) in compared.items():
            entry["sums"][name] += errors
            entry["sums"][f"{name} of"] += length
        entry["pages"].append((compared["WER"][0] / max(1, compared["WER"][1]), page.stem))
        seconds = results / f"{page.stem}.seconds"
        if seconds.exists():
            entry["seconds"].append(float(seconds.read_text()))
    figures = {}
    for kind, entry in kinds.items():
        sums, seconds = entry["sums"], entry["seconds"]
        figures[kind] = {name: 100 * sums[name] / max(1, sums[f"{name} of"]) for name in ("CER", "glyphs", "WER", "bag")}
        figures[kind]["seconds"] = sum(seconds) / len(seconds) if seconds else None
        figures[kind]["pages"] = sorted(entry["pages"], reverse=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="What was read, and how much of it is right")
    parser.add_argument("--pages", required=True, type=pathlib.Path)
    parser.add_argument("--results", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--peers", default="", help=f"any of {','.join(PEERS)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--worst", type=int, default=0, help="also name each kind's N worst pages of each result")
    options = parser.parse_args()
    pages = sorted(options.pages.glob("*.png"))
    if not pages:
        parser.error(f"{options.pages} holds no pages; make some with pages.py")
    names = [name for name in options.peers.split(",") if name]
    if unknown := [name for name in names if name not in PEERS]:
        parser.error(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    folders = {name: pathlib.Path(folder) for name, _, folder in (given.partition("=") for given in options.results)}
    folders |= {name: run_peer(name, pages, options.pages, options.threads) for name in names}
    table = {name: measure(pages, folder) for name, folder in folders.items()}
    kinds = list(dict.fromkeys(page.stem.split("-")[0] for page in pages))
    print(f"{'':12}" + "".join(f"{name:>34}" for name in table))
    print(f"{'%':12}" + f"{'CER  glyphs     WER     bag   s':>34}" * len(table))
    for kind in kinds:
        row = f"{kind:12}"
        for figures in table.values():
            figure = figures[kind]
            seconds = f"{figure['seconds']:5.2f}" if figure["seconds"] is not None else "    -"
            row += f"{figure['CER']:9.2f}{figure['glyphs']:7.2f}{figure['WER']:7.2f}{figure['bag']:6.2f}{seconds}"
        print(row)
    if options.worst:
        for name, figures in table.items():
            for kind in kinds:
                print(name, kind, ", ".join(f"{page} {100 * rate:.1f}" for rate, page in figures[kind]["pages"][: options.worst]))
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
