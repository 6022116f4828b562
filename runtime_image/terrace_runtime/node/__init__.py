"""What the container may use of its node, as the kernel tells it.

``cgroups.py`` finds our control groups and reads limits and use, ``machine.py`` what the node is
made of (CPUs, NUMA nodes, huge pages, ``/dev/shm``), ``fitting.py`` (pure) says what of it does not
fit the plan, ``report.py`` puts it into the contract's NodeReport, ``metrics.py`` names it for
Prometheus. Everything is read below a ``root`` folder, which is ``/`` but in tests.
"""
