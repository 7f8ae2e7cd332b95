"""Fuzzing of what reads shards: `python -m tests.fuzz --records 100000 --seed 1`.

seeds -> mutations -> check -> runner: legal records of every shape are changed in ways that know the wire format, and
whatever comes out, the readers must agree with protobuf or refuse it. What was found is kept in `corpus`.
"""
