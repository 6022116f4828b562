"""The operator: kopf feed -> cache -> queue -> reconcile -> apply -> status. The only writer.

Start reading at ``reconcile.py`` (one screen); ``controller.py`` turns events into queue items,
``__main__`` wires everything together.
"""
