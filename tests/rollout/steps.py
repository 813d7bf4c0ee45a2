"""What is done to the hosts, one function per step; each answers in words what it saw, or raises `Failed`."""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile

from world import CACHE, ROOT, Failed, Load, World, eventually

OFFICE = {"hall": 1, "attic": 2, "cellar": 3}


def expect(truth: bool, words: str) -> None:
    if not truth:
        raise Failed(words)


def office(world: World) -> None:
    """The small office stands; made if it doesn't."""
    if world.inventory is None or world.inventory.name != "office" or world.guests == 0:
        site(world)
    world.use("office", OFFICE)


def lint(_: World) -> str:
    """ansible-lint at its strictest profile, and the syntax of every playbook."""
    env = {**os.environ, "PATH": f"{CACHE}/ansible/bin:{os.environ['PATH']}", "ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg"), "PYTHONWARNINGS": "ignore"}
    ran = subprocess.run([CACHE / "ansible/bin/ansible-lint", "--offline", "--profile", "production", "--strict", "--nocolor", "-q"],
                         cwd=ROOT / "ansible", env=env, capture_output=True, text=True)  # fmt: skip
    expect(ran.returncode == 0, f"ansible-lint: exit {ran.returncode}\n{ran.stdout[-6000:]}{ran.stderr[-2000:]}")
    return "ansible-lint at the production profile has nothing to say"


def site(world: World) -> str:
    """Three bare hosts become a small office; before that, --check --diff says so and touches nothing."""
    world.up(4, fresh=True)
    shutil.rmtree(world.work / "office", ignore_errors=True)
    world.use("office", OFFICE)
    world.coordinators = [1, 2, 3]
    checked = world.recap(world.play("site.yml", "--check", "--diff"))
    expect(all(host["changed"] > 5 for host in checked.values()), f"--check on bare hosts shows little: {checked}")
    left = world.sh(1, "ls -d /etc/inglenook /var/lib/inglenook /etc/default/etcd 2>/dev/null || true").strip()
    expect(not left and not (world.inventory / "pki").exists(), f"--check left {left or 'an authority'}")
    done = world.recap(world.play("site.yml"))
    expect(len(done) == 3, f"{done}")
    expect(world.nodes() == {"hall": "ready", "attic": "ready", "cellar": "ready"}, f"nodes: {world.nodes()}")
    plain = world.sh(2, "ingle --coordinator http://10.88.0.11:7700 status 2>&1 || true")
    expect("version" not in plain, f"a coordinator answers in plaintext: {plain}")
    mode = world.sh(1, "stat -c %a:%U:%G /etc/inglenook/tls/key.pem").strip()
    expect(mode == "640:root:inglenook", f"the host's key is {mode}")
    return "three bare hosts are a cluster with etcd, over mTLS; --check --diff touched nothing"


def again(world: World) -> str:
    """A second run changes nothing, nor does a third under --check."""
    office(world)
    for arguments in ((), ("--check", "--diff")):
        counts = world.recap(world.play("site.yml", *arguments))
        expect(all(host["changed"] == 0 for host in counts.values()), f"changed by a second run {arguments}: {counts}")
    return "a second run changed nothing"


def cut(world: World) -> str:
    """A host that can't be reached stops nobody else, and the next run takes it in."""
    office(world)
    world.guest("cut", "2")
    try:
        counts = world.recap(world.play("site.yml", "-e", "observability_retention=31d", fails=True))
    finally:
        world.guest("heal", "2")
    expect(counts["attic"]["unreachable"] == 1, f"attic was reached: {counts}")
    expect(all(counts[host]["failed"] == 0 and counts[host]["ok"] > 20 for host in ("hall", "cellar")), f"the others: {counts}")
    eventually("attic's node is back", 60, lambda: world.nodes().get("attic") == "ready")
    world.play("site.yml")
    return "one host of three away: the others were done, and the next run took it in"


def alert(world: World) -> str:
    """An alert fires for real while a coordinator is down, and ends."""
    office(world)
    ask = "python3 -c \"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9090/api/v1/%s').read().decode())\""

    def firing() -> set[str]:
        alerts = json.loads(world.sh(3, ask % "alerts"))["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing" and alert["labels"].get("host") == "attic"}

    targets = json.loads(world.sh(3, ask % "targets"))["data"]["activeTargets"]
    away = [(target["labels"], target["lastError"]) for target in targets if target["health"] == "down"]
    expect(len(targets) == 10 and not away, f"{len(targets)} targets of 10, away: {away}")
    world.sh(2, "systemctl stop ingle-coordinator")
    try:
        fired = eventually("an alert for attic", 420, firing)
    finally:
        world.sh(2, "systemctl start ingle-coordinator")
    eventually("the alert ends", 120, lambda: not firing())
    return f"{', '.join(fired)} fired over mTLS and ended"


def renew(world: World) -> str:
    """Certificates near their end are renewed by a run of site.yml, with the keys that are there."""
    office(world)
    look = "openssl x509 -in /etc/inglenook/tls/cert.pem -noout -serial; sha256sum < /etc/inglenook/tls/key.pem"
    before = [world.sh(number, look).split() for number in (1, 2, 3)]
    with Load(world, gateway=1) as load:
        world.play("site.yml", "-e", "inglenook_cert_renew_days=398")
    after = [world.sh(number, look).split() for number in (1, 2, 3)]
    expect(all(old[0] != new[0] and old[1] == new[1] for old, new in zip(before, after)), f"{before} {after}")
    return f"each host has a new certificate for its key; {load.told}"


def upgrade(world: World) -> str:
    """All hosts go to b while people are at work."""
    office(world)
    with Load(world, gateway=1) as load:
        world.play("upgrade.yml", packages="b")
    found = [world.installed(number) for number in (1, 2, 3)]
    expect(all(set(packages.values()) == {world.version("b")} for packages in found), f"installed: {found}")
    expect(set(world.nodes().values()) == {"ready"}, f"nodes: {world.nodes()}")
    counts = world.recap(world.play("upgrade.yml", packages="b"))
    expect(all(host["changed"] == 0 for host in counts.values()), f"a second upgrade changed: {counts}")
    return load.told


def bad(world: World) -> str:
    """A release whose daemons end at once stops at the first host, which goes back."""
    office(world)
    before = [world.installed(number) for number in (1, 2, 3)]
    with Load(world, gateway=1) as load:
        printed = world.play("upgrade.yml", "-e", "inglenook_gate_s=10", packages="c", fails=True)
    expect("rolled back" in printed, "nothing says that it was rolled back")
    after = [world.installed(number) for number in (1, 2, 3)]
    expect(before == after, f"installed before {before}, after {after}")
    counts = world.recap(printed)
    expect(counts["attic"]["changed"] == 0 and counts["cellar"]["changed"] == 0, f"others were touched: {counts}")
    eventually("all nodes are ready", 60, lambda: set(world.nodes().values()) == {"ready"})
    return f"the first host went back to {next(iter(after[0].values()))}, the others weren't touched; {load.told}"


def present(world: World) -> str:
    """Which packages the cluster has now: what a new host gets."""
    return "b" if world.version("b") in world.installed(1).values() else "a"


def swap(world: World) -> str:
    """A fourth machine takes the place of one of the three."""
    office(world)
    packages = present(world)
    world.use("office", {**OFFICE, "shed": 4}, more={"nodes": {"hosts": {"shed": {}}}})
    with Load(world, gateway=1) as load:
        world.play("swap-node.yml", "-e", "old=attic", "-e", "new=shed", packages=packages)
    nodes = world.nodes()
    expect(nodes.get("shed") == "ready" and nodes.get("attic", "gone") in ("gone", "drained", "lost"), f"nodes: {nodes}")
    expect(world.sh(2, "systemctl is-active ingle-node || true").strip() == "inactive", "the old node runs on")
    return f"shed works in attic's place; {load.told}"


def add(world: World) -> str:
    """A node joins; after a swap it is the one that left."""
    office(world)
    name, number = ("attic", 2) if world.sh(2, "systemctl is-active ingle-node || true").strip() != "active" else ("shed", 4)
    world.use("office", {**OFFICE, "shed": 4}, more={"nodes": {"hosts": {"shed": {}}}})
    world.play("add-node.yml", "-e", f"node={name}", packages=present(world))
    expect(world.nodes().get(name) == "ready", f"nodes: {world.nodes()}")
    return f"{name} joined on guest {number} and computes"


def restore(world: World) -> str:
    """Backup; not over a living cluster; wipe; restore: jobs and certificates are back."""
    office(world)
    packages = present(world)
    with Load(world, gateway=1):
        pass
    key = "sha256sum /etc/inglenook/tls/key.pem /etc/inglenook/tls/cert.pem /etc/inglenook/tls/ca.pem"
    jobs = {job["job_id"]: job["state"] for job in world.ingle("jobs", "list")["jobs"]}
    keys = [world.sh(number, key) for number in (1, 2, 3)]
    nodes = {node["name"]: node["node_id"] for node in world.ingle("nodes", "list")["nodes"] if node["state"] == "ready"}
    world.play("backup.yml", packages=packages)
    (backup,) = (world.inventory / "backups").iterdir()
    refused = world.play("restore.yml", "-e", f"backup={backup}", packages=packages, fails=True)
    expect("there is a cluster" in refused, "a living cluster was not refused for being one")
    expect(set(world.nodes().values()) >= {"ready"}, "the refusal cost nodes")
    world.play("uninstall.yml", "-e", "uninstall_confirm=yes", "-e", "uninstall_state=true", packages=packages)
    shutil.rmtree(world.inventory / "pki")
    expect(not world.sh(1, "ls -d /var/lib/inglenook /etc/inglenook 2>/dev/null || true").strip(), "the wipe left state")
    world.play("restore.yml", "-e", f"backup={backup}", packages=packages)
    back = {job["job_id"]: job["state"] for job in world.ingle("jobs", "list")["jobs"]}
    expect(jobs and back == jobs, f"jobs before {jobs}, after {back}")
    expect(keys == [world.sh(number, key) for number in (1, 2, 3)], "keys or certificates differ")
    found = {node["name"]: node["node_id"] for node in world.ingle("nodes", "list")["nodes"]}
    expect(all(found.get(name) == nodes[name] for name in OFFICE if name in nodes), f"nodes before {nodes}, after {found}")
    (backup / "hall.tar.gz").write_bytes(b"torn")
    torn = world.play("restore.yml", "-e", f"backup={backup}", "-e", "restore_over=true", packages=packages, fails=True)
    expect("hall.tar.gz" in torn and set(world.nodes().values()) >= {"ready"}, "a torn backup wasn't refused before anything was touched")
    return f"{len(jobs)} jobs, 3 keys and {len(nodes)} nodes are back after a wipe; a living cluster and a torn backup were refused"


def uninstall(world: World) -> str:
    """Nothing of it runs or is installed afterwards; without a yes nothing happens."""
    office(world)
    world.play("uninstall.yml", fails=True)
    expect(world.installed(1) != {}, "uninstalled without a yes")
    world.play("uninstall.yml", "-e", "uninstall_confirm=yes", "-e", "uninstall_state=true")
    for number in (1, 2, 3):
        expect(world.installed(number) == {}, f"left: {world.installed(number)}")
        expect(not world.sh(number, "pgrep -l ingle || true").strip(), "something still runs")
    world.inventory = None
    return "no package, process or state is left"


def box(world: World) -> str:
    """One machine does everything, without TLS; twice."""
    world.up(1, fresh=True)
    world.use("one-box", {"box": 1})
    world.play("site.yml")
    counts = world.recap(world.play("site.yml"))
    expect(counts["box"]["changed"] == 0, f"a second run changed: {counts}")
    vectors = json.loads(world.sh(1, "ingle embed --json 'good morning' --model model"))
    expect(len(vectors["embeddings"]) == 1, f"{vectors}"[:400])
    world.play("upgrade.yml", packages="b")
    expect(set(world.installed(1).values()) == {world.version("b")}, f"{world.installed(1)}")
    return "one box computes, a second run changes nothing, and it is upgraded"


def home(world: World) -> str:
    """One that coordinates and two that compute, without etcd."""
    world.up(3, fresh=True)
    world.use("home", {"box": 1, "mini1": 2, "mini2": 3})
    world.coordinators = [1]
    world.play("site.yml")
    counts = world.recap(world.play("site.yml"))
    expect(all(host["changed"] == 0 for host in counts.values()), f"a second run changed: {counts}")
    expect(world.nodes() == {"mini1": "ready", "mini2": "ready"}, f"nodes: {world.nodes()}")
    world.ingle("submit", "embed", "text:good morning", "--output", "nas://docs/kept", "--wait")
    world.play("backup.yml")
    (backup,) = (world.inventory / "backups").iterdir()
    world.play("uninstall.yml", "-e", "uninstall_confirm=yes", "-e", "uninstall_state=true")
    world.play("restore.yml", "-e", f"backup={backup}")
    jobs = world.ingle("jobs", "list")["jobs"]
    expect([job["state"] for job in jobs] == ["succeeded"], f"jobs after a restore: {jobs}")
    return "three hosts without etcd compute; their jobs come back from a backup"


def archive(world: World) -> str:
    """etcd from an archive that was given, and only if it is the one that was meant."""
    world.up(3, fresh=True)
    place = world.work / "etcd"
    for deb in world.mirror.glob("etcd-*.deb"):
        subprocess.run(["dpkg-deb", "-x", deb, place], check=True)
    file = world.work / "etcd-v3-linux-amd64.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        for program in ("etcd", "etcdctl"):
            tar.add(place / "usr/bin" / program, f"etcd-v3-linux-amd64/{program}")
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    shutil.rmtree(world.work / "office", ignore_errors=True)
    wrong = {"etcd_install": "archive", "etcd_archive": str(file), "etcd_archive_checksum": "0" * 64}
    world.use("office", OFFICE, wrong)
    world.coordinators = [1, 2, 3]
    refused = world.play("site.yml", fails=True)
    expect(checksum in refused, "the refusal doesn't name the checksum that was found")
    world.use("office", OFFICE, {**wrong, "etcd_archive_checksum": checksum})
    world.play("site.yml")
    counts = world.recap(world.play("site.yml"))
    expect(all(host["changed"] == 0 for host in counts.values()), f"a second run changed: {counts}")
    expect("/opt/etcd-" in world.sh(1, "readlink -f /usr/local/bin/etcd"), "etcd is another one")
    return "etcd from an archive; one with another checksum was refused"


def five(world: World) -> str:
    """Five hosts with roles apart: three etcd members and coordinators, a gateway, two nodes."""
    world.up(5, fresh=True)
    names = [f"five{number}" for number in range(1, 6)]

    def group(*numbers: int) -> dict:
        return {"hosts": {names[number - 1]: {} for number in numbers}}

    groups = {"etcd": group(1, 2, 3), "coordinators": group(1, 2, 3), "gateways": group(4), "nodes": group(4, 5), "observability": group(5)}
    world.use("five", {name: number for number, name in enumerate(names, 1)}, {"node_models": "nas://models/"}, more=groups)
    world.coordinators = [1, 2, 3]
    world.play("site.yml")
    counts = world.recap(world.play("site.yml"))
    expect(all(host["changed"] == 0 for host in counts.values()), f"a second run changed: {counts}")
    with Load(world, gateway=4) as load:
        world.play("upgrade.yml", packages="b")
    return f"five hosts; {load.told}"
