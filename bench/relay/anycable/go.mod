// A peer of the benchmark, pinned.
module userrealtime-bench-anycable

go 1.24

require github.com/anycable/anycable-go v1.5.6
