"""From model facts and node facts to a placement and an offload plan (pure).

``nodes.py`` reads nodes, ``footprint.py`` counts bytes, ``plan.py`` is the value, ``placement.py``
chooses, ``sticky.py`` decides whether a running replica restarts for it.
"""
