"""Fuzzing of the shard readers: `python -m tests.fuzz --records 100000 --seed 1`.

seeds -> mutations -> check -> runner: valid records of many forms are mutated with knowledge of the wire format. For
each result the readers must agree with protobuf or reject it. Inputs of earlier findings are stored in `corpus`.
"""
