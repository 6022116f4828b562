"""What the devices of a replica are doing: use, memory, temperature, power, throttling.

``nvml.py``, ``sysfs.py`` and ``ascend.py`` read it, ``sampler.py`` decides when, ``metrics.py``
names it for Prometheus. Nothing here plans or places: what lies on a device is in
``contract.DeviceMemory``.
``python -m terrace_runtime.device_telemetry`` prints what is seen, one JSON object per device.
"""
