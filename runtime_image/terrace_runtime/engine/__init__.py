"""Batching: from requests to tokens, one decode for everybody per step.

``client`` is the port; ``inprocess`` and ``process`` are its two shapes over ``frontend``;
``runner`` holds the threads, ``core`` the loop, and the rest are its pure parts. Does not own
llama.cpp (``backend``) or HTTP (``api``).
"""
