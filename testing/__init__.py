"""Support code of the tests and benchmarks: local servers, clusters, clients. It imports no test."""
