"""Training of the demo model that ships with asurge.

`corpus` takes facts from Python's standard library, `samples` writes them as text, `tokenizer` and `train`
make the checkpoint, `evaluate` holds it to its bar.
"""
