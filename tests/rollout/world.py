"""Where the rollout is tested: guests, a mirror of the packages that they install, inventories, playbooks and load."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / ".cache"
NET = os.environ.get("GUESTS_NET", "10.88.0")
# What ansible-lint 26 and ansible-core 2.19 need, and the gRPC library of the second client.
PYTHON_PACKAGES = ["ansible-core>=2.19,<2.20", "ansible-lint", "grpcio", "grpcio-reflection", "protobuf"]
# What roles install from the distribution: guests reach no network, so it is fetched here beforehand.
DISTRIBUTION = ["etcd-server", "etcd-client", "prometheus", "stunnel4", "openssl"]


# As many as load.py has.
DOCUMENTS = 12


class Failed(Exception):
    """A step went wrong; says what."""


def tools() -> None:
    """A virtual environment with ansible, its linter and a gRPC library."""
    place = CACHE / "ansible"
    python = "/usr/bin/python3" if pathlib.Path("/usr/bin/python3").exists() else "python3"
    if not (place / "bin/pip").exists():
        subprocess.run([python, "-m", "venv", place], check=True)
    subprocess.run([place / "bin/pip", "install", "--quiet", *PYTHON_PACKAGES], check=True)


def eventually(what: str, seconds: float, look):
    """Waits until `look` answers something true, and answers that."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.5)


class World:
    """Guests by number from 1, made when they are first needed."""

    def __init__(self):
        # One name of all that is made here, so that two runs don't meet.
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="rollout-"))
        self.guests = 0
        self.children: list[subprocess.Popen] = []
        self.debs = pathlib.Path(os.environ.get("ROLLOUT_DEBS", "/nonexistent")).resolve()
        self.models = CACHE / "models/starter"
        self.mirror = CACHE / "rollout/mirror"
        self.inventory: pathlib.Path | None = None
        self.env = {
            **os.environ,
            "GUESTS_PREFIX": f"ro{os.getpid() % 10000}",
            "GUESTS_STATE": str(self.work / "guests"),
            "GUESTS_BASE": str(CACHE / "rollout/base"),
            "GUESTS_NET": NET,
            "GUESTS_BINDS": f"--bind-ro={self.mirror}:/srv/apt --bind-ro={self.models}:/srv/models",
        }

    # Guests

    def guest(self, *arguments: str, check: bool = True) -> str:
        ran = subprocess.run([HERE / "guests.sh", *arguments], env=self.env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if check and ran.returncode != 0:
            raise Failed(f"guests.sh {' '.join(arguments)[:200]}: exit {ran.returncode}: {ran.stderr.strip()} {ran.stdout.strip()[-400:]}")
        return ran.stdout

    def sh(self, number: int, command: str, check: bool = True) -> str:
        return self.guest("sh", str(number), command, check=check)

    def fetch_mirror(self) -> None:
        if (self.mirror / "Packages").exists():
            return
        (self.mirror / "partial").mkdir(parents=True, exist_ok=True)
        base = self.env["GUESTS_BASE"]
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(
            ["apt-get", "-qq", "-y", "--no-install-recommends", "--download-only", "-o", f"Dir::State::status={base}/var/lib/dpkg/status",
             "-o", f"Dir::Cache::archives={self.mirror}", "-o", "APT::Sandbox::User=root", "install", *DISTRIBUTION],
            check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        index = []
        for deb in sorted(self.mirror.glob("*.deb")):
            control = subprocess.run(["dpkg-deb", "-f", deb], check=True, capture_output=True, text=True).stdout.rstrip()
            content = deb.read_bytes()
            index.append(f"{control}\nFilename: ./{deb.name}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n")
        (self.mirror / "Packages").write_text("\n".join(index))

    def up(self, count: int, fresh: bool = False) -> None:
        """At least `count` guests; `fresh`: none that somebody has used."""
        if fresh:
            self.guest("down")
            self.guests = 0
        if self.guests >= count:
            return
        for package in ("a", "b"):
            if not list((self.debs / package).glob("inglenook-node_*.deb")):
                raise Failed(f"ROLLOUT_DEBS={self.debs}: no packages in {package}/: build them with `cargo xtask deb`, twice")
        models = [sys.executable, ROOT / "tests/setup/models.py", "--into", self.models]
        if subprocess.run(models, stdout=subprocess.DEVNULL).returncode != 0:
            raise Failed(f"the starter models aren't in {self.models} and can't be fetched")
        self.guest("base")
        self.fetch_mirror()
        self.guest("up", str(count))
        for number in range(self.guests + 1, count + 1):
            self.sh(number, "rm -f /etc/apt/sources.list.d/*; echo 'deb [trusted=yes] file:/srv/apt ./' > /etc/apt/sources.list; apt-get -qq update")
        self.guests = count

    def down(self) -> None:
        for child in self.children:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
        self.guest("down", check=False)
        shutil.rmtree(self.work, ignore_errors=True)

    # Playbooks

    def use(self, name: str, hosts: dict[str, int], extra: dict | None = None, more: dict | None = None) -> None:
        """Goes by an inventory of inventory.example: `hosts` says which guest stands for which machine, `more` adds groups."""
        folder = self.work / name
        if not folder.exists():
            shutil.copytree(ROOT / "ansible/inventory.example/group_vars", folder / "group_vars")
            source = ROOT / f"ansible/inventory.example/{name}.yml"
            if source.exists():
                shutil.copy(source, folder)
        login = {
            "ansible_connection": "ssh",
            "ansible_user": "root",
            "ansible_ssh_private_key_file": f"{self.work}/guests/key",
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
        }
        variables = {
            "gateway_exports": {"docs": {"url": "file:///srv/docs"}, "models": {"url": "file:///srv/models", "read_only": True}},
            "etcd_heartbeat_ms": 250,
            "etcd_election_ms": 2500,
            "observability_interval": "2s",
            # Several nodes share one machine here.
            "node_memory_reserve_gib": 0,
            "node_threads": 2,
            "node_context": 1024,
            **(extra or {}),
        }
        known = {host: {"ansible_host": f"{NET}.{10 + number}", **login, **variables} for host, number in hosts.items()}
        overlay = {"inglenook": {"hosts": known, "children": more or {}}}
        (folder / "zz-guests.yml").write_text(json.dumps(overlay, indent=1))
        self.inventory = folder
        self.hosts = hosts

    def play(self, book: str, *arguments: str, packages: str = "a", fails: bool = False) -> str:
        """Runs a playbook from the operator's place; answers what it printed."""
        command = ["run", str(CACHE / "ansible/bin/ansible-playbook"), str(ROOT / "ansible" / book)]
        command += [part for file in sorted(self.inventory.glob("*.yml")) for part in ("-i", str(file))]
        command += ["-e", f"inglenook_packages={self.packages(packages)}", *arguments]
        # Connections that ssh keeps are known by address alone, and another run has guests at the same ones.
        env = {**self.env, "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.work / "ssh"), "ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "PYTHONWARNINGS": "ignore"}
        ran = subprocess.run([HERE / "guests.sh", *command], env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        printed = ran.stdout + ran.stderr
        (self.work / "last.log").write_text(printed)
        if (ran.returncode != 0) != fails:
            kept = pathlib.Path(tempfile.gettempdir()) / f"rollout-{book}.log"
            kept.write_text(printed)
            found = "\n".join(line[:1200] for line in printed.splitlines() if re.match(r"fatal|failed:|\[ERROR\]|\S+ +: ok=", line))
            raise Failed(f"{book}: exit {ran.returncode}, expected {'a failure' if fails else '0'}; all of it is in {kept}\n{found}")
        return printed

    @staticmethod
    def recap(printed: str) -> dict[str, dict[str, int]]:
        """Ansible's last words by host: ok, changed, unreachable, failed …"""
        lines = re.findall(r"^(\S+) +: (ok=.*)$", printed, re.MULTILINE)
        return {host: {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", counts)} for host, counts in lines}

    def packages(self, name: str) -> pathlib.Path:
        """The folder of packages `a`, `b`, or `c`: b with daemons that take any settings and then end at once."""
        if name != "c":
            return self.debs / name
        bad = self.work / "c"
        if bad.exists():
            return bad
        bad.mkdir()
        for deb in sorted((self.debs / "b").glob("*.deb")):
            tree = self.work / "tree"
            shutil.rmtree(tree, ignore_errors=True)
            subprocess.run(["dpkg-deb", "-R", deb, tree], check=True)
            for daemon in (tree / "usr/bin").glob("ingle-*"):
                daemon.write_text('#!/bin/sh\ncase "$*" in *--check-config* | *--version*) exit 0 ;; esac\necho "this release is bad" >&2\nexit 1\n')
            control = (tree / "DEBIAN/control").read_text()
            control = re.sub(r"^(Version: .*)$", r"\1+bad", control, flags=re.MULTILINE)
            (tree / "DEBIAN/control").write_text(control)
            (tree / "DEBIAN/md5sums").unlink(missing_ok=True)
            version = re.search(r"^Version: (.*)$", control, re.MULTILINE).group(1)
            name, _, architecture = deb.stem.split("_")
            subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, bad / f"{name}_{version}_{architecture}.deb"],
                           check=True, stdout=subprocess.DEVNULL)  # fmt: skip
        return bad

    def version(self, name: str) -> str:
        """Which version the packages of a folder are."""
        deb = next(self.packages(name).glob("inglenook-node_*_amd64.deb"))
        return deb.name.split("_")[1]

    def installed(self, number: int) -> dict[str, str]:
        lines = self.sh(number, "dpkg-query -W -f '${Package} ${db:Status-Status} ${Version}\\n' 'ingle*' 2>/dev/null || true").splitlines()
        return {name: version for name, state, version in (line.split(" ", 2) for line in lines) if state == "installed"}

    # The cluster

    def ingle(self, *arguments: str, coordinators: list[int] | None = None, check: bool = True):
        """`ingle … --json` from the operator's place."""
        program = self.program()
        names = [f"https://{NET}.{10 + number}:7700" for number in coordinators or self.coordinators]
        pki = self.inventory / "pki"
        given = [f"INGLE_COORDINATOR={','.join(names)}", f"INGLE_TLS_CA={pki}/ca.pem", f"INGLE_TLS_CERT={pki}/client.pem", f"INGLE_TLS_KEY={pki}/client.key"]
        printed = self.guest("run", "env", *given, str(program), *arguments, "--json", check=check)
        return json.loads(printed) if printed.strip() else {}

    def program(self) -> pathlib.Path:
        """`ingle` of the packages, for this machine."""
        place = self.work / "client"
        if not place.exists():
            subprocess.run(["dpkg-deb", "-x", next((self.debs / "a").glob("ingle_*_amd64.deb")), place], check=True)
        return place / "usr/bin/ingle"

    def nodes(self) -> dict[str, str]:
        """State of each node, by name."""
        return {node["name"]: node["state"] for node in self.ingle("nodes", "list")["nodes"]}


class Load:
    """People at work while something is done to the cluster: `with Load(world) as load: …`, and then `load.told`."""

    def __init__(self, world: World, gateway: int):
        self.world, self.gateway, self.told = world, gateway, ""

    def __enter__(self):
        world = self.world
        texts = " ".join(f"printf 'Letter {i}. The hearth is warm, loaf {i} is in the oven.' > /srv/docs/in/letter{i:02}.txt;" for i in range(DOCUMENTS))
        world.sh(self.gateway, f"mkdir -p /srv/docs/in; {texts} chown -R inglenook-gateway: /srv/docs")
        self.state = pathlib.Path(tempfile.mkdtemp(prefix="load-", dir=world.work))
        names = ",".join(f"{NET}.{10 + number}" for number in world.coordinators)
        command = [HERE / "guests.sh", "run", CACHE / "ansible/bin/python", HERE / "load.py", "--cluster", names,
                   "--pki", world.inventory / "pki", "--ingle", world.program(), "--state", self.state]  # fmt: skip
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=world.env, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        world.children.append(self.process)
        try:
            eventually("the load: each kind of work done once", 600, lambda: (self.state / "begun").exists() or self.process.poll() is not None)
        except Failed as late:
            raise Failed(f"{late}; it says: {self.end()[-3000:]}") from None
        return self

    def end(self) -> str:
        try:
            printed, errors = self.process.communicate(timeout=400)
        except subprocess.TimeoutExpired:
            # With what it has started: nobody else would end that.
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise Failed("the load doesn't end") from None
        if not printed.strip():
            raise Failed(f"the load said nothing: {errors[-1500:]}")
        return printed.strip().splitlines()[-1]

    def __exit__(self, kind, *_):
        if kind is not None and not issubclass(kind, Exception):
            return  # The run itself is to end; it takes the load along.
        if kind is not None:
            try:
                self.end()
            except Failed as late:
                print(f"and {late}", flush=True)  # What went wrong first is what is told last.
            return
        said = json.loads(self.end())
        done = ", ".join(f"{count} {what}" for what, count in said["done"].items())
        wrong = {how: said[how] for how in ("failed", "broken", "lost", "doubled") if said[how]}
        self.told = f"{done}; 0 failed, broken, lost or doubled; slowest {said['slowest_s']}"
        if wrong:
            words = "\n".join(f"  {how}: {len(what)}\n    " + "\n    ".join(what[:12]) for how, what in wrong.items())
            raise Failed(f"under load ({done}):\n{words}")
        # Each visible result once: a text and its account per document, and nothing beside them.
        expected = sorted(f"./letter{i:02}.txt.{what}" for i in range(DOCUMENTS) for what in ("txt", "json"))
        for output in (self.state / "outputs").read_text().split():
            found = sorted(self.world.sh(self.gateway, f"cd /srv/docs/{output} && find . -type f -not -path './.inglenook/*'").split())
            if found != expected:
                raise Failed(f"{output}: visible are {found}")
