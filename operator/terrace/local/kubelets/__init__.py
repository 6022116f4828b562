"""Nodes that are real: kubelet and containerd in namespaces of their own, on this machine.

The flow: ``probe.py`` says whether this machine can, ``network.py`` gives the addresses,
``namespaces.py`` makes the room, ``components.py`` has the command lines and ``configs.py`` the
files they read, ``oci.py`` and ``images.py`` fill the nodes with images, ``janitor.py`` clears up.
"""

from terrace.local.kubelets.probe import why_not

__all__ = ["why_not"]
