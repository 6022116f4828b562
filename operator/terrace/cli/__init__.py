"""The command line of Terrace.

Owns: arguments, output, exit codes. Does not own: what the commands do (``terrace.local`` and its
siblings). Start reading at ``__main__.py``.
"""
