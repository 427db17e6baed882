"""Types of requests and responses: requests are checked against them, the OpenAPI document is made from them.

msgspec reads and checks in one pass over the bytes (`benchmarks.schemas` compares it with pydantic).
Unknown fields are ignored, since clients send those of newer versions.
"""
