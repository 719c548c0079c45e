#!/usr/bin/env python3
"""Prints objects of a Kubernetes API server as kubectl does, without kubectl.

usage: get.py DIR PORT NAMESPACE get KIND      the table that the server makes, as `kubectl get KIND`
       get.py DIR PORT NAMESPACE watch KIND    a line for every change, until it is ended

DIR and PORT are those of kubernetes.sh.
"""

import json
import ssl
import sys
import urllib.request

directory, port, namespace, command, kind = sys.argv[1:]
context = ssl.create_default_context(cafile=f"{directory}/ca.crt")
context.load_cert_chain(f"{directory}/admin.crt", f"{directory}/admin.key")
url = f"https://127.0.0.1:{port}/apis/networking.istio.io/v1/namespaces/{namespace}/{kind}"


def ask(query="", accept="application/json"):
    request = urllib.request.Request(url + query, headers={"Accept": accept})
    return urllib.request.urlopen(request, context=context)


def get():
    table = json.load(ask(accept="application/json;as=Table;v=v1;g=meta.k8s.io"))
    shown = [i for i, column in enumerate(table["columnDefinitions"]) if column["priority"] == 0]
    text = lambda value: json.dumps(value, separators=(",", ":")) if isinstance(value, list) else str(value)
    rows = [[table["columnDefinitions"][i]["name"].upper() for i in shown]]
    rows += [[text(row["cells"][i]) for i in shown] for row in table["rows"] or []]
    widths = [max(len(row[i]) for row in rows) for i in range(len(shown))]
    for row in rows:
        print("   ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def watch():
    for line in ask("?watch=true"):
        event = json.loads(line)
        metadata, spec = event["object"]["metadata"], event["object"].get("spec", {})
        endpoints = [f"{e['address']}:{next(iter(e['ports'].values()))}" for e in spec.get("endpoints", [])]
        print(f"{event['type']:8} {metadata['name']:40} {','.join(endpoints) or '<none>'}", flush=True)


try:
    {"get": get, "watch": watch}[command]()
except KeyboardInterrupt:
    pass
