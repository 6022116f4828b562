"""The OpenAI-compatible HTTP side of a replica.

Owns: wire types, routes, streams, chat templates, identity, health. Does not own: the engine (it
talks to ``engine.client.EngineClient`` alone). ``server`` starts it, ``app`` puts it together.
"""
