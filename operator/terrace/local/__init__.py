"""A Kubernetes cluster on this machine: a real control plane and pods as host processes.

Owns: binaries, certificates, the control plane's processes, the host node. Does not own: the
command line (``terrace.cli.local``). Start reading at ``cluster.py``.
"""
