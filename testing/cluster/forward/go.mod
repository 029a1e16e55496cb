module userrealtime.dev/e2e/forward

go 1.24
