"""A small application with userrealtime: two users, a page, and the status of their pods. See docs/demo.md."""
