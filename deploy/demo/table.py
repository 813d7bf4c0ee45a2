"""Prints what the demonstration's jobs did and how long its parts took, from `ingle jobs list --json`."""

import json
import sys

LABELS = {"ocr": "read scans", "embed": "embed, first run", "generate": "summarise", "again": "embed, second run"}
OUTCOMES = ["published", "unchanged", "skipped", "failed", "quarantined", "conflict"]


def main() -> None:
    parts = dict(zip(["build", "models and start", "ocr", "embed", "summarise", "chat", "again"], sys.argv[1:]))
    newest: dict[str, dict] = {}
    for job in json.load(sys.stdin)["jobs"]:
        # Newest first: of each label the job of this run.
        newest.setdefault(job["labels"].get("demo", ""), job)
    rows = [["JOB", "WHAT", "DOCUMENTS", *(o.upper() for o in OUTCOMES), "TIME", "RATE"]]
    for label, name in LABELS.items():
        job = newest.get(label)
        if job is None:
            continue
        counts = job["counts"]
        took = max((job["ended_ms"] or 0) - (job["created_ms"] or 0), 1) / 1000
        done = counts["published"]
        rate = f"{done / took:.1f}/s" if done else "–"
        rows.append([job["job_id"], name, str(counts["total"]), *(str(counts[o]) for o in OUTCOMES), f"{took:.1f} s", rate])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print()
    print("  ".join(f"{name} {seconds} s" for name, seconds in parts.items()))


if __name__ == "__main__":
    main()
