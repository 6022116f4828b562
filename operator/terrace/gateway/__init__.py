"""The OpenAI front door for all models: one stateless process, ``python -m terrace.gateway``.

A request's way: ``app`` (routes) -> ``proxy`` (one request) -> ``registry`` (name to endpoints)
-> ``routing`` (which endpoint) -> the replica. The cluster's way in: ``watcher`` -> ``registry``.
"""
