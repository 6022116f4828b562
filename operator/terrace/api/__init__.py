"""The two kinds as types (pure): ``model.py``, ``pool.py``, ``conditions.py``, ``names.py``, ``crd.py``."""
