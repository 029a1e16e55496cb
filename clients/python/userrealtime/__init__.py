"""userrealtime for applications: `userrealtime.server`. The client is the package `userrealtime_client`."""
