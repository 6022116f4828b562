"""Runs the containers of a pod as plain processes of this machine.

Owns: everything between a pod manifest and its processes. Takes a manifest and the sources of its
volumes (``ports.Sources``) and knows nothing of a cluster: ``terrace run`` uses it without one.
It is a stand-in for kubelet + containerd: no mount, network, pid or user namespace, no cgroup.
Next: ``pod.PodRunner`` is the way in; ``hostnode.py`` feeds it from an API server.
"""
