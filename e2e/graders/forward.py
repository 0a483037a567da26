"""A forward proxy that others wrote (proxy.py) between a runner and hosts that only it knows: to it every name is this machine.
Takes proxy.py's own arguments, prints its port, and ends with its input. Its log holds what it could read of each request."""

import logging
import sys

import proxy
from proxy.http.proxy import HttpProxyBasePlugin
from proxy.plugin import FilterByUpstreamHostPlugin


class ThisMachine(HttpProxyBasePlugin):
    def resolve_dns(self, host, port):
        return "127.0.0.1", None


class Reads(HttpProxyBasePlugin):
    def handle_client_request(self, request):
        logging.getLogger(__name__).info("read %s", bytes(request.build()))
        return request


few = ["--num-acceptors", "1", "--num-workers", "1"]
arguments = ["--hostname", "127.0.0.1", "--port", "0", *few, *sys.argv[1:]]
with proxy.Proxy(arguments, plugins=[FilterByUpstreamHostPlugin, ThisMachine, Reads]) as running:
    print(running.flags.port, flush=True)
    sys.stdin.read()
