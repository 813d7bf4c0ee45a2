#!/usr/bin/env python3
"""Rolls Inglenook out onto real hosts, guests of this machine, and does to them what people do: rollout.py [--tools] [STEP…]

ROLLOUT_DEBS names a folder with packages: a/ of one version, b/ of a later one. Steps, in this order when none are named:
  lint site again cut alert renew upgrade bad swap add restore uninstall box home archive five
`short` stands for: site again upgrade bad; `all` for all of them. Each step needs those before it as its line below says, and makes what is missing.
Prints a line `ok STEP SECONDS WHAT` per step and ends with 0, or says what went wrong and ends with 1. Guests are taken down at the
end, however it ends; ROLLOUT_KEEP=1 leaves them. --tools fetches what python needs into .cache/ansible, and does nothing else alone.

Needs root, Debian, systemd-container mmdebstrap iproute2 openssh-client openssl python3-venv. Without root it says `skipped:`.
"""

import argparse
import atexit
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from world import CACHE, Failed, World, tools  # noqa: E402
import steps  # noqa: E402

ALL = "lint site again cut alert renew upgrade bad swap add restore uninstall box home archive five".split()
SHORT = "site again upgrade bad".split()
# Whatever hangs, a run ends: minutes for the guests themselves, and for each step.
MINUTES_FIRST = 15
MINUTES_STEP = 12


def main() -> int:
    parser = argparse.ArgumentParser(description="roll out onto guests")
    parser.add_argument("--tools", action="store_true", help="fetch what python needs")
    parser.add_argument("steps", nargs="*", choices=[*ALL, "short", "all", []], metavar="STEP")
    options = parser.parse_args()
    if options.tools:
        tools()
        if not options.steps:
            return 0
    names = [name for step in options.steps or ALL for name in {"short": SHORT, "all": ALL}.get(step, [step])]
    lacking = [program for program in ("systemd-nspawn", "mmdebstrap", "ip", "ssh-keygen", "openssl") if not shutil.which(program)]
    if names != ["lint"] and (os.geteuid() != 0 or lacking):
        print(f"skipped: rollout: needs root and {', '.join(lacking) or 'nothing else'}")
        return 0
    if not (CACHE / "ansible/bin/ansible-playbook").exists():
        print(f"rollout: {CACHE}/ansible isn't there: run {sys.argv[0]} --tools once", file=sys.stderr)
        return 1
    world = World()
    ending = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM)
    minutes = MINUTES_FIRST + MINUTES_STEP * len(names)

    def end(number: int, _) -> None:
        # Once: what takes the guests down isn't to be broken off.
        for other in ending:
            signal.signal(other, signal.SIG_IGN)
        if number == signal.SIGALRM:
            print(f"failed: not done within {minutes} minutes", flush=True)
        sys.exit(1)

    for number in ending:
        signal.signal(number, end)
    if not os.environ.get("ROLLOUT_KEEP"):
        atexit.register(world.down)
    signal.alarm(minutes * 60)
    for name in names:
        begun = time.monotonic()
        try:
            what = getattr(steps, name)(world)
        except (Failed, subprocess.CalledProcessError) as error:
            print(f"failed {name} {time.monotonic() - begun:.0f} {error}", flush=True)
            return 1
        print(f"ok {name} {time.monotonic() - begun:.0f} {what}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
