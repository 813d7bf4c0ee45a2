#!/usr/bin/env python3
"""Checks dashboards against Grafana's own types: grafana.py --into DIR [--check] FILE...

The schema is made from the npm package @grafana/schema, pinned, once per DIR; a second run finds it there. Needs npm and node;
without them, or with --check and no schema in DIR, it says so in a line that begins with `skipped:` and ends with 0.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys

PACKAGES = ["@grafana/schema@13.2.3", "ts-json-schema-generator@2.4.0", "ajv@8.20.0"]
TYPES = "node_modules/@grafana/schema/dist/types/raw/dashboard/x/types.gen.d.ts"
CHECK = """
const Ajv = require('ajv'), fs = require('fs');
const check = new Ajv({ strict: false, allErrors: true }).compile(JSON.parse(fs.readFileSync('dashboard.schema.json')));
let bad = 0;
for (const file of process.argv.slice(1)) {
  if (check(JSON.parse(fs.readFileSync(file)))) continue;
  bad++;
  for (const error of check.errors.slice(0, 8)) console.log(`${file}${error.instancePath}: ${error.message} ${JSON.stringify(error.params)}`);
}
process.exit(bad ? 1 : 0);
"""


def make(folder):
    """Installs the packages and makes the schema; it appears under its name once it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"private": true}\n', encoding="utf-8")
    quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "timeout": 600}
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES], check=True, **quiet)
    command = ["node_modules/.bin/ts-json-schema-generator", "--path", TYPES, "--type", "Dashboard", "--no-type-check"]
    made = subprocess.run([*command, "--additional-properties"], cwd=folder, capture_output=True, check=True, timeout=600)
    part = folder / "dashboard.schema.part"
    part.write_bytes(made.stdout)
    part.rename(folder / "dashboard.schema.json")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--into", type=pathlib.Path, required=True)
    parser.add_argument("--check", action="store_true", help="fetch nothing")
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    options = parser.parse_args()
    if not shutil.which("npm") or not shutil.which("node"):
        print("skipped: dashboards against Grafana's types: npm isn't installed")
        return
    files = [str(file.resolve()) for file in options.files]
    if not (options.into / "dashboard.schema.json").is_file():
        if options.check:
            print("skipped: dashboards against Grafana's types: the schema isn't there, and nothing is fetched")
            return
        try:
            make(options.into)
        except (subprocess.SubprocessError, OSError) as error:
            print(f"skipped: dashboards against Grafana's types: the schema can't be made: {error}")
            return
    sys.exit(subprocess.run(["node", "-e", CHECK, *files], cwd=options.into, timeout=120).returncode)


if __name__ == "__main__":
    main()
