#!/usr/bin/env python3
"""Writes the dashboards in deploy/grafana/dashboards from the descriptions below, so that all of them look and work alike.

generate.py                 writes them
generate.py --check         says which differ from what it would write, and ends with 1 if any does
generate.py --rules         prints every expression as a recording rule, for `promtool check rules`

A panel is a question, and what answers it. Sizes are in Grafana's columns, of which a row has 24.
"""
import json
import pathlib
import re
import sys

FOLDER = pathlib.Path(__file__).resolve().parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Ready, then trouble.
GREEN, AMBER, RED = "green", "orange", "red"


def steps(*marks, start=GREEN):
    """Colours from values on."""
    return {"mode": "absolute", "steps": [{"color": start, "value": None}] + [{"color": c, "value": v} for v, c in marks]}


def panel(kind, title, *targets, unit="short", width=8, height=7, about="", marks=None, low=0, stack=False, decimals=None):
    return dict(kind=kind, title=title, targets=targets, unit=unit, width=width, height=height, about=about, marks=marks,
                low=low, stack=stack, decimals=decimals)


def stat(title, expression, **more):
    more.setdefault("width", 4)
    more.setdefault("height", 4)
    return panel("stat", title, (expression, ""), **more)


def lines(title, *targets, **more):
    return panel("timeseries", title, *targets, **more)


def bars(title, *targets, **more):
    return panel("bargauge", title, *targets, **more)


def quantiles(metric, where="", by=""):
    """Median and the slowest twentieth of a histogram."""
    keep = f"le, {by}" if by else "le"
    name = "{{" + by + "}} " if by else ""
    return [(f"histogram_quantile({q}, sum by ({keep}) (rate({metric}_bucket{where}[$__rate_interval])))", f"{name}{said}")
            for q, said in ((0.5, "half are faster"), (0.95, "19 of 20 are faster"))]


def rate(metric, where="", by="", said=None):
    inner = f"rate({metric}{where}[$__rate_interval])"
    return (f"sum by ({by}) ({inner})" if by else f"sum({inner})", said if said is not None else ("{{" + by + "}}" if by else ""))


NODE = '{instance=~"$instance"}'


def on_node(more=""):
    return '{instance=~"$instance"' + (", " + more if more else "") + "}"


HOUSE = ("ingle-house", "House", "Is all well, what is going on, and when is my job done", [], [
    stat("Is every daemon up?", 'min(up{job=~"ingle-.*"})', marks=steps((1, GREEN), start=RED), about="1: all of them answer Prometheus."),
    stat("Does one coordinator lead?", "sum(ingle_coordinator_leading)", marks=steps((1, GREEN), (2, RED), start=RED),
         about="Exactly one should."),
    stat("How many nodes take work?", "max(ingle_coordinator_nodes_ready)", marks=steps((1, GREEN), start=RED)),
    stat("Does the NAS answer?", "min(ingle_gateway_export_available)", marks=steps((1, GREEN), start=RED),
         about="0: the last call to one of the exports failed."),
    stat("When is everything done?", "max(ingle_coordinator_jobs_eta_seconds)", unit="s",
         about="By the pace of the last minute; 0 if nothing runs, or nothing is known yet."),
    stat("How long has the oldest work waited?", "max(ingle_coordinator_queue_age_seconds)", unit="s",
         marks=steps((120, AMBER), (900, RED))),
    lines("What are jobs' documents doing?", ("max by (state) (ingle_coordinator_items)", "{{state}}"), stack=True, width=12,
          about="Documents of open jobs: queued, on a node, computed, visible, and set aside."),
    lines("How many answers are on their way to people?",
          ("sum(ingle_coordinator_calls_running)", "running"), ("sum(ingle_coordinator_calls_waiting)", "waiting"), width=12),
    lines("How much is read and written by models?", rate("ingle_node_tokens_read_total", said="tokens read"),
          rate("ingle_node_tokens_written_total", said="tokens written"), unit="cps", about="Tokens per second, all nodes."),
    lines("How many pages and passages are done?", rate("ingle_node_pages_total", said="pages"),
          rate("ingle_node_passages_total", said="passages"), unit="cps"),
    lines("How soon do people see the first word?", *quantiles("ingle_node_time_to_first_token_seconds"), unit="s"),
    lines("How warm is each machine?", ('max by (instance) (ingle_node_temperature_celsius{kind=~"cpu|gpu"})', "{{instance}}"),
          unit="celsius", marks=steps((80, AMBER), (95, RED))),
    lines("How much power do the machines draw?", ("sum by (instance) (ingle_node_power_watts)", "{{instance}}"), unit="watt", stack=True),
    lines("What went wrong lately?", ("sum(increase(ingle_coordinator_retries_total[5m]))", "work tried again"),
          ("sum(increase(ingle_coordinator_items_set_aside_total[5m]))", "documents set aside"),
          ('sum(increase(ingle_gateway_nas_calls_total{outcome=~"unavailable|refused"}[5m]))', "NAS calls failed"),
          ("sum(increase(ingle_node_model_restarts_total[5m]))", "models restarted"), about="In the last five minutes."),
])

NODE_BOARD = ("ingle-node", "Node", "One machine: load, memory, heat, power, models", [("instance", "Node", "ingle_node_slots")], [
    stat("How many attempts does it run?", f"sum(ingle_node_attempts_running{NODE})"),
    stat("How full are its models?", f"sum(ingle_node_requests_in_models{NODE}) / (sum(ingle_node_slots{NODE}) > 0)",
         unit="percentunit", about="Requests in models of those that fit in at once."),
    stat("How much memory is left?", f"sum(ingle_node_memory_available_bytes{NODE}) / sum(ingle_node_memory_total_bytes{NODE})",
         unit="percentunit", marks=steps((0.05, AMBER), (0.15, GREEN), start=RED)),
    stat("Does heat slow it down?", f"max(ingle_node_throttled{NODE})", marks=steps((1, RED)), about="1: yes."),
    stat("How hot is it?", "max(ingle_node_temperature_celsius" + on_node('kind=~"cpu|gpu"') + ")", unit="celsius",
         marks=steps((80, AMBER), (95, RED))),
    stat("How much power does it draw?", f"sum(ingle_node_power_watts{NODE})", unit="watt"),
    lines("How busy are its models?", rate("ingle_node_engine_step_seconds_sum", NODE, "instance"), unit="percentunit",
          about="Seconds of engine steps per second: 1 is one model at work without a pause."),
    lines("How many requests share a step?",
          (f"sum by (instance) (rate(ingle_node_engine_step_requests_sum{NODE}[$__rate_interval])) / "
           f"sum by (instance) (rate(ingle_node_engine_step_requests_count{NODE}[$__rate_interval]))", "{{instance}}")),
    lines("How much memory do models take?", (f"sum by (instance) (ingle_node_model_bytes{NODE})", "{{instance}} models"),
          (f"sum by (instance) (ingle_node_kv_cache_used_bytes{NODE})", "{{instance}} KV cache in use"), unit="bytes"),
    lines("What does work wait for?", (f"max by (resource) (ingle_node_pressure_ratio{on_node('kind=' + chr(34) + 'some' + chr(34))})",
                                       "{{resource}}"), unit="percentunit", about="Pressure stall information: the share of time."),
    lines("Is it swapping?", (f"sum by (instance) (ingle_node_swap_used_bytes{NODE})", "{{instance}} swap in use"), unit="bytes"),
    lines("How hot are its parts?", (f"max by (kind) (ingle_node_temperature_celsius{NODE})", "{{kind}}"), unit="celsius"),
    lines("Where does its power go?", (f"sum by (source) (ingle_node_power_watts{NODE})", "{{source}}"), unit="watt", stack=True),
    lines("What do a token and a page cost?",
          (f"sum(rate(ingle_node_energy_joules_total{NODE}[$__rate_interval])) / "
           f"(sum(rate(ingle_node_tokens_written_total{NODE}[$__rate_interval])) > 0)", "joules per token"),
          (f"sum(rate(ingle_node_energy_joules_total{NODE}[$__rate_interval])) / "
           f"(sum(rate(ingle_node_pages_total{NODE}[$__rate_interval])) > 0)", "joules per page"), unit="joule",
          about="All energy of the machine by what it made; a machine that does both is counted in both."),
    lines("How do its attempts end?", rate("ingle_node_attempts_total", NODE, "outcome"), unit="cps", stack=True),
    lines("How long does a model take to load?", *quantiles("ingle_node_model_load_seconds", NODE), unit="s"),
    lines("How much does it read and stage?", rate("ingle_node_read_bytes_total", NODE, said="read"),
          rate("ingle_node_staged_bytes_total", NODE, said="staged"), unit="Bps"),
])

JOBS = ("ingle-jobs", "Jobs", "A job's life, from the queue to what is visible", [], [
    stat("How many jobs are open?", 'sum(ingle_coordinator_jobs{state!~"SUCCEEDED|FAILED|CANCELLED"})'),
    stat("How many have failed?", 'sum(ingle_coordinator_jobs{state="FAILED"})', marks=steps((1, AMBER))),
    stat("How many documents wait?", "max(ingle_coordinator_items_queued)"),
    stat("How many are on nodes?", "max(ingle_coordinator_items_running)"),
    stat("How long has the oldest work waited?", "max(ingle_coordinator_queue_age_seconds)", unit="s",
         marks=steps((120, AMBER), (900, RED))),
    stat("When is the last one done?", "max(ingle_coordinator_jobs_eta_seconds)", unit="s"),
    lines("In which state are jobs?", ("max by (state) (ingle_coordinator_jobs)", "{{state}}"), stack=True, width=12),
    lines("In which state are their documents?", ("max by (state) (ingle_coordinator_items)", "{{state}}"), stack=True, width=12),
    lines("Why do jobs stand still?", ("max by (code) (ingle_coordinator_jobs_held)", "{{code}}"),
          about="Open jobs that can't go on, by error code; empty when all go on."),
    lines("Why were documents set aside?", ("sum by (code) (increase(ingle_coordinator_items_set_aside_total[5m]))", "{{code}}")),
    lines("What is tried again?", ("sum by (reason) (increase(ingle_coordinator_retries_total[5m]))", "{{reason}}"),
          about="Free: nobody's fault. Halved: to find the document at fault. Charged: it failed alone."),
    lines("How do attempts end?", rate("ingle_coordinator_attempts_total", '', "outcome"), unit="cps", stack=True),
    lines("How well is time predicted?",
          ("sum by (kind) (rate(ingle_coordinator_attempt_seconds_sum[$__rate_interval])) / "
           "(sum by (kind) (rate(ingle_coordinator_attempt_expected_seconds_sum[$__rate_interval])) > 0)", "{{kind}}"),
          about="Actual by expected time of attempts: 1 is right, 2 took twice as long."),
    lines("How long do attempts take?", *quantiles("ingle_coordinator_attempt_seconds", by="kind"), unit="s"),
    lines("Where is work placed?", rate("ingle_coordinator_placements_total", '', "weights"), unit="cps",
          about="Held: on a node that has the model in memory."),
    lines("What becomes of results?", rate("ingle_gateway_publishes_total", '', "outcome"), unit="cps", stack=True),
    lines("What do looks at folders find?", rate("ingle_gateway_scan_entries_total", '', "action"), unit="cps", stack=True),
])

LLM = ("ingle-llm", "LLM", "Latencies, throughput and batching of language models and encoders", [("instance", "Node", "ingle_node_slots")], [
    stat("How soon comes the first word?",
         f"histogram_quantile(0.5, sum by (le) (rate(ingle_node_time_to_first_token_seconds_bucket{NODE}[5m])))", unit="s", width=6),
    stat("How fast do answers flow?",
         f"sum(rate(ingle_node_inter_token_seconds_count{NODE}[5m])) / (sum(rate(ingle_node_inter_token_seconds_sum{NODE}[5m])) > 0)",
         unit="cps", width=6, about="Tokens per second of one answer, on the average."),
    stat("How many tokens are written?", f"sum(rate(ingle_node_tokens_written_total{NODE}[5m]))", unit="cps", width=6),
    stat("Who waits for a slot?", f"sum(ingle_node_requests_waiting{NODE})", width=6, marks=steps((1, AMBER), (16, RED))),
    lines("How is time to first token spread?", *quantiles("ingle_node_time_to_first_token_seconds", NODE), unit="s", width=12),
    lines("How long is it between two tokens?", *quantiles("ingle_node_inter_token_seconds", NODE), unit="s", width=12),
    lines("How many tokens go in and out?", rate("ingle_node_tokens_read_total", NODE, said="read"),
          rate("ingle_node_tokens_written_total", NODE, said="written"), unit="cps"),
    lines("How full are batches?",
          (f"sum(rate(ingle_node_engine_step_requests_sum{NODE}[$__rate_interval])) / "
           f"sum(rate(ingle_node_engine_step_requests_count{NODE}[$__rate_interval]))", "requests in a step"),
          about="Requests that share a step of the engine."),
    lines("How long is a step?", *quantiles("ingle_node_engine_step_seconds", NODE), unit="s",
          about="Between two steps a person's request gets in: about 20 ms is aimed at."),
    lines("How much of the KV cache is used?", (f"sum(ingle_node_kv_cache_used_bytes{NODE})", "in use"),
          (f"sum(ingle_node_kv_cache_reserved_bytes{NODE})", "set aside"), unit="bytes"),
    lines("How many requests are in models?", (f"sum(ingle_node_requests_in_models{NODE})", "in models"),
          (f"sum(ingle_node_slots{NODE})", "slots"), (f"sum(ingle_node_requests_waiting{NODE})", "waiting")),
    lines("How many passages are embedded?", rate("ingle_node_passages_total", NODE, "instance"), unit="cps"),
    lines("How many models are loaded, and how much of them?", rate("ingle_node_model_loaded_bytes_total", NODE, said="weights"), unit="Bps"),
    lines("Do models fail?", (f"sum by (instance) (increase(ingle_node_model_restarts_total{NODE}[5m]))", "{{instance}}")),
    lines("What does a token cost?",
          (f"sum(rate(ingle_node_energy_joules_total{NODE}[$__rate_interval])) / "
           f"(sum(rate(ingle_node_tokens_written_total{NODE}[$__rate_interval])) > 0)", "joules per token written"), unit="joule"),
])

STORAGE = ("ingle-storage", "Storage", "The NAS and what stands before it", [("export", "Export", "ingle_gateway_nas_calls_total")], [
    stat("Does every export answer?", 'min(ingle_gateway_export_available{export=~"$export"})', marks=steps((1, GREEN), start=RED)),
    stat("How many calls fail?", 'sum(rate(ingle_gateway_nas_calls_total{export=~"$export", outcome=~"unavailable|refused"}[5m])) or '
         'sum(rate(ingle_gateway_nas_calls_total{export=~"$export"}[5m])) * 0', unit="cps", marks=steps((0.01, AMBER), (0.1, RED))),
    stat("How much comes from the cache?",
         'sum(rate(ingle_gateway_cache_pieces_total{found!="none"}[5m])) / (sum(rate(ingle_gateway_cache_pieces_total[5m])) > 0)',
         unit="percentunit"),
    stat("How many reads are open?", 'sum(ingle_gateway_reads_in_flight{export=~"$export"})'),
    stat("How often was a handle stale?", "sum(increase(ingle_gateway_nas_stale_handles_total[1h]))", marks=steps((10, AMBER)),
         about="In the last hour. Some are normal where files are replaced."),
    stat("Is the cache's disk sound?", "sum(ingle_gateway_cache_damaged_pieces_total)", marks=steps((1, RED)),
         about="Pieces that failed their checksum since the gateway started; they were read again."),
    lines("How many calls does the NAS get?", rate("ingle_gateway_nas_calls_total", '{export=~"$export"}', "call"), unit="cps", stack=True, width=12),
    lines("How do calls end?", rate("ingle_gateway_nas_calls_total", '{export=~"$export"}', "outcome"), unit="cps", stack=True, width=12),
    lines("How fast does the NAS answer?",
          ("histogram_quantile(0.95, sum by (le, call) (rate(ingle_gateway_nas_call_seconds_bucket[$__rate_interval])))", "{{call}}"),
          unit="s", about="19 of 20 calls are faster, by kind of call."),
    lines("How much is read from the NAS?", rate("ingle_gateway_read_bytes_total", '{export=~"$export"}', "export"), unit="Bps"),
    lines("How much is written to it?", rate("ingle_gateway_written_bytes_total", "", "export"), unit="Bps"),
    lines("Where are pieces found?", rate("ingle_gateway_cache_pieces_total", "", "found"), unit="cps", stack=True),
    lines("What becomes of results?", rate("ingle_gateway_publishes_total", "", "outcome"), unit="cps", stack=True),
    lines("How often do nodes ask again?", rate("ingle_node_storage_retries_total", "", "instance"), unit="cps"),
])

CLUSTER = ("ingle-cluster", "Cluster", "Leaders, epochs, nodes, the job store and certificates", [], [
    stat("Does one coordinator lead?", "sum(ingle_coordinator_leading)", marks=steps((1, GREEN), (2, RED), start=RED)),
    stat("How many coordinators are there?", 'sum(up{job="ingle-coordinator"})', marks=steps((1, GREEN), start=RED)),
    stat("How many nodes are members?", "max(ingle_coordinator_nodes)"),
    stat("How many of them take work?", "max(ingle_coordinator_nodes_ready)"),
    stat("What is kept from work after failures?", "max(ingle_coordinator_breakers_open)", marks=steps((1, AMBER))),
    stat("When does the first certificate end?", "min(ingle_certificate_expiry_timestamp_seconds) - time()", unit="s",
         marks=steps((7 * 86400, AMBER), (30 * 86400, GREEN), start=RED)),
    lines("Who leads?", ("ingle_coordinator_leading", "{{instance}}"), stack=True, width=12),
    lines("In which epoch?", ("max(ingle_coordinator_epoch_revision)", "revision"), ("max(ingle_coordinator_epoch_generation)", "generation"),
          width=12, about="Both only grow; a new leader has a greater one."),
    lines("How often does the leader change?", ("sum(increase(ingle_coordinator_leader_changes_total[1h]))", "changes"),
          about="As the coordinators that follow see it, in the last hour."),
    lines("How fast is the job store?", *quantiles("ingle_coordinator_store_write_seconds"), unit="s",
          about="One durable write: an fsync on disk, a quorum in etcd."),
    lines("Does the store refuse?", ("sum by (reason) (increase(ingle_coordinator_store_refusals_total[5m]))", "{{reason}}")),
    lines("How full is etcd?", ("max(etcd_mvcc_db_total_size_in_bytes) / max(etcd_server_quota_backend_bytes)", "of its quota"),
          unit="percentunit"),
    lines("Does etcd have a leader?", ("min by (instance) (etcd_server_has_leader)", "{{instance}}")),
    lines("How much does the core decide?", rate("ingle_coordinator_events_total", said="events"), unit="cps"),
    lines("Which versions run?", ('count by (version) (ingle_build_info)', "{{version}}"), stack=True,
          about="Two of them during an upgrade, one otherwise."),
    lines("Since when do daemons run?", ('time() - max by (job, instance) (ingle_start_time_seconds)', "{{job}} {{instance}}"), unit="s"),
])

ALL = [HOUSE, NODE_BOARD, JOBS, LLM, STORAGE, CLUSTER]


def drawn(one, number, x, y):
    """A panel as Grafana has it."""
    targets = []
    for index, (expression, said) in enumerate(one["targets"]):
        targets.append({"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expression, "legendFormat": said or "__auto"})
    fields = {"unit": one["unit"], "min": one["low"]}
    if one["marks"]:
        fields["thresholds"] = one["marks"]
        fields["color"] = {"mode": "thresholds" if one["kind"] == "stat" else "palette-classic"}
    if one["kind"] == "timeseries":
        fields["custom"] = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 25 if one["stack"] else 8, "showPoints": "never",
                            "stacking": {"mode": "normal" if one["stack"] else "none", "group": "A"}}
    out = {"id": number, "type": one["kind"], "title": one["title"], "datasource": SOURCE,
           "gridPos": {"h": one["height"], "w": one["width"], "x": x, "y": y},
           "fieldConfig": {"defaults": fields, "overrides": []}, "targets": targets}
    if one["about"]:
        out["description"] = one["about"]
    if one["kind"] == "stat":
        out["options"] = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "graphMode": "area",
                          "colorMode": "value", "textMode": "auto"}
    else:
        out["options"] = {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                          "tooltip": {"mode": "multi", "sort": "desc"}}
    return out


def dashboard(uid, title, about, variables, panels):
    drawings, x, y, tallest = [], 0, 0, 0
    for number, one in enumerate(panels, 1):
        if x + one["width"] > 24:
            x, y, tallest = 0, y + tallest, 0
        drawings.append(drawn(one, number, x, y))
        x, tallest = x + one["width"], max(tallest, one["height"])
    lists = [{"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0}]
    for name, label, metric in variables:
        query = f"label_values({metric}, {name})"
        lists.append({"name": name, "label": label, "type": "query", "datasource": SOURCE, "query": {"query": query, "refId": name},
                      "definition": query, "includeAll": True, "multi": True, "allValue": ".*", "refresh": 2, "sort": 1, "hide": 0,
                      "current": {"selected": True, "text": ["All"], "value": ["$__all"]}})
    links = [{"title": other[1], "type": "link", "url": f"/d/{other[0]}", "icon": "dashboard", "tooltip": other[2], "tags": [],
              "asDropdown": False, "targetBlank": False, "includeVars": False, "keepTime": True} for other in ALL if other[0] != uid]
    return {"uid": uid, "title": f"Inglenook: {title}", "description": about, "tags": ["inglenook"], "schemaVersion": 41, "version": 1,
            "editable": False, "graphTooltip": 1, "refresh": "10s", "timezone": "browser", "time": {"from": "now-1h", "to": "now"},
            "templating": {"list": lists}, "annotations": {"list": []}, "links": links, "panels": drawings}


def files():
    for uid, title, about, variables, panels in ALL:
        text = json.dumps(dashboard(uid, title, about, variables, panels), indent=1, ensure_ascii=False) + "\n"
        yield FOLDER / f"{uid.removeprefix('ingle-')}.json", text


def rules():
    """Every expression, with variables as Grafana fills them."""
    print("groups:\n  - name: dashboards\n    rules:")
    filled = {"__rate_interval": "1m", "__interval": "15s", "__range": "1h", "instance": ".*", "export": ".*"}
    number = 0
    for _, _, _, _, panels in ALL:
        for one in panels:
            for expression, _ in one["targets"]:
                number += 1
                text = re.sub(r"\$\{?(\w+)\}?", lambda match: filled[match[1]], expression)
                print(f"      - record: dashboards:expression:{number}\n        expr: {json.dumps(text)}")


def main():
    if "--rules" in sys.argv:
        return rules()
    stale = [path for path, text in files() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    wanted = {path for path, _ in files()}
    stale += [path for path in FOLDER.glob("*.json") if path not in wanted]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.name} isn't what generate.py writes: run deploy/grafana/generate.py")
        sys.exit(bool(stale))
    FOLDER.mkdir(exist_ok=True)
    for path, text in files():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
