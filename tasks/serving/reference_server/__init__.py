"""An OpenAI-compatible server over the reference engine: `python -m tasks.serving.reference_server
RECORD`.

`transformers serve` (4.57) was tried first: when its generation raises, the client waits for ever,
because its streamer's queue has no end; it also answers only as a stream. So this thin app: one
generation at a time, in a thread; whatever fails there reaches the client as an error; a client
that leaves ends its generation.
"""
