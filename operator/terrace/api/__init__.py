"""The two kinds as types (pure): ``model``, ``pool``, ``conditions``, ``names``, ``crd``."""
