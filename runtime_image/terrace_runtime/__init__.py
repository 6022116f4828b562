"""The server in a replica's pod; imports nothing, so that ``contract`` stays cheap to import.

``contract`` is all that the rest of Terrace may import from here. ``models`` fetches and inspects
model files, ``backend`` holds llama.cpp, ``engine`` batches, ``api`` speaks OpenAI.
"""
