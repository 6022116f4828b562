"""Gets a model file and reads what planning needs from its header; every byte is untrusted.

Owns: fetching (``fetch``, ``download``, ``addresses``, ``cache``) and inspecting (``gguf_header``,
``facts``, ``inspect``). Does not own: loading weights (``backend``). Runs in the fetch Job and in
``terrace_runtime inspect``, never in the operator. Next: ``__main__`` prints what comes out.
"""
