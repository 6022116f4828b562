"""Names of the host node that others may rely on. Imports nothing."""

HOST_NODE_LABEL = "terrace.dev/host-node"
"""Label of the Node that runs pods as host processes; its value is ``true``."""
PROVISIONER = "terrace.dev/local"
"""Provisioner of StorageClasses whose volumes are folders of this machine."""
STORAGE_CLASS = "terrace-local"
"""The default StorageClass of a local cluster."""
