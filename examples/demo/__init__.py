"""A small application with userrealtime: two users, a page, and what happens to their pods. See docs/demo.md."""
