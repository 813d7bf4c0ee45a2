#!/usr/bin/env python3
"""Peers that read pages, asked line by line in JSON: ocr.py --threads N PAGE.png…

  {"engine": "rapidocr"}         rapidocr-onnxruntime without its angle classifier, one process with N threads
  {"engine": "rapidocr-angle"}   the same as it comes
  {"engine": "tesseract"}        one process per thread, each with one thread and English data

Each answers {"name": …, "seconds": …, "bytes": …}: all pages read once from their files, and the peak of resident memory of the process
that reads. {"name": ""} says that an engine is missing, with "why".
"""

import concurrent.futures
import json
import resource
import shutil
import subprocess
import sys
import time

THREADS = int(sys.argv[sys.argv.index("--threads") + 1])
PAGES = [argument for argument in sys.argv[1:] if argument.endswith(".png")]
engines = {}


def rapidocr(angle: bool) -> dict:
    try:
        from rapidocr_onnxruntime import RapidOCR
    except ImportError as error:
        return {"name": "", "why": str(error)}
    engine = engines.get("rapidocr")
    if engine is None:
        engine = engines["rapidocr"] = RapidOCR(intra_op_num_threads=THREADS, inter_op_num_threads=1)
    begun = time.perf_counter()
    for page in PAGES:
        engine(page, use_cls=angle)
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"name": "rapidocr 1.4.4" + (" with angle classifier" if angle else ""), "seconds": seconds, "bytes": peak}


def tesseract() -> dict:
    program = shutil.which("tesseract")
    if program is None:
        return {"name": "", "why": "no tesseract on the path (package tesseract-ocr)"}
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]

    def read(page: str) -> None:
        environment = {"OMP_THREAD_LIMIT": "1", "PATH": "/usr/local/bin:/usr/bin:/bin"}
        subprocess.run([program, page, "-", "-l", "eng", "--dpi", "200"], capture_output=True, check=True, env=environment)

    begun = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, PAGES))
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"name": version, "seconds": seconds, "bytes": peak}


for line in sys.stdin:
    wanted = json.loads(line)["engine"]
    answer = tesseract() if wanted == "tesseract" else rapidocr(wanted == "rapidocr-angle")
    print(json.dumps(answer), flush=True)
